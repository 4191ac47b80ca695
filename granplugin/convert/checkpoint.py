"""A checkpoint that holds the amax of quantizers: pytorch-quantization's, or modelopt's names.

`<layer>._input_quantizer._amax` and `<layer>._weight_quantizer._amax` (modelopt: without the first
underscores). Granularity is what the shape of amax says, and every range is kept to the bit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from granplugin.errors import ModelError
from granplugin.quant.formats import NO_RANGE
from granplugin.quant.layers import SCORES, VALUES
from granplugin.words import first

_QUANTIZER = re.compile(
    r"(?:(?P<module>.+)\.)?(?P<mark>_?)(?P<name>[a-z]\w*)_quantizer\.(?P<key>.+)"
)
_ROLES = ("weight", "input", "output")
_PRODUCTS = {
    **dict.fromkeys(("matmul_q_input", "q_bmm"), (SCORES, "input")),
    **dict.fromkeys(("matmul_k_input", "k_bmm"), (SCORES, "other")),
    **dict.fromkeys(("matmul_a_input", "p_bmm"), (VALUES, "input")),
    **dict.fromkeys(("matmul_v_input", "v_bmm"), (VALUES, "other")),
}
"""Quantizers of an attention's products: pytorch-quantization's BERT, and modelopt."""
_SKIPS = ("residual", "residual_input", "add_residual_input")
"""Quantizers of what is added: pytorch-quantization's ResNet and BERT."""
_WRAPPER = "module."


