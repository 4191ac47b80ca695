"""Regular expressions over names in linear time, whatever the expression.

Python's own matcher tries the ways to share a name out among an expression's repeats one by one:
exponentially many where they are nested. It is taken for expressions of few repeats, none within
another; others run as an automaton on all ways at once (Thompson, CACM 11, 1968), whose sets of
states are kept, and what such a one cannot have - look-arounds, back references, word boundaries -
is refused there.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

# The one parser of what `re` takes; of no other module, and in 3.11 to 3.13 the same.
from re import _constants as op  # type: ignore[attr-defined]  # isort: skip
from re import _parser  # type: ignore[attr-defined]  # isort: skip

_FEW = 2
"""Repeats that a name may be shared out among: at most its length squared ways."""
_FEW_WAYS = 64
"""Of alternatives, all combined."""
_MOST_STATES = 10_000
"""Of an automaton: what a{9999} is."""
_MOST_SETS = 2_000
"""Sets of states that are kept; beyond, they are forgotten and made again."""

_REPEATS = (op.MAX_REPEAT, op.MIN_REPEAT)


def matcher_of(pattern: str) -> Callable[[str], bool]:
    """Whether a whole name matches. ValueError, in the words of a message, for what is no regular
    expression, or cannot be matched in linear time.

    >>> matcher_of(r"(a+)+b?")("a" * 50 + "c"), matcher_of(r"head[0-9]+")("head12")
    (False, True)
    """
    try:
        compiled = re.compile(pattern)
        tree = _parser.parse(pattern)
    except (re.error, OverflowError, RecursionError) as err:
        raise ValueError(f"not a regular expression: {pattern[:60]!r} ({err})") from err
    if _is_quick(tree):
        return lambda name: compiled.fullmatch(name) is not None
    return _Automaton(tree, pattern).matches


def _is_quick(tree: Any) -> bool:
    """Whether few repeats and alternatives share a name out, and none stands in a repeat."""
    choices = list(_choices(tree, repeated=False))
    ways = math.prod(ways for ways, _ in choices if ways)
    repeats = sum(not ways for ways, _ in choices)
    return repeats <= _FEW and ways <= _FEW_WAYS and not any(repeated for _, repeated in choices)


def _choices(tree: Any, repeated: bool) -> Iterator[tuple[int, bool]]:
    """Of each part that may match in several ways: how many (0: as many as the name is long), and
    whether it stands in a repeat."""
    for code, given in tree:
        if code in _REPEATS and given[0] != given[1]:
            yield 0, repeated
        elif code is op.BRANCH:
            yield len(given[1]), repeated
        for inner, repeats in _inside(code, given):
            yield from _choices(inner, repeated or repeats)


def _inside(code: Any, given: Any) -> Iterator[tuple[Any, bool]]:
    """The expressions in a part, and whether it repeats them."""
    if code in _REPEATS or code is op.POSSESSIVE_REPEAT:
        yield given[2], given[1] != 1
    elif code is op.SUBPATTERN:
        yield given[3], False
    elif code is op.BRANCH:
        yield from ((branch, False) for branch in given[1])
    elif code in (op.ASSERT, op.ASSERT_NOT):
        yield given[1], False
    elif code is op.ATOMIC_GROUP:
        yield given, False
    elif code is op.GROUPREF_EXISTS:
        yield from ((branch, False) for branch in given[1:] if branch is not None)


@dataclass(slots=True)
class _State:
    """`takes` says whether a character leads on to `to`; without it, `to` are reached by none, but
    for what stands `at` the name's start or end."""

    takes: Callable[[str], bool] | None = None
    at: str = ""
    to: list[int] = field(default_factory=list)


