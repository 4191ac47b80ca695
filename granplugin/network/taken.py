"""A network that comes quantized by modelopt, taken apart: what each of its quantizers does.

Names, attributes and buffers of quantizers are modelopt's, as its checkpoints and its models have
them; modelopt itself is not imported. What granplugin's calibration mode recorded of its sites says
what attributes cannot: blocks, and how ranges were found.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from granplugin.errors import ModelError
from granplugin.planning.quantize_config import METHOD, attributes
from granplugin.planning.row_json import row_from_json
from granplugin.planning.rows import QuantizedRow
from granplugin.quant.formats import FORMATS, NO_RANGE
from granplugin.quant.given import Given, named
from granplugin.quant.granularity import DoesNotApply, PerTensor, PerToken, expand, grid
from granplugin.quant.layers import Layer, layer_from_json
from granplugin.quant.site import Operand, Shape, Site
from granplugin.store.keys import content_key
from granplugin.words import first

log = logging.getLogger(__name__)

QUANTIZER = "_quantizer"
MODE = f"{METHOD}_calibrate"
LEARNED = "granplugin_learned"
"""The backend of quantizers whose amax was trained: it computes what modelopt's own does."""
LEAST = 2 * NO_RANGE
"""The least amax that is learned."""
_BITS = {fmt.num_bits: name for name, fmt in FORMATS.items() if fmt.block is None}
_UNSAYABLE: dict[str, tuple[tuple[Any, ...], str]] = {
    "_unsigned": ((False, None), "it is unsigned; set unsigned: False"),
    "_narrow_range": ((False, None), "its range is narrow (-127 to 127); set narrow_range: False"),
    "_bias": ((None, {}), "it has a bias, and zero points are 0 here; set bias: None"),
    "_rotate": ((False, None, {}), "it rotates its tensor first; set rotate: False"),
    "backend": ((None, "", LEARNED), "a backend of its own computes it; set backend: None"),
    "_fake_quant": ((True, None), "its weight is compressed; save the model before mtq.compress"),
    "_use_constant_amax": ((False, None), "its amax is a constant; set use_constant_amax: False"),
}
"""Attribute -> the values that change nothing, and what any other means."""


@dataclass(frozen=True, eq=False)
class Quantizers:
    """`states`: quantizer -> modelopt's attributes of it; `tensors`: `quantizer.buffer` -> values;
    `sites`: quantizer -> what granplugin's mode recorded of the site; `folded` are the layers whose
    batch norms it folded."""

    states: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, np.ndarray]
    sites: Mapping[str, Mapping[str, Any]]
    folded: tuple[Layer, ...]

    @property
    def on(self) -> list[str]:
        """Those that are switched on."""
        return [name for name in self.states if self._is_on(name)]

    @property
    def key(self) -> str:
        """A hash of what they compute."""
        amax = {name: tensor.tobytes().hex() for name, tensor in sorted(self.tensors.items())}
        states = {name: str(sorted(self.states[name].items(), key=str)) for name in self.on}
        return content_key(states, amax, [str(site) for site in self.sites.values()])

    def _is_on(self, name: str) -> bool:
        # Several in a row say nothing of themselves: their parts do.
        state = self.states[name]
        return bool(state.get("is_sequential_quantizer")) or not (
            state.get("_disabled", True) or not state.get("_if_quant", True)
        )


def quantizers_of(
    modes: Sequence[tuple[str, Mapping[str, Any]]], tensors: Mapping[str, np.ndarray]
) -> Quantizers:
    """What modelopt's own state of a model says, mode by mode, the last with the last word."""
    states: dict[str, Any] = {}
    record: Mapping[str, Any] = {}
    for mode, state in modes:
        states = state.get("metadata", {}).get("quantizer_state", states)
        if mode == MODE:
            record = state["config"]
    return Quantizers(
        states,
        {name: values for name, values in tensors.items() if is_of_quantizer(name, states)},
        {site["quantizer"]: site for site in record.get("sites", ())},
        tuple(map(layer_from_json, record.get("folded", ()))),
    )