@dataclass
class Ranges:
    """`rules` of a recipe, `sites` as in a file of amax, and what could not be taken over."""

    rules: list[dict[str, Any]] = field(default_factory=list)
    sites: dict[str, dict[str, Any]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


def is_quantizer_key(name: str) -> bool:
    """Whether a tensor of a checkpoint belongs to a quantizer, and not to the network."""
    return _QUANTIZER.fullmatch(name) is not None


def unwrapped(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """By the names of the network: without DataParallel's `module.` where every name has it."""
    if all(name.startswith(_WRAPPER) for name in arrays):
        return {name.removeprefix(_WRAPPER): array for name, array in arrays.items()}
    return arrays


def ranges_of(arrays: Mapping[str, np.ndarray], where: str) -> Ranges:
    """Granularity and range of each site with an amax. Raises ModelError where there is none, for
    a range that is not finite or negative, and for quantizers of two libraries."""
    ranges = Ranges()
    held = _amax_of(ranges, arrays, where)
    if not held:
        raise ModelError(
            f"{where}: holds no amax of a quantizer (<layer>._weight_quantizer._amax); save it "
            "behind calibration, with the model's state_dict"
        )
    bad = [f"{module}.{name}" for (module, name), amax in held.items() if not _is_range(amax)]
    if bad:
        raise ModelError(f"{where}: a range is NaN, infinite or negative: {first(bad)}")
    by_match: dict[tuple[str, str | None], dict[str, Any]] = {}
    for (module, name), amax in held.items():
        site, told, trait = f"{module}.{name}".lstrip("."), None, None
        if name in _ROLES:
            weight = arrays.get(f"{module}.weight".lstrip(".")) if name == "weight" else None
            told, role = _site(ranges, site, amax, weight), name
        elif name in _PRODUCTS:
            trait, role = _PRODUCTS[name]
            told = _site(ranges, site, amax, None)
        elif name in _SKIPS:
            trait, role, told = "skip", "skip", _site(ranges, site, amax, None)
        else:
            ranges.lost.append(f"{site}_quantizer: is at no weight, input or skip; it stays float")
            continue
        by_match.setdefault((module, trait), {})[role] = told if told is not None else "float"
    for (module, trait), said in by_match.items():
        inside: dict[str, Any] = {"name": f"{module}.**" if module else "**"}
        if trait == "skip":
            ranges.rules.append({"match": inside, **said})
        elif trait is not None:
            ranges.rules.append({"match": inside | {"trait": trait}, **said})
        else:
            half = len({"weight", "input"} & {r for r, s in said.items() if s != "float"}) == 1
            ranges.rules.append({"match": module, **said, **({"half": "allow"} if half else {})})
    return ranges


def _amax_of(
    ranges: Ranges, arrays: Mapping[str, np.ndarray], where: str
) -> dict[tuple[str, str], np.ndarray]:
    """Module and quantizer -> its range. What else quantizers hold is named."""
    held: dict[tuple[str, str], np.ndarray] = {}
    clips: dict[tuple[str, str], list[np.ndarray]] = {}
    marks: set[str] = set()
    for name, array in arrays.items():
        match = _QUANTIZER.fullmatch(name)
        if match is None:
            continue
        at, key = (match["module"] or "", match["name"]), match["key"]
        if key == "_pre_quant_scale":
            raise ModelError(
                f"{where}: {at[0]}.{at[1]} is multiplied by a scale of smoothquant or awq first, "
                "which no recipe says; quantize the float network with this recipe's algorithm"
            )
        if key == "_amax":
            held[at] = np.asarray(array, np.float32)
            marks |= {match["mark"]} if match["name"] in _ROLES else set()
        elif key in ("clip.clip_value_min", "clip.clip_value_max"):
            clips.setdefault(at, []).append(np.abs(np.asarray(array, np.float32)))
        else:
            ranges.lost.append(f"{name}: no recipe says it")
    if len(marks) > 1:
        raise ModelError(
            f"{where}: some quantizers are pytorch-quantization's (_weight_quantizer) and some "
            "modelopt's (weight_quantizer); calibrate the network with one of them"
        )
    # Ranges that were learned stand in the clip, whose amax is the larger end.
    return held | {at: np.maximum(*ends) for at, ends in clips.items() if len(ends) == 2}


def _is_range(amax: np.ndarray) -> bool:
    return bool(np.isfinite(amax).all() and (amax >= 0).all())


def _site(ranges: Ranges, site: str, amax: np.ndarray, weight: np.ndarray | None) -> Any:
    """What the recipe says of a site; None where it stays float."""
    if not (amax > NO_RANGE).any():
        ranges.lost.append(f"{site}: its range is {float(amax.max(initial=0)):g}, which is none")
        return None
    if amax.size == 1:
        return {"format": "int8", "granularity": "per_tensor", "amax": float(amax.reshape(()))}
    if weight is None:
        ranges.lost.append(
            f"{site}: {amax.size} ranges of shape {list(amax.shape)}, and the sizes of an input, which "
            "a file of ranges has, are in no checkpoint; it stays float, and a rule with per_channel "
            "quantizes it with ranges of the data"
        )
        return None
    axis = _axis(ranges, site, amax, weight)
    if axis is None:
        raise ModelError(
            f"{site}: its amax of shape {list(amax.shape)} fits no axis of the weight "
            f"{list(weight.shape)}; is this the checkpoint of another model?"
        )
    block = [1 if at == axis else size for at, size in enumerate(weight.shape)]
    grid = [weight.shape[axis] if at == axis else 1 for at in range(weight.ndim)]
    amax = np.where(amax > NO_RANGE, amax, amax.max())
    ranges.sites[site] = {
        "format": "int8",
        "shape": list(weight.shape),
        "block": block,
        "amax": amax.reshape(grid).tolist(),
    }
    return {"format": "int8", "granularity": {"per_channel": {"axis": axis}}}


def _axis(ranges: Ranges, site: str, amax: np.ndarray, weight: np.ndarray) -> int | None:
    """The axis that is kept: of the same rank, where amax is not one; else the one as long, of
    several that whose largest values are nearest."""
    if amax.ndim == weight.ndim:
        kept = [at for at, size in enumerate(amax.shape) if size != 1]
        if len(kept) == 1 and weight.shape[kept[0]] == amax.size:
            return kept[0]
        return None
    if amax.ndim != 1:
        return None
    fitting = [at for at, size in enumerate(weight.shape) if size == amax.size]
    if len(fitting) > 1:

        def off(axis: int) -> float:
            others = tuple(at for at in range(weight.ndim) if at != axis)
            return float(np.abs(np.abs(weight).max(others) - amax).max())

        fitting.sort(key=off)
        ranges.lost.append(
            f"{site}: its {amax.size} ranges fit axes {', '.join(map(str, sorted(fitting)))}; "
            f"taken for axis {fitting[0]}, whose largest values are nearest"
        )
    return fitting[0] if fitting else None
