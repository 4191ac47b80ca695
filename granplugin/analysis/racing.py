"""Effects of whole choices on some of the samples, in parts: what loses at once is dropped after a
part of them.

Figures are sums over samples, so those of parts add up to what one pass over all would have found.
A race that is stopped by an interval is looked at as often as there are parts, three times, so that
5 % become some 11 % (Armitage, McPherson and Rowe, Journal of the Royal Statistical Society A 132
(1969), table 2): an option that is dropped so is not tried, and nothing is said of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from granplugin.analysis.effects import Effect, effect
from granplugin.analysis.tried import Choice

SMALLEST = 16
"""A part has as many samples at least: fewer tell nothing that is worth a pass of its own."""

Figures = Callable[[Sequence[Choice], np.ndarray], list[np.ndarray]]
"""The sums of effects.compare of each choice, over the samples of these numbers."""


class Racing:
    """Measures choices on the samples of these `numbers`; `most` of them are enough."""

    def __init__(
        self,
        figures: Figures,
        numbers: np.ndarray,
        most: int,
        by_labels: bool,
        tell: Callable[[int], None],
    ) -> None:
        self.parts = parts_of(numbers)
        self.most, self.tried, self._tell = most, 0, tell
        self._figures, self._by_labels = figures, by_labels
        self._samples = len(numbers)

    @property
    def spent(self) -> bool:
        """Whether as many choices were measured as may be."""
        return self.tried >= self.most

    def glance(self, choices: Sequence[Choice]) -> list[Effect]:
        """The effects of choices on the first part alone; they count as such a part."""
        self._count(math.ceil(len(choices) * len(self.parts[0]) / self._samples))
        begun = self._figures(choices, self.parts[0])
        for part in self.parts[1:]:
            if all(_has_signal(sums) for sums in begun):
                break
            begun = [a + b for a, b in zip(begun, self._figures(choices, part), strict=True)]
        return [self._effect(sums) for sums in begun]

    def run(self, choice: Choice, fails: Callable[[Effect], bool]) -> Effect | None:
        """The effect of a choice on all samples; None where it `fails` on a part of them."""
        self._count(1)
        sums: np.ndarray | None = None
        for at, part in enumerate(self.parts):
            (found,) = self._figures([choice], part)
            sums = found if sums is None else sums + found
            last = at == len(self.parts) - 1
            if not last and _has_signal(sums) and fails(self._effect(sums)):
                return None
        assert sums is not None, "there are samples"
        return self._effect(sums)

    def _count(self, choices: int) -> None:
        self.tried += choices
        self._tell(choices)

    def _effect(self, sums: np.ndarray) -> Effect:
        return effect(sums, self._by_labels, self._samples)


def _has_signal(sums: np.ndarray) -> bool:
    """Whether FP32's outputs are not all 0 on these samples, of which nothing could be said."""
    return float(sums[1]) > 0


def parts_of(numbers: np.ndarray) -> list[np.ndarray]:
    """A quarter of the samples, another, and the rest, each from all over; all of them at once
    where they are few.

    >>> [part.tolist() for part in parts_of(np.arange(3))]
    [[0, 1, 2]]
    >>> [len(part) for part in parts_of(np.arange(100))]
    [25, 25, 50]
    """
    if len(numbers) < 4 * SMALLEST:
        return [numbers]
    return [numbers[::4], numbers[2::4], numbers[1::2]]
