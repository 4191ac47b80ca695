"""Which parts make a whole fail: found by leaving parts out, in few tries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Culprit(Generic[T]):
    """`parts` fail together; where `exact`, and only then, no part of them can be left out.

    Empty and exact: it fails with no part at all.
    """

    parts: tuple[T, ...]
    exact: bool


def culprit(
    parts: Sequence[T],
    fails: Callable[[tuple[T, ...]], bool],
    go_on: Callable[[], bool] = lambda: True,
) -> Culprit[T]:
    """A smallest failing subset of `parts`, all of which together are known to fail.

    The shortest failing run from the start ends with a part that is needed; it is kept, and what is
    before it searched in the same way until what is kept fails alone. That is one minimal subset
    if more parts never cure a failure, in (1 + log2 n) tries per part of it (the sequential form
    of delta debugging: Zeller and Hildebrandt, IEEE TSE 28, 2002). `go_on` is asked before each
    try; when it says no, what is known by then is returned, in the order of `parts`.

    >>> culprit("abcdefgh", lambda kept: {"c", "f"} <= set(kept))
    Culprit(parts=('c', 'f'), exact=True)
    """
    kept: list[T] = []
    left = list(parts)
    while left:
        if not go_on():
            return Culprit((*left, *kept), exact=False)
        if fails(tuple(kept)):
            break
        low, high = 0, len(left)  # left[:high] with what is kept fails, left[:low] does not
        while high - low > 1:
            if not go_on():
                return Culprit((*left[:high], *kept), exact=False)
            middle = (low + high) // 2
            if fails((*left[:middle], *kept)):
                high = middle
            else:
                low = middle
        kept.insert(0, left[low])
        left = left[:low]
    return Culprit(tuple(kept), exact=True)
