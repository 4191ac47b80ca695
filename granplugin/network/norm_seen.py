"""What a batch norm gets, beside what it got in training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class NormSeen:
    """What a batch norm gets, beside its running statistics, as the median over its channels:
    how many times as large the deviation is, and how many of the running deviations the mean is
    off."""

    name: str
    times: float
    shift: float


def norm_seen(
    name: str, x: np.ndarray, mean: np.ndarray, variance: np.ndarray, eps: float
) -> NormSeen:
    """Of what it gets, x (samples, channels, ...), and its running mean and variance (channels)."""
    others = tuple(axis for axis in range(x.ndim) if axis != 1)
    trained = np.sqrt(variance.astype(np.float32) + np.float32(eps))
    times = np.sqrt(x.var(others) + np.float32(eps)) / trained
    shift = np.abs(x.mean(others) - mean) / trained
    return NormSeen(name, float(np.median(times)), float(np.median(shift)))
