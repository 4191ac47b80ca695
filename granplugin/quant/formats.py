"""What a value is rounded to: one row per format, and the numpy oracle of Q/DQ.

The formulas are those of ONNX QuantizeLinear and DequantizeLinear (opset 21), in float32:
q = saturate(round_half_even(x / scale)), x' = q * scale, zero point 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from granplugin.quant.granularity import expand
from granplugin.quant.site import Shape


@dataclass(frozen=True)
class Format:
    """A number format: `largest` is the value that amax is mapped to."""

    name: str
    bits: int
    largest: float
    smallest: float
    dtype: np.dtype
    integer: bool


FORMATS = {
    fmt.name: fmt
    for fmt in (
        Format("int8", 8, 127, -128, np.dtype(np.int8), True),
        Format("int4", 4, 7, -8, np.dtype(ml_dtypes.int4), True),
        Format("fp8", 8, 448, -448, np.dtype(ml_dtypes.float8_e4m3fn), False),
    )
}


def scale_of(amax: np.ndarray, fmt: Format) -> np.ndarray:
    """scale = amax / largest, in float32; strictly positive where amax is."""
    return np.asarray(amax, np.float32) / np.float32(fmt.largest)


def quantize(x: np.ndarray, scale: np.ndarray, block: Shape, fmt: Format) -> np.ndarray:
    """x (float32) with one `scale` per block of the grid -> the stored numbers, same shape."""
    ratio = np.asarray(x, np.float32) / expand(scale, block)
    if fmt.integer:
        return np.clip(np.rint(ratio), fmt.smallest, fmt.largest).astype(np.int8).astype(fmt.dtype)
    return np.clip(ratio, fmt.smallest, fmt.largest).astype(fmt.dtype)


def dequantize(q: np.ndarray, scale: np.ndarray, block: Shape) -> np.ndarray:
    """The stored numbers -> float32."""
    return q.astype(np.float32) * expand(scale, block)


def fake_quantize(x: np.ndarray, scale: np.ndarray, block: Shape, fmt: Format) -> np.ndarray:
    """Quantize and dequantize: what a network with this scale computes with."""
    return dequantize(quantize(x, scale, block, fmt), scale, block)
