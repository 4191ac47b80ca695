"""Scales of input channels, moved into the weight.

With x[c] = d[c] q[c]:  y[k] = sum_c w[k, c] x[c] = sum_c (w[k, c] d[c]) q[c].
Here d is the scale but for the power of two that stays in the Q/DQ (see division).

Each layer has a marker of its own at its weight, and what changes is what this marker reads: the
weight of another layer that shares the parameter stays as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from granplugin.calibration.statistics import find_amax
from granplugin.errors import ModelError
from granplugin.graph.edit.additions import Additions
from granplugin.graph.edit.contract import misfit, seam
from granplugin.graph.edit.fold import weight_at
from granplugin.graph.edit.lowering.products import check_readers
from granplugin.graph.methods import Method, broadcast, operation, unit_of
from granplugin.planning.rows import QuantizedRow
from granplugin.quant.formats import FORMATS, dequantize, quantize, scale_of
from granplugin.quant.granularity import PerBlock
from granplugin.quant.site import Shape

_SMALLEST_NORMAL = np.finfo(np.float32).smallest_normal


@dataclass(frozen=True, slots=True, eq=False)
class Marked:
    """A row and the markers of its site."""

    row: QuantizedRow
    markers: Sequence[ir.Node]


def _fits(
    additions: Additions,
    method: Method,
    given: Marked,
    cells: np.ndarray,
    weight: Marked,
    amax: np.ndarray,
) -> str | None:
    if method not in WEIGHT_PASSES:
        return f"{method} changes no weight"
    if cells.shape != given.row.grid:
        return f"{given.row.site} has scales of shape {cells.shape}, not {given.row.grid}"
    return misfit([weight.row], {weight.row.site: amax})


def _changed(
    result: tuple[QuantizedRow, np.ndarray],
    additions: Additions,
    method: Method,
    given: Marked,
    cells: np.ndarray,
    weight: Marked,
    amax: np.ndarray,
) -> str | None:
    changed, ranges = result
    if len({marker.inputs[0] for marker in weight.markers}) != 1:
        return f"the markers of {weight.row.site} read several weights"
    if weight_at(weight.markers[0]).shape != changed.shape:
        return f"{weight.row.site} has another shape"
    return misfit([changed], {changed.site: ranges})


@seam(_fits, _changed)
def change_weight(
    additions: Additions,
    method: Method,
    given: Marked,
    cells: np.ndarray,
    weight: Marked,
    amax: np.ndarray,
) -> tuple[QuantizedRow, np.ndarray]:
    """Multiply a layer's weight, in place, by what its input, `given`, is divided by, `cells` being
    the input's scales and `amax` the weight's.

    Returned are the weight's row and amax. Requires a method of WEIGHT_PASSES, scales for each
    block of the input and an amax for each of the weight. Ensures that the weight's markers read
    one weight of its shape, and the same of the amax returned. Raises ModelError where the two do
    not meet in the same products.
    """
    row = given.row
    check_readers(row, given.markers, weight.markers)
    held = weight_at(weight.markers[0])
    divisor = broadcast(cells, row) / np.float32(unit_of(cells, FORMATS[row.format]))
    factor = _factor(row, divisor.reshape(-1), held.shape)
    changed, ranges, held = WEIGHT_PASSES[method](weight.row, held, amax, factor)
    if ranges is None or scale_of(ranges, FORMATS[changed.format]).min() < _SMALLEST_NORMAL:
        raise ModelError(
            f"{row.site}: the product of a scale of it and one of {weight.row.site} is too small "
            "for float32; write per_tensor or simulate"
        )
    value = additions.constant(f"{weight.row.site}/scaled", held)
    for marker in weight.markers:
        marker.replace_input_with(0, value)
    return changed, ranges


def _factor(row: QuantizedRow, scale: np.ndarray, shape: Shape) -> np.ndarray:
    """One scale for each input channel, as it broadcasts against a weight of that shape.

    A linear layer's weight is (K, C); a convolution's (K, C / groups, ...), whose output channels
    read their inputs in runs of K / groups; a transposed one's (C, K / groups, ...).
    """
    if operation(row) == "transposed":
        return scale.reshape(-1, *[1] * (len(shape) - 1))
    by_group = scale.reshape(-1, shape[1])
    return np.repeat(by_group, shape[0] // len(by_group), axis=0).reshape(
        *shape[:2], *[1] * (len(shape) - 2)
    )


def _fold(
    row: QuantizedRow, weight: np.ndarray, amax: np.ndarray, factor: np.ndarray
) -> tuple[QuantizedRow, np.ndarray, np.ndarray]:
    """A depthwise convolution: the weight's stored numbers stay, its scales are multiplied.

    Output channel k reads one input channel c(k), so y[k] = sum w[k] x = sum n[k] (t[k] s[c(k)]) q
    with the weight's stored numbers n and scales t: exact, no sum runs over channels. The lone
    scale of a per_tensor weight becomes one for each output channel. Returned is n (t s), which is
    stored as n again: in float32 n (t s) / (t s) is within 2^-23 of n relatively, far from halfway.
    """
    fmt = FORMATS[row.format]
    stored = quantize(weight, scale_of(amax, fmt), row.block, fmt)
    amax = np.repeat(amax, row.block[0], axis=0) * factor
    row = dataclasses.replace(row, granularity=PerBlock(shape=(1, *row.block[1:])))
    return row, amax, dequantize(stored, scale_of(amax, fmt), row.block)


def _rescale(
    row: QuantizedRow, weight: np.ndarray, amax: np.ndarray, factor: np.ndarray
) -> tuple[QuantizedRow, np.ndarray | None, np.ndarray]:
    """A sum over channels: the weight is w s now, calibrated and rounded as its row says.

    Exact in the input. The weight is rounded once, as ever, but from w s: the layer computes with
    fake_quantize(w s) / s where it would have with fake_quantize(w).
    """
    weight = weight * factor
    return row, find_amax(row, weight=weight), weight


WEIGHT_PASSES = {"fold": _fold, "rescale": _rescale}
