"""Folding a batch norm into the weight before it: one arithmetic for torch and for ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """A batch norm of [out] channels; without gamma or beta they are ones or zeros."""

    gamma: np.ndarray | None
    beta: np.ndarray | None
    mean: np.ndarray
    var: np.ndarray
    eps: float

    @property
    def factor(self) -> np.ndarray:
        """What it multiplies each channel by, gamma / sqrt(var + eps): [out], float64."""
        # An ONNX attribute is a float32: only an eps rounded so gives the same bits on both sides.
        factor = 1 / np.sqrt(self.var.astype(np.float64) + float(np.float32(self.eps)))
        return factor if self.gamma is None else self.gamma.astype(np.float64) * factor


def fold(
    weight: np.ndarray, bias: np.ndarray | None, norm: Norm, axis: int, groups: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The float32 weight and bias of one layer that does what the layer and its batch norm did.

    `axis` is the weight's output-channel axis: 0 for convolutions and linear layers, 1 for
    transposed convolutions, whose weight is [in, out / groups, ...] with one block of rows per
    group. bias is [out], or None for zeros. With factor = gamma / sqrt(var + eps): weight' = weight * factor along the output channels and
    bias' = (bias - mean) * factor + beta (Jacob et al. 2018, arXiv:1712.05877, section 3.2).

    >>> norm = Norm(np.array([3.0]), None, np.array([1.0]), np.array([4.0]), eps=0)
    >>> fold(np.ones((1, 2)), None, norm, axis=0)
    (array([[1.5, 1.5]], dtype=float32), array([-1.5], dtype=float32))
    """
    factor = norm.factor
    folded = multiplied(weight.astype(np.float64), factor, axis, groups)
    own, beta = (None if array is None else array.astype(np.float64) for array in (bias, norm.beta))
    shift = shifted(own, factor, norm.mean.astype(np.float64), beta)
    return folded.astype(np.float32), shift.astype(np.float32)


def multiplied(weight: Any, factor: Any, axis: int, groups: int = 1) -> Any:
    """The weight with each output channel times its factor, [out], all float64, arrays or tensors;
    `axis` and `groups` as in fold."""
    blocks = _by_group(weight, axis, groups)
    ones = (1,) * (blocks.ndim - 3)
    factor = factor.reshape(blocks.shape[0], 1, blocks.shape[2], *ones)
    return (blocks * factor).reshape(weight.shape)


def shifted(bias: Any, factor: Any, mean: Any, beta: Any) -> Any:
    """The bias of the layer with its batch norm in it, all [out] and float64, arrays or tensors;
    without bias or beta these are zeros."""
    shift = (-mean if bias is None else bias - mean) * factor
    return shift if beta is None else shift + beta


def channel_ranges(weight: np.ndarray, axis: int, groups: int = 1) -> np.ndarray:
    """The largest |value| of each output channel, [out]; `axis` and `groups` as in fold.

    >>> channel_ranges(np.array([[1, -2], [0, 3]]), 0).tolist()
    [2, 3]
    """
    blocks = _by_group(weight, axis, groups)
    others = (1, *range(3, blocks.ndim))
    return np.maximum(blocks.max(axis=others), -blocks.min(axis=others)).reshape(-1)


def typical(ranges: np.ndarray) -> float:
    """The median of the ranges over 0 - a dead channel's is 0 -, or 0 where there is none."""
    live = ranges[ranges > 0]
    return float(np.median(live)) if live.size else 0.0


def spread(ranges: np.ndarray) -> float | None:
    """The largest range over the typical one, >= 1; None where all are 0.

    >>> spread(np.array([0.0, 1.0, 1.0, 8.0]))
    8.0
    """
    middle = typical(ranges)
    return float(ranges.max()) / middle if middle else None


def _by_group(weight: Any, axis: int, groups: int) -> Any:
    """View as [group, in, out of the group, ...]; the first and third axis number the outputs."""
    if axis == 0:
        return weight.reshape(1, 1, *weight.shape)
    return weight.reshape(groups, -1, *weight.shape[1:])
