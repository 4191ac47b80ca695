"""What one site's arrays hold, collected batch by batch: granplugin.calibration.seen without torch.

The figures are the same to the bit: both are exact and independent of the order.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from granplugin.calibration.statistics import Need, Statistics, splits
from granplugin.quant.calibrators import BINS, FIRST, SHIFT

_CHUNK = 1 << 20


class SeenArrays:
    """The running amax (float32, need.grid) and counts (int64, need.grid + (BINS,)) of one need."""

    def __init__(self, need: Need) -> None:
        self.need = need
        self.amax: np.ndarray | None = None
        self.counts: np.ndarray | None = None

    def add(self, x: np.ndarray) -> bool:
        """See one batch, float32; whether all of it is finite. Raises DataError for a shape that the
        need's blocks do not fit."""
        x = np.ascontiguousarray(x)
        split = x.reshape(splits(self.need, x.shape))
        within = (0, *range(2, split.ndim, 2))
        # Not abs().max(): that writes and reads a copy of the activation. NaN stays NaN.
        amax = np.maximum(split.max(within), -split.min(within)).reshape(self.need.grid)
        if not np.isfinite(amax).all():
            return False
        self.amax = amax if self.amax is None else np.maximum(self.amax, amax)
        if self.need.histogram:
            counts = self._counts(split)
            self.counts = counts if self.counts is None else self.counts + counts
        return True

    def _counts(self, split: np.ndarray) -> np.ndarray:
        cells = [n for n in self.need.grid if n > 1]
        if not cells:
            return _histogram(split.reshape(-1))
        # The cells first, each with its values in a row.
        axes = range(split.ndim)
        order = [*axes[1::2], 0, *axes[2::2]]
        rows = split.transpose(order).reshape(int(np.prod(cells)), -1)
        return np.stack([_histogram(np.ascontiguousarray(row)) for row in rows])

    def counts_grid(self) -> np.ndarray:
        assert self.counts is not None
        return self.counts.reshape(*self.need.grid, BINS)


def statistics_of(seen: Mapping[Need, SeenArrays], samples: int) -> Statistics:
    """What was seen of these needs, on so many samples."""
    return Statistics(
        {need: each.amax for need, each in seen.items() if each.amax is not None},
        {
            need: each.counts_grid()
            for need, each in seen.items()
            if need.histogram and each.counts is not None
        },
        samples,
    )


def _histogram(values: np.ndarray) -> np.ndarray:
    """Of |x|, in BINS bins (granplugin.quant.calibrators)."""
    counts = np.zeros(1 << 16, np.int64)
    bits = values.view(np.uint32)
    for start in range(0, len(bits), _CHUNK):
        # The sign's bit goes; 15 bits of exponent and mantissa are left.
        counts[: 1 << 16] += np.bincount(
            (bits[start : start + _CHUNK] & 0x7FFFFFFF) >> SHIFT, minlength=1 << 16
        )
    kept = counts[FIRST : FIRST + BINS].copy()
    kept[0] += counts[:FIRST].sum()
    kept[-1] += counts[FIRST + BINS :].sum()
    return kept
