"""Folding a batch norm into the weight before it: one arithmetic for torch and for ONNX."""

from __future__ import annotations

import numpy as np


def fold(
    weight: np.ndarray,
    bias: np.ndarray | None,
    gamma: np.ndarray | None,
    beta: np.ndarray | None,
    mean: np.ndarray,
    var: np.ndarray,
    eps: float,
    axis: int,
    groups: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """The float32 weight and bias of one layer that does what the layer and its batch norm did.

    `axis` is the weight's output-channel axis: 0 for convolutions and linear layers, 1 for
    transposed convolutions, whose weight is [in, out / groups, ...] with one block of rows per
    group. bias, gamma, beta, mean and var are [out]; without gamma or beta they are ones or zeros.
    With factor = gamma / sqrt(var + eps): weight' = weight * factor along the output channels and
    bias' = (bias - mean) * factor + beta (Jacob et al. 2018, arXiv:1712.05877, section 3.2).

    >>> fold(np.ones((1, 2)), None, np.array([3.0]), None, np.array([1.0]), np.array([4.0]), 0, 0)
    (array([[1.5, 1.5]], dtype=float32), array([-1.5], dtype=float32))
    """
    mean, var = mean.astype(np.float64), var.astype(np.float64)
    # An ONNX attribute is a float32: only an eps rounded so gives the same bits on both sides.
    factor = 1 / np.sqrt(var + float(np.float32(eps)))
    if gamma is not None:
        factor = gamma.astype(np.float64) * factor
    shift = -mean if bias is None else bias.astype(np.float64) - mean
    shift = shift * factor
    if beta is not None:
        shift = shift + beta.astype(np.float64)
    blocks = _by_group(weight.astype(np.float64), axis, groups)
    ones = (1,) * (blocks.ndim - 3)
    folded = blocks * factor.reshape(blocks.shape[0], 1, blocks.shape[2], *ones)
    return folded.reshape(weight.shape).astype(np.float32), shift.astype(np.float32)


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


def _by_group(weight: np.ndarray, axis: int, groups: int) -> np.ndarray:
    """View as [group, in, out of the group, ...]; the first and third axis number the outputs."""
    if axis == 0:
        return weight.reshape(1, 1, *weight.shape)
    return weight.reshape(groups, -1, *weight.shape[1:])
