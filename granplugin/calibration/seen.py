"""What one site's tensors hold, collected batch by batch: the largest |x| of each block, and
histograms. Every reduction is exact and independent of the order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce

import numpy as np
import torch

from granplugin.calibration.statistics import Need, Statistics, splits
from granplugin.quant.calibrators import BINS, FIRST, SHIFT

_CHUNK = 1 << 20
_MANY = 4
"""Values for each bin: with more, bincount is the faster way to count them."""
_ALL_BINS = 1 << 16
"""Exponent and mantissa of float32 without the sign, right of SHIFT."""


class Seen:
    """The running amax and counts of one need, on the device of the data."""

    def __init__(self, need: Need) -> None:
        self.need = need
        self.cells = int(np.prod(need.grid))
        self.amax: torch.Tensor | None = None
        self.counts: torch.Tensor | None = None

    def add(self, x: torch.Tensor) -> None:
        amax = self._amax(x)
        self.amax = amax if self.amax is None else torch.maximum(self.amax, amax)
        if self.need.histogram:
            self._count(x)

    def _amax(self, x: torch.Tensor) -> torch.Tensor:
        if self.cells == 1:
            low, high = torch.aminmax(x)
            return torch.maximum(high, -low).reshape(self.need.grid)
        split = x.reshape(splits(self.need, tuple(x.shape)))
        within = (0, *range(2, split.ndim, 2))
        # Not abs().amax(): that writes and reads a copy of the activation.
        return torch.maximum(split.amax(within), -split.amin(within)).reshape(self.need.grid)

    def _count(self, x: torch.Tensor) -> None:
        """All of it or, where memory runs out, nothing."""
        if self.counts is None:
            length = _ALL_BINS if self.cells == 1 else self.cells * BINS
            self.counts = torch.zeros(length, dtype=torch.int64, device=x.device)
        length = len(self.counts)
        if x.numel() > _MANY * length:
            each = (torch.bincount(bins, minlength=length) for bins in self._bins(x))
            self.counts += reduce(torch.Tensor.add_, each)
        else:
            # A table of their own would cost more than they do; and they are one part.
            (bins,) = self._bins(x)
            one = torch.ones(1, dtype=torch.int64, device=x.device)
            self.counts.index_add_(0, bins, one.expand(len(bins)))

    def _bins(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """The place in `counts` of each value, int32, in parts."""
        if self.cells == 1:
            # All 16 bits are counted and cut to BINS at the end, which is cheaper than clamping.
            bits = x.contiguous().view(torch.int32).reshape(-1)
            return ((part >> SHIFT).bitwise_and_(_ALL_BINS - 1) for part in bits.split(_CHUNK))
        split = x.reshape(splits(self.need, tuple(x.shape)))
        bins = (split.view(torch.int32) >> SHIFT).bitwise_and_(_ALL_BINS - 1)
        bins.sub_(FIRST).clamp_(0, BINS - 1)
        cells = torch.arange(self.cells, dtype=torch.int32, device=x.device)
        shape = [n for length in self.need.grid[1:] for n in (length, 1)]
        bins += cells.reshape(1, *shape) * BINS
        return iter([bins.reshape(-1)])

    def amax_grid(self) -> np.ndarray:
        """Of a site that was reached."""
        assert self.amax is not None, f"{self.need.site} was not reached"
        found: np.ndarray = self.amax.cpu().numpy()
        return found

    def is_finite(self) -> bool:
        """Whether all that was seen is."""
        return self.amax is None or bool(self.amax.isfinite().all())

    def counts_grid(self) -> np.ndarray:
        """Of a site that was reached, with a histogram."""
        assert self.counts is not None, f"{self.need.site} was not reached"
        counts = self.counts.cpu().numpy()
        if self.cells == 1:
            kept = counts[FIRST : FIRST + BINS].copy()
            kept[0] += counts[:FIRST].sum()
            kept[-1] += counts[FIRST + BINS :].sum()
            counts = kept
        return counts.reshape(*self.need.grid, BINS)


def seen_of(needs: Iterable[Need]) -> dict[str, list[Seen]]:
    """Site -> what is to be seen of it, nothing yet; in an order of their own."""
    seen: dict[str, list[Seen]] = {}
    for need in sorted(needs, key=lambda need: (need.site, need.block)):
        seen.setdefault(need.site, []).append(Seen(need))
    return seen


def not_finite(seen: Mapping[str, Sequence[Seen]], reached: Iterable[str]) -> str | None:
    """The first of these sites that saw NaN or Inf."""
    return next((s for s in reached if not all(each.is_finite() for each in seen[s])), None)


def statistics_of(seen: Mapping[str, Sequence[Seen]], samples: int) -> Statistics:
    """What was seen of the sites that were reached, on so many samples."""
    found = [each for group in seen.values() for each in group if each.amax is not None]
    return Statistics(
        {each.need: each.amax_grid() for each in found},
        {each.need: each.counts_grid() for each in found if each.need.histogram},
        samples,
    )
