"""What a value is rounded to: one row per format, and the numpy oracle of Q/DQ.

The formulas are those of ONNX QuantizeLinear and DequantizeLinear (opset 21), in float32:
q = saturate(round_half_even(x / scale)), x' = q * scale, zero point 0.

A format is one entry of FORMATS, which says its grid of values, which scales it has and, where that
is not free, which values share one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from granplugin.quant.granularity import DoesNotApply, Granularity, expand
from granplugin.quant.site import Shape, Site

NO_RANGE = 2.0**-24
"""Up to this amax, the smallest number of float16, a range is none: modelopt takes it for zero
(tensor_quant._tensor_quant and scaled_e4m3), whatever the format."""


def _as_it_is(amax: np.ndarray) -> np.ndarray:
    return amax


@dataclass(frozen=True)
class Format:
    """A number format, whose values are those of `dtype` from `smallest` to `largest`.

    `step` is the smallest value above 0, and 1 where all steps are equal. `num_bits` is modelopt's
    word for the values: their bits, or those of exponent and mantissa. `fit` makes of an amax
    (float32, any shape) the one that a scale of the format stands for, `largest` times the scale;
    it leaves alone what it made. `block` is how many values along the axis that a product sums over
    share a scale, None where a recipe chooses.
    """

    name: str
    bits: int
    smallest: float
    largest: float
    step: float
    dtype: np.dtype
    num_bits: int | tuple[int, int]
    fit: Callable[[np.ndarray], np.ndarray] = _as_it_is
    block: int | None = None

    @property
    def integer(self) -> bool:
        return self.step == 1


def power_of_two_amax(amax: np.ndarray) -> np.ndarray:
    """The amax of an MX format with E4M3 values: 448 times a power of two, its scale (E8M0).

    The scale's exponent is floor(log2(amax)) - 8, where 8 is the exponent of E4M3's largest value
    (OCP Microscaling Formats v1.0, section 6.3), but not below -126. So amax / scale is in
    [256, 512), and what lies above 448 saturates, amax itself too. modelopt 0.47's MXFP8 takes
    ceil(log2(amax / 448)) instead, as ONNX's Cast to float8e8m0 rounds up by default: the same
    scale but where amax / scale is above 448; there it is twice as large, and nothing saturates.

    >>> power_of_two_amax(np.float32([448, 500, 1.0])).tolist()
    [448.0, 448.0, 1.75]
    """
    exponent = np.maximum(np.frexp(amax)[1] - 9, -126)  # frexp's fraction is in [0.5, 1)
    return np.where(amax > 0, np.ldexp(np.float32(448), exponent), amax)


_E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
FORMATS = {
    fmt.name: fmt
    for fmt in (
        Format("int8", 8, -128, 127, 1, np.dtype(np.int8), 8),
        Format("int4", 4, -8, 7, 1, np.dtype(ml_dtypes.int4), 4),
        Format("fp8", 8, -448, 448, 2**-9, _E4M3, (4, 3)),
        Format("mxfp8", 8, -448, 448, 2**-9, _E4M3, (4, 3), power_of_two_amax, block=32),
    )
}


def own_block(fmt: Format, site: Site) -> Shape | None:
    """The block that a format has at this site; None where a recipe chooses.

    Raises DoesNotApply for a site that such blocks do not fit.

    >>> own_block(FORMATS["mxfp8"], Site("fc", "weight", (10, 64), 0))
    (1, 32)
    """
    if fmt.block is None:
        return None
    if not site.constant:
        raise DoesNotApply(
            f"{fmt.name}: it is for weights alone; say {site.operand}: {{format: float}} and "
            "half: allow"
        )
    if len(site.shape) != 2 or site.channel_axis is None:
        raise DoesNotApply(
            f"{fmt.name}: it is for the weights of linear layers, and this one is of shape "
            f"{list(site.shape)}; use another format"
        )
    axis = 1 - site.channel_axis
    if site.shape[axis] % fmt.block:
        raise DoesNotApply(
            f"{fmt.name}: it has blocks of {fmt.block} values, and {fmt.block} does not divide "
            f"axis {axis} of {list(site.shape)}; use another format"
        )
    return (fmt.block, 1) if axis == 0 else (1, fmt.block)


def block_of(fmt: Format, granularity: Granularity, site: Site) -> Shape:
    """The granularity's block at this site. Raises DoesNotApply, also where the format has blocks
    of its own and they are others."""
    own = own_block(fmt, site)
    block = granularity.block(site)
    if own not in (None, block):
        axis = own.index(fmt.block)
        raise DoesNotApply(
            f"{granularity}: {fmt.name} has one scale for each {fmt.block} values along axis "
            f"{axis}, over which the product sums; write granularity: "
            f"{{per_block: {{size: {fmt.block}, axis: {axis}}}}}"
        )
    return block


def scale_of(amax: np.ndarray, fmt: Format) -> np.ndarray:
    """scale = fit(amax) / largest, in float32; strictly positive where amax is."""
    return fmt.fit(np.asarray(amax, np.float32)) / np.float32(fmt.largest)


def quantize(x: np.ndarray, scale: np.ndarray, block: Shape, fmt: Format) -> np.ndarray:
    """x (float32) with one `scale` per block of the grid -> the stored numbers, same shape."""
    ratio = np.asarray(x, np.float32) / expand(scale, block)
    if fmt.integer:
        return np.clip(np.rint(ratio), fmt.smallest, fmt.largest).astype(np.int8).astype(fmt.dtype)
    return np.clip(ratio, fmt.smallest, fmt.largest).astype(fmt.dtype)


_AT_ONCE = 2**22
"""Values: what is computed on the way takes ten times their memory."""


def quantize_in_parts(x: np.ndarray, scale: np.ndarray, block: Shape, fmt: Format) -> np.ndarray:
    """As `quantize`, part by part along axis 0, so that little more is held than x and the result.

    >>> x, scale = np.ones((2**21 + 1, 4), np.float32), np.full((1, 1), 0.5, np.float32)
    >>> int(quantize_in_parts(x, scale, x.shape, FORMATS["int8"]).sum()) == 2 * x.size
    True
    """
    if x.size <= _AT_ONCE:
        return quantize(x, scale, block, fmt)
    made = np.empty(x.shape, fmt.dtype)
    rows = max(_AT_ONCE // math.prod(x.shape[1:]), 1)
    lone = len(scale) == 1
    step = rows if lone else -(-rows // block[0]) * block[0]
    for start in range(0, len(x), step):
        part = x[start : start + step]
        cells = scale if lone else scale[start // block[0] : (start + step) // block[0]]
        own = (len(part), *block[1:]) if lone else block
        made[start : start + step] = quantize(part, cells, own, fmt)
    return made


def dequantize(q: np.ndarray, scale: np.ndarray, block: Shape) -> np.ndarray:
    """The stored numbers -> float32."""
    return q.astype(np.float32) * expand(scale, block)


def fake_quantize(x: np.ndarray, scale: np.ndarray, block: Shape, fmt: Format) -> np.ndarray:
    """Quantize and dequantize: what a network with this scale computes with."""
    return dequantize(quantize(x, scale, block, fmt), scale, block)
