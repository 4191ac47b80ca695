"""Which granularities can be written as others an engine has: decided from the plan's rows."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

import numpy as np

from granplugin.errors import ModelError
from granplugin.planning.rows import QuantizedRow
from granplugin.quant.formats import Format
from granplugin.quant.layers import PRODUCTS

How = Literal["lower", "simulate"]
"""What is asked of a site: exactly what its row says, made from a per_tensor Q/DQ, or float
arithmetic. Scales of run time are no constants, so a dynamic row is lowered in any file."""

Method = Literal["row_scale", "fold", "rescale", "simulated"]
"""row_scale: the scales are multiplied behind the product; fold: they go into a depthwise weight's
scales; rescale: into a weight that is rounded anew; simulated: all is float."""

FLOOR = np.finfo(np.float32).tiny
"""The smallest scale computed at run time: a tensor of zeros is 0 / FLOOR * FLOOR = 0."""


def methods(rows: Iterable[QuantizedRow], how: Mapping[str, How]) -> dict[str, Method]:
    """How each site named in `how`, and each dynamic one, is written, by row.site; a per_tensor
    input needs nothing and is not in it. `rows` are all that are quantized in the file.

    Raises ModelError for a site that cannot be written as asked.
    """
    by_site = {row.site: row for row in rows}
    found: dict[str, Method] = {}
    for row in by_site.values():
        asked = how.get(row.site)
        if asked is None and row.dynamic:
            asked = "lower"
        if asked == "simulate":
            found[row.site] = "simulated"
        elif asked is not None:
            if row.operand != "input":
                raise ModelError(
                    f"{row.site}: only inputs are lowered, not a layer's {row.operand}; write "
                    "simulate, float, or a granularity the engine has"
                )
            cut = cut_axes(row)
            method = _dynamic(row, cut) if row.dynamic else _static(row, cut)
            if method in ("fold", "rescale"):
                weight = _checked(row, by_site.get(f"{row.layer}.weight"), how)
                # A depthwise filter reads one channel: no sum runs over channels.
                if operation(row) == "convolution" and weight.shape[1] == 1:
                    method = "fold"
            if method is not None:
                found[row.site] = method
    return found


def cut_axes(row: QuantizedRow) -> tuple[int, ...]:
    """The axes along which the row's scales differ."""
    return tuple(axis for axis, cells in enumerate(row.grid) if cells > 1)


def operation(row: QuantizedRow) -> str | None:
    """That of the layer's kind of product, None where it has no product."""
    kind = PRODUCTS.get(row.type)
    return None if kind is None else kind.operation


def product_axis(row: QuantizedRow) -> int | None:
    """The axis of an input that the layer's product sums over, or None where it has no product."""
    kind = PRODUCTS.get(row.type)
    return None if kind is None else kind.channel_axis(len(row.shape))


def _static(row: QuantizedRow, cut: Collection[int]) -> Method | None:
    axis = product_axis(row)
    if not cut:
        return None
    if axis is not None and set(cut) == {axis}:
        return "rescale"
    if operation(row) == "linear" and axis not in cut:
        return "row_scale"
    raise _cannot(row, "lowered")


def _dynamic(row: QuantizedRow, cut: Collection[int]) -> Method:
    whole = all(part in (1, length) for part, length in zip(row.block, row.shape, strict=True))
    axis = product_axis(row)
    if axis is None or not whole or axis in cut or (cut and operation(row) != "linear"):
        raise _cannot(row, "dynamic")
    return "row_scale"


def _cannot(row: QuantizedRow, what: str) -> ModelError:
    blocks = "x".join(map(str, row.block))
    return ModelError(
        f"{row.site}: blocks of {blocks} in {'x'.join(map(str, row.shape))} cannot be {what} in "
        f"a {row.type or 'layer without a weight'}: no constant factor takes their scales out of "
        "its sums; write simulate, per_channel or per_tensor"
    )


def _checked(
    row: QuantizedRow, weight: QuantizedRow | None, how: Mapping[str, How]
) -> QuantizedRow:
    """The weight's row, into which the scales of `row` can go. Raises ModelError."""
    if weight is None or how.get(weight.site) is not None:
        raise ModelError(
            f"{row.site}: its scales go into the weight, and {row.layer}.weight is not quantized; "
            "quantize the weight or simulate both"
        )
    if weight.amax is not None:
        raise ModelError(
            f"{row.site}: its scales go into the weight, whose amax is pinned for the weight as it "
            f"was; remove the amax of {weight.site} or simulate both"
        )
    return weight


def broadcast(cells: np.ndarray, row: QuantizedRow) -> np.ndarray:
    """A grid of scales as it broadcasts against the tensor: of its length along the axes where
    scales differ, of length 1 along the others."""
    for axis in cut_axes(row):
        cells = np.repeat(cells, row.block[axis], axis)
    return cells


def unit_of(cells: np.ndarray | None, fmt: Format) -> float:
    """The power of two that stays in the Q/DQ behind a division; the tensor is divided by the rest,
    scale / unit.

    A factor 2^k changes no digit, so any would do in float32. This one keeps what lies between in
    float16's range too: the largest power not above the largest scale, so that nothing grows; for
    a scale of run time (cells is None) such that the quotient is below 2.
    """
    if cells is None:
        return 2.0 ** -math.floor(math.log2(fmt.largest))
    return 2.0 ** (int(np.frexp(cells.max())[1]) - 1)


def reduced_axes(row: QuantizedRow) -> tuple[int, ...]:
    """The axes over which a scale is shared at run time: all but the batch and those cut."""
    return tuple(axis for axis in range(1, len(row.shape)) if axis not in cut_axes(row))
