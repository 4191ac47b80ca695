"""The nearest name to a misspelt one."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable

_LONGEST = 200


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'axis'?`, or the known names when none is near.

    >>> did_you_mean("axes", ["axis", "size"])
    "; did you mean 'axis'?"
    """
    return _hint(name, tuple(known))


@functools.lru_cache(maxsize=1024)
def _hint(name: str, names: tuple[str, ...]) -> str:
    short = len(name) <= _LONGEST  # what is longer is no slip, and comparing it would take long
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6) if short else []
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""
