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

from granplugin.calibration.statistics import NO_RANGE
from granplugin.errors import ModelError
from granplugin.words import first

_AMAX = re.compile(r"(?P<layer>.+?)\._?(?P<role>input|weight|output)_quantizer\._amax")
_OTHERS = re.compile(r".*_quantizer\..*|.*_quantizer$")


@dataclass
class Ranges:
    """`rules` of a recipe, `sites` as in a file of amax, and what could not be taken over."""

    rules: list[dict[str, Any]] = field(default_factory=list)
    sites: dict[str, dict[str, Any]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


def is_quantizer_key(name: str) -> bool:
    """Whether a tensor of a checkpoint belongs to a quantizer, and not to the network."""
    return _OTHERS.fullmatch(name) is not None


def ranges_of(arrays: Mapping[str, np.ndarray], where: str) -> Ranges:
    """Granularity and range of each site with an amax. Raises ModelError where there is none, and
    for a range that is not finite or negative."""
    found = Ranges()
    by_layer: dict[str, dict[str, np.ndarray]] = {}
    for name, amax in arrays.items():
        if told := _AMAX.fullmatch(name):
            by_layer.setdefault(told["layer"], {})[told["role"]] = amax
    if not by_layer:
        raise ModelError(
            f"{where}: holds no amax of a quantizer (<layer>._weight_quantizer._amax); save it "
            "behind calibration, with the model's state_dict"
        )
    bad = [
        f"{layer}.{role}"
        for layer, roles in by_layer.items()
        for role, amax in roles.items()
        if not np.isfinite(amax).all() or (np.asarray(amax) < 0).any()
    ]
    if bad:
        raise ModelError(f"{where}: a range is NaN, infinite or negative: {first(bad)}")
    for layer, roles in by_layer.items():
        rule: dict[str, Any] = {"match": layer}
        for role, amax in roles.items():
            weight = arrays.get(f"{layer}.weight") if role == "weight" else None
            said = _site(found, f"{layer}.{role}", np.asarray(amax, np.float32), weight)
            rule[role] = said if said is not None else "float"
        if len({"weight", "input"} & {r for r, said in rule.items() if said != "float"}) == 1:
            rule["half"] = "allow"
        found.rules.append(rule)
    return found


def _site(found: Ranges, site: str, amax: np.ndarray, weight: np.ndarray | None) -> Any:
    """What the recipe says of a site; None where it stays float."""
    if not (amax > NO_RANGE).any():
        found.lost.append(f"{site}: its range is {float(amax.max(initial=0)):g}, which is none")
        return None
    if amax.size == 1:
        return {"format": "int8", "granularity": "per_tensor", "amax": float(amax.reshape(()))}
    if weight is None:
        found.lost.append(
            f"{site}: {amax.size} ranges of shape {list(amax.shape)}, which a recipe says of a "
            "weight only; it stays float"
        )
        return None
    axis = _axis(amax.shape, weight.shape)
    if axis is None:
        raise ModelError(
            f"{site}: its amax of shape {list(amax.shape)} fits no axis of the weight "
            f"{list(weight.shape)}; is this the checkpoint of another model?"
        )
    block = [1 if at == axis else size for at, size in enumerate(weight.shape)]
    grid = [weight.shape[axis] if at == axis else 1 for at in range(weight.ndim)]
    amax = np.where(amax > NO_RANGE, amax, amax.max())
    found.sites[site] = {
        "format": "int8",
        "shape": list(weight.shape),
        "block": block,
        "amax": amax.reshape(grid).tolist(),
    }
    return {"format": "int8", "granularity": {"per_channel": {"axis": axis}}}


def _axis(amax: tuple[int, ...], weight: tuple[int, ...]) -> int | None:
    """The axis that is kept: of the same rank, where amax is not one; else the first as long."""
    if len(amax) == len(weight):
        kept = [at for at, size in enumerate(amax) if size != 1]
        if len(kept) == 1 and weight[kept[0]] == amax[kept[0]]:
            return kept[0]
        return None
    if len(amax) == 1:
        return next((at for at, size in enumerate(weight) if size == amax[0]), None)
    return None
