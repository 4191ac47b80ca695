"""Patterns over dotted names, matched without backtracking.

A glob is a nondeterministic automaton with one state for each of its parts, and the states that a
name can be in are the bits of one integer (Baeza-Yates and Gonnet, CACM 35, 1992): a character is a
few operations on it, whatever the stars.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable

from granplugin.recipe.regex import matcher_of

_PARTS = re.compile(r"\*\*\.|\*\*|\*|\?|[^*?]", re.DOTALL)


_LEVELS = ("**.", "**", ".")
"""The states of `**.`: before it, where all of it may be left out, and then in it."""


MAX_LENGTH = 2000
"""Of a pattern; and of a name that a regular expression may look at."""
_FEW_STARS = 2

_MEANING = {"**.": r"(?:.*\.)?", "**": r".*", "*": r"[^.]*", "?": r"[^.]"}


@functools.lru_cache(maxsize=4096)
def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a whole name matches a glob (`*` within one level, `**` across levels, `?` a
    character but the dot; `**.` is also nothing), or `re:` and a regular expression, for which it
    may raise ValueError.

    >>> [matcher("features.*.conv")(name) for name in ("features.3.conv", "features.3.0.conv")]
    [True, False]
    >>> [matcher("**.conv")(name) for name in ("conv", "a.b.conv", "deconv")]
    [True, True, False]
    """
    if pattern.startswith("re:"):
        return matcher_of(pattern[3:])
    parts = _parts(pattern)
    if sum("*" in part for part in parts) > _FEW_STARS:
        return automaton(pattern).matches
    # Of few stars a regular expression takes at most the square of a name, and is 40 times as fast.
    quick = re.compile("".join(_MEANING.get(part) or re.escape(part) for part in parts), re.DOTALL)
    return functools.partial(_quickly, quick, pattern)


def _found(pattern: re.Pattern[str], name: str) -> bool:
    return pattern.fullmatch(name) is not None


def _quickly(quick: re.Pattern[str], pattern: str, name: str) -> bool:
    return _found(quick, name) if len(name) <= MAX_LENGTH else automaton(pattern).matches(name)


def _parts(pattern: str) -> list[str]:
    """What a glob is made of; of stars beside each other that say the same, one."""
    parts: list[str] = []
    for part in _PARTS.findall(pattern):
        last = parts[-1] if parts else ""
        if ("**" in last and part == "**") or (last == "**" and part == "**."):
            parts[-1] = "**"
        elif not (last == part == "**." or (last == "**" and part == "*")):
            parts.append(part)
    return parts


def automaton(pattern: str) -> _Automaton:
    """Of a glob."""
    return _Automaton([e for p in _parts(pattern) for e in (_LEVELS if p == "**." else (p,))])


class _Automaton:
    """Bit i is the state before part i, the last that in which the pattern is used up."""

    def __init__(self, parts: list[str]) -> None:
        self.end = 1 << len(parts)
        self.moves: dict[str, int] = defaultdict(int)
        # States that a character leaves alone; that one but the dot does; that move by one but the
        # dot; that may be left out; that begin levels, which may be left out together.
        self.any = self.in_level = self.one = self.nothing = self.levels = 0
        for at, part in enumerate(parts):
            bit = 1 << at
            if part == "**.":
                self.levels |= bit
            elif part == "**":
                self.any |= bit
            elif part == "*":
                self.in_level |= bit
            elif part == "?":
                self.one |= bit
            else:
                self.moves[part] |= bit
        self.nothing = self.any | self.in_level

    def matches(self, name: str) -> bool:
        states = self._with_skipped(1)
        for character in name:
            moving, staying = self.moves.get(character, 0), self.any
            if character != ".":
                moving, staying = moving | self.one, staying | self.in_level
            states = self._with_skipped((states & moving) << 1 | states & staying)
            if not states:
                return False
        return bool(states & self.end)

    def _with_skipped(self, states: int) -> int:
        states |= (states & self.levels) << len(_LEVELS) | (states & self.levels) << 1
        return states | (states & self.nothing) << 1
