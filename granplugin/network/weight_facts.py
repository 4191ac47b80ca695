"""What a weight's output channels are like, before and after its batch norm is folded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from granplugin.quant.folding import channel_ranges, spread, typical

OUTLIER = 10
"""How many times the median a channel's range is to be called an outlier."""


@dataclass(frozen=True, slots=True, eq=False)
class WeightFacts:
    """The ranges of one weight's output channels: float32 arrays of shape [out], the largest
    |value| of each channel's filter, in the weight's unit.

    `ranges_before` are the module's own weight's, `ranges_after` those of the weight with the batch
    norm folded in; without one that can be folded, the two are equal. Channels are numbered from 0
    as in the layer's output, also where a transposed convolution has groups.

    A *dead* channel is all zeros (range 0): a filter that is zero is dead before and after, one
    behind a gamma of 0 only after. Dead channels neither widen nor narrow anything, so the median
    is that of the channels that are not dead. `spread_*` is the largest range over that median, >=
    1, and None where every channel is dead; `spread_after` equals Layer.spread. `widest_*` is the
    channel with the largest range (the first of equals), None where every channel is dead.
    `outliers_*` are the channels whose range is over OUTLIER times the median, widest first.
    """

    ranges_before: np.ndarray
    ranges_after: np.ndarray

    @property
    def spread_before(self) -> float | None:
        return spread(self.ranges_before)

    @property
    def spread_after(self) -> float | None:
        return spread(self.ranges_after)

    @property
    def widest_before(self) -> int | None:
        return _widest(self.ranges_before)

    @property
    def widest_after(self) -> int | None:
        return _widest(self.ranges_after)

    @property
    def dead_before(self) -> tuple[int, ...]:
        return _dead(self.ranges_before)

    @property
    def dead_after(self) -> tuple[int, ...]:
        return _dead(self.ranges_after)

    @property
    def outliers_before(self) -> tuple[int, ...]:
        return _outliers(self.ranges_before)

    @property
    def outliers_after(self) -> tuple[int, ...]:
        return _outliers(self.ranges_after)


def weight_facts(
    weight: np.ndarray, folded: np.ndarray | None, axis: int, groups: int
) -> WeightFacts:
    """The facts of a weight and of the same with its batch norm folded in, None without one that
    can be folded; `axis` and `groups` as in granplugin.quant.folding."""
    before = channel_ranges(weight, axis, groups)
    return WeightFacts(before, before if folded is None else channel_ranges(folded, axis, groups))


def _widest(ranges: np.ndarray) -> int | None:
    return int(ranges.argmax()) if ranges.any() else None


def _dead(ranges: np.ndarray) -> tuple[int, ...]:
    return tuple(np.flatnonzero(ranges == 0).tolist())


def _outliers(ranges: np.ndarray) -> tuple[int, ...]:
    order = np.argsort(-ranges, kind="stable")
    return tuple(order[ranges[order] > OUTLIER * typical(ranges)].tolist())