class _Automaton:
    """States by number; 0 is the first, and the last that is made matches."""

    def __init__(self, tree: Any, pattern: str) -> None:
        self.pattern = pattern
        self.states = [_State()]
        self.end = self._add(tree, 0, tree.state.flags)
        self.steps: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        self.start = self._reached({0}, "start")
        self.start_of_nothing = self._reached({0}, "start", "end")

    def matches(self, name: str) -> bool:
        if not name:
            return self.end in self.start_of_nothing
        states = self.start
        for character in name:
            states = self._step(states, character)
            if not states:
                return False
        return self.end in self._reached(states, "end")

    def _step(self, states: frozenset[int], character: str) -> frozenset[int]:
        key = states, character
        if key not in self.steps:
            if len(self.steps) > _MOST_SETS:
                self.steps.clear()
            taken = (self.states[at] for at in states)
            moved = {to for each in taken if each.takes and each.takes(character) for to in each.to}
            self.steps[key] = self._reached(moved)
        return self.steps[key]

    def _reached(self, states: set[int] | frozenset[int], *places: str) -> frozenset[int]:
        """With those that no character stands before."""
        found, left = set(states), list(states)
        while left:
            state = self.states[left.pop()]
            if state.takes is None and (not state.at or state.at in places):
                left += [to for to in state.to if to not in found]
                found.update(state.to)
        return frozenset(found)

    def _new(self, **state: Any) -> int:
        if len(self.states) >= _MOST_STATES:
            raise ValueError(f"too long a regular expression: {self.pattern[:60]!r}")
        self.states.append(_State(**state))
        return len(self.states) - 1

    def _then(self, before: int, **state: Any) -> int:
        """A state behind another, and the one behind that."""
        at, behind = self._new(**state), self._new()
        self.states[before].to.append(at)
        self.states[at].to.append(behind)
        return behind

    def _add(self, tree: Any, before: int, flags: int) -> int:
        """The states of an expression that begins in `before`; the one it ends in."""
        for code, given in tree:
            before = self._part(code, given, before, flags)
        return before

    def _part(self, code: Any, given: Any, before: int, flags: int) -> int:
        if code in _REPEATS:
            least, most, inner = given
            return self._repeat(least, most, inner, before, flags)
        if code is op.SUBPATTERN:
            _, more, less, inner = given
            return self._add(inner, before, (flags | more) & ~less)
        if code is op.BRANCH:
            behind = self._new()
            for branch in given[1]:
                first = self._new()
                self.states[before].to.append(first)
                self.states[self._add(branch, first, flags)].to.append(behind)
            return behind
        if code is op.AT and given in (op.AT_BEGINNING, op.AT_BEGINNING_STRING):
            return self._then(before, at="start")
        if code is op.AT and given in (op.AT_END, op.AT_END_STRING):
            return self._then(before, at="end")
        return self._then(before, takes=self._takes(code, given, flags))

    def _repeat(self, least: int, most: int, inner: Any, before: int, flags: int) -> int:
        for _ in range(least):
            before = self._add(inner, before, flags)
        if most is op.MAXREPEAT:
            loop = self._new()
            self.states[before].to.append(loop)
            self.states[self._add(inner, loop, flags)].to.append(loop)
            behind = self._new()
            self.states[loop].to.append(behind)
            return behind
        ends = [before]
        for _ in range(most - least):
            before = self._add(inner, before, flags)
            ends.append(before)
        behind = self._new()
        for end in ends:
            self.states[end].to.append(behind)
        return behind

    def _takes(self, code: Any, given: Any, flags: int) -> Callable[[str], bool]:
        """Whether one character matches a part, as `re` decides it: the part alone is compiled."""
        source = _of_one(code, given)
        if source is None:
            raise ValueError(
                f"a regular expression with nested or many repeats takes no {_named(code)}, for it "
                f"could take for ever: {self.pattern[:60]!r}; write it as several names"
            )
        alone = re.compile(source, flags & (re.IGNORECASE | re.ASCII | re.DOTALL))
        return functools.lru_cache(maxsize=512)(lambda character: bool(alone.fullmatch(character)))


def _of_one(code: Any, given: Any) -> str | None:
    """The text of a part that takes one character; None for others."""
    if code is op.LITERAL:
        return re.escape(chr(given))
    if code is op.NOT_LITERAL:
        return f"[^{_in_set(op.LITERAL, given)}]"
    if code is op.ANY:
        return "."
    if code is op.IN:
        negated = given[0][0] is op.NEGATE
        inner = "".join(_in_set(*each) for each in given[negated:])
        return f"[{'^' if negated else ''}{inner}]"
    return None


_CATEGORIES = {
    op.CATEGORY_DIGIT: r"\d", op.CATEGORY_NOT_DIGIT: r"\D",
    op.CATEGORY_SPACE: r"\s", op.CATEGORY_NOT_SPACE: r"\S",
    op.CATEGORY_WORD: r"\w", op.CATEGORY_NOT_WORD: r"\W",
}  # fmt: skip


def _in_set(code: Any, given: Any) -> str:
    if code is op.CATEGORY:
        return _CATEGORIES[given]
    return "-".join(f"\\U{each:08x}" for each in (given if code is op.RANGE else (given,)))


def _named(code: Any) -> str:
    return {
        op.ASSERT: "look-around", op.ASSERT_NOT: "look-around", op.AT: "word boundary",
        op.GROUPREF: "back reference", op.GROUPREF_EXISTS: "back reference",
    }.get(code, str(code).lower().replace("_", " "))  # fmt: skip