def arrays_of(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Those of quantizers, which are small, as float32 numpy; others are left out."""
    return {
        name: tensor.detach().float().cpu().numpy()
        for name, tensor in tensors.items()
        if f"{QUANTIZER}." in name and not tensor.is_meta
    }


def is_of_quantizer(name: str, quantizers: Iterable[str]) -> bool:
    """Whether a tensor of a state dict belongs to one of these quantizers."""
    return name.rpartition(".")[0] in quantizers


def take(
    quantizers: Quantizers,
    layers: Sequence[Layer],
    weight_of: Callable[[Layer], np.ndarray | None],
) -> tuple[tuple[Layer, ...], dict[str, np.ndarray]]:
    """The layers with what they came with, and site -> its amax grid, float32, to the bit.

    Raises ModelError, naming the quantizer and the way out, where one that is on does what no plan
    says, was never calibrated, has a range that is none, or is of no site of the layers.
    """
    waiting = dict.fromkeys(quantizers.on)
    ranges: dict[str, np.ndarray] = {}
    taken = []
    for layer in layers:
        given: list[tuple[Operand, Given]] = []
        for site in layer.sites:
            name = f"{site.name}{QUANTIZER}".removeprefix(".")
            if name not in waiting:
                continue
            del waiting[name]
            found, amax = _of_site(quantizers, name, site)
            if amax is not None:
                _check_zeros(name, site, found, amax, weight_of(layer) if site.constant else None)
                ranges[site.name] = amax
            given.append((site.operand, found))
        taken.append(replace(layer, given=tuple(given)))
    idle = [name for name in waiting if f"{name}._amax" not in quantizers.tensors]
    if idle:
        log.info("switched on, and never run in the network: %s", first(idle))
    if strange := [name for name in waiting if name not in idle]:
        raise ModelError(
            f"{first(strange)}: switched on, and no site that granplugin knows in this network; "
            f'mtq.disable_quantizer(model, "{strange[0]}") leaves it float'
        )
    return tuple(taken), ranges


def _of_site(quantizers: Quantizers, name: str, site: Site) -> tuple[Given, np.ndarray | None]:
    state = quantizers.states[name]
    _check_sayable(quantizers, name)
    fmt = _BITS.get(_plain(state.get("_num_bits", 8)))
    if fmt is None:
        raise ModelError(
            f"{name}: num_bits {state['_num_bits']} is none of the formats {', '.join(_BITS.values())}"
        )
    recorded = _recorded(quantizers, name, site)
    if state.get("_dynamic"):
        return recorded or Given(fmt, _at_run_time(name, state, site)), None
    amax = quantizers.tensors.get(f"{name}._amax")
    if amax is None:
        raise ModelError(
            f"{name}: switched on, and never calibrated: it has no amax; run "
            "mtq.calibrate(model, forward_loop=...), or mtq.disable_quantizer"
        )
    amax = np.asarray(amax, np.float32)
    if state.get("backend") == LEARNED:
        amax = trained_amax(amax)
    if not np.isfinite(amax).all() or (amax < 0).any():
        raise ModelError(
            f"{name}: its amax holds NaN, Inf or a negative number; calibrate it again"
        )
    if recorded is not None:
        block = recorded.granularity.block(site)
    else:
        block = _block(name, state, site)
    cells = cells_of(name, site.shape, block, amax)
    found = recorded or Given(fmt, named(site, block))
    return replace(found, ranges=content_key(cells.tobytes().hex(), list(cells.shape))), cells


def trained_amax(amax: np.ndarray) -> np.ndarray:
    """The range that a quantizer has whose amax was learned: an optimizer may step below zero."""
    return np.maximum(np.abs(amax), np.float32(LEAST))


def _recorded(quantizers: Quantizers, name: str, site: Site) -> Given | None:
    """What granplugin recorded, where the quantizer's attributes are those it set."""
    if name not in quantizers.sites:
        return None
    row = row_from_json(quantizers.sites[name])
    if not isinstance(row, QuantizedRow) or row.shape != site.shape:
        return None
    state = quantizers.states[name]
    told = {key: _plain(state.get(f"_{key}")) for key in ("num_bits", "axis")}
    config = attributes(row)
    if told != {key: config[key] for key in told} or bool(state.get("_dynamic")) != row.dynamic:
        return None
    return Given(row.format, row.granularity, row.calibrator)


def _check_sayable(quantizers: Quantizers, name: str) -> None:
    state = quantizers.states[name]
    if state.get("is_sequential_quantizer"):
        raise ModelError(f"{name}: several quantizers in a row, of which a site has one")
    for key, (harmless, told) in _UNSAYABLE.items():
        if state.get(key) not in harmless:
            raise ModelError(f"{name}: {told}, or disable it")
    if (state.get("_block_sizes") or {}).get("scale_bits"):
        raise ModelError(f"{name}: its scales are quantized too (NVFP4, MX); disable it")
    if f"{name}._pre_quant_scale" in quantizers.tensors:
        raise ModelError(
            f"{name}: it multiplies its tensor by scales first (SmoothQuant, AWQ), which no plan "
            "says; fold them into the layers before, or quantize without"
        )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _kept(state: Mapping[str, Any], rank: int) -> set[int]:
    """The axes along which scales vary, by `axis`."""
    axis = _plain(state.get("_axis"))
    axes = axis if isinstance(axis, tuple) else () if axis is None else (axis,)
    return {at % rank for at in axes} if rank else set()


def _at_run_time(name: str, state: Mapping[str, Any], site: Site) -> PerTensor | PerToken:
    rank = len(site.shape)
    kept, sizes = _kept(state, rank), state.get("_block_sizes") or {}
    if {key: size for key, size in sizes.items() if key != "type"} == {-1: None}:
        kept = set(range(rank - 1))
    if site.operand == "input" and kept == {0}:
        return PerTensor(dynamic=True)
    if site.operand == "input" and kept == set(range(rank - 1)):
        return PerToken(dynamic=True)
    raise ModelError(
        f"{name}: it finds scales at run time over a whole batch, or along axes of which no engine "
        "has them so; calibrate it, or say axis: 0, each sample's own"
    )


def _block(name: str, state: Mapping[str, Any], site: Site) -> Shape:
    shape, rank = site.shape, len(site.shape)
    sizes = {
        int(axis) % rank: size
        for axis, size in (state.get("_block_sizes") or {}).items()
        if isinstance(axis, int)
    }
    if not sizes:
        kept = _kept(state, rank)
        return tuple(1 if at in kept else n for at, n in enumerate(shape))
    block = tuple((sizes[at] or n) if at in sizes else 1 for at, n in enumerate(shape))
    if any(n % part for n, part in zip(shape, block, strict=True)):
        raise ModelError(
            f"{name}: its blocks {list(block)} do not divide {list(shape)}, and modelopt pads them; "
            "no plan says that: choose sizes that do"
        )
    return block


def cells_of(name: str, shape: Shape, block: Shape, amax: np.ndarray) -> np.ndarray:
    """The amax on the grid of these blocks: modelopt has it so, flat, or repeated over the block.
    Raises ModelError where it is none of these."""
    cells = grid(shape, block)
    parts = tuple(part if n > 1 else 1 for part, n in zip(block, cells, strict=True))
    repeated = tuple(n * part for n, part in zip(cells, parts, strict=True))
    if amax.shape == repeated and repeated != cells:
        found = amax[tuple(slice(None, None, part) for part in parts)]
        if np.array_equal(expand(found, parts), amax):
            return found
    elif amax.size == np.prod(cells, dtype=int):
        return amax.reshape(cells)
    raise ModelError(
        f"{name}: its amax of shape {list(amax.shape)} fits no granularity of a tensor "
        f"{list(shape)}; is this the checkpoint of another model?"
    )


def _check_zeros(
    name: str, site: Site, given: Given, amax: np.ndarray, weight: np.ndarray | None
) -> None:
    """Where a range is zero modelopt computes zeros: right only where a weight is zero."""
    if (amax > NO_RANGE).all():
        return
    if weight is not None:
        try:
            block = given.granularity.block(site)
        except DoesNotApply as err:
            raise ModelError(f"{name}: {err}") from err
        dead = expand(amax, block) <= NO_RANGE
        if not (np.abs(weight)[dead] > NO_RANGE).any():
            return
    elif (amax > NO_RANGE).any():
        return  # a channel that is zero, as behind a ReLU
    raise ModelError(
        f"{name}: its amax is zero where its tensor is not, so that modelopt computes zeros; "
        "calibrate it again, or disable it"
    )
