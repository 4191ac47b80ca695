"""A recipe's values with the place of each; one recipe that extends another."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from granplugin.errors import RecipeError
from granplugin.reading import read_text
from granplugin.recipe.yaml_text import MAX_VALUES, Location, Mark, parse

MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class Document:
    """Plain values, where each was written - `marks[("rules", 0, "match")]` - the folder its
    paths start from, what is to be said of it, and the files that were read for it."""

    value: Any
    marks: Mapping[Location, Mark]
    folder: Path
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    def mark(self, location: Sequence[str | int]) -> Mark:
        """The mark of a location; parts that are not in the text are skipped, so a validator's
        location (which also names union members) finds its line."""
        found: Location = ()
        for part in location:
            if (*found, part) in self.marks:
                found = (*found, part)
        return self.marks[found]

    def error(self, location: Sequence[str | int], message: str) -> RecipeError:
        return RecipeError(f"{self.mark(location)}: {message}")


def read_document(path: Path) -> Document:
    """Read one recipe file.

    Raises RecipeError: no such file or no regular one, more than MAX_BYTES, not UTF-8, and what
    yaml_text.parse raises.
    """
    text = read_text(path, RecipeError, MAX_BYTES)
    document = parse_document(text, str(path), path.resolve().parent)
    return replace(document, files=(path.resolve(),))


def parse_document(text: str, file: str, folder: Path) -> Document:
    """Parse a recipe's text; `file` names it in messages."""
    value, marks = parse(text, file)
    value = {} if value is None else value
    if not isinstance(value, dict):
        raise RecipeError(f"{file}:1:1: a recipe is a mapping of keys such as model: and rules:")
    return Document(value, {**marks, (): Mark(file, 1, 1)}, folder)


def parse_value(text: str, file: str) -> Any:
    """The value of `--set key=value`."""
    return parse(text, file)[0]


def merge(base: Document, own: Document, kinds: Collection[str]) -> Document:
    """`own` extends `base`: its keys win, mapping by mapping; base's rules come first. What _WHOLE
    names is taken whole, so that no parameter of one granularity or data source meets another, and
    so is a model of another kind; `kinds` are the keys of `model` of which there is one."""
    value, marks = _merge(base, own, (), frozenset(kinds))
    if len(marks) > MAX_VALUES:
        raise own.error(("extends",), f"with what it extends it has over {MAX_VALUES:,} values")
    files = tuple(dict.fromkeys((*own.files, *base.files)))
    return Document(value, marks, own.folder, own.notes, files)


_WHOLE = (
    ("defaults",),
    *(("data", role) for role in ("calibration", "evaluation", "analysis")),
)


def _merge(
    base: Document, own: Document, at: Location, kinds: frozenset[str]
) -> tuple[Any, dict[Location, Mark]]:
    left, right = get(base.value, at), get(own.value, at)
    marks = {at: own.mark(at)}
    if at == ("rules",) and isinstance(left, list) and isinstance(right, list):
        marks |= subtree(base, at, at)
        marks |= rule_marks(own, {index: len(left) + index for index in range(len(right))})
        return [*left, *right], marks
    whole = at in _WHOLE or at[:-1] == ("variants",) or _another_model(left, right, at, kinds)
    if whole or not (isinstance(left, dict) and isinstance(right, dict)):
        return right, subtree(own, at, at)
    merged: dict[str, Any] = {}
    for key in [*left, *(key for key in right if key not in left)]:
        here = (*at, key)
        if key in left and key in right:
            merged[key], inside = _merge(base, own, here, kinds)
        else:
            document = own if key in right else base
            merged[key], inside = get(document.value, here), subtree(document, here, here)
        marks |= inside
    return merged, marks


def _another_model(left: Any, right: Any, at: Location, kinds: frozenset[str]) -> bool:
    """Whether `right` is a model of another kind, of which nothing of `left` is true."""
    if at != ("model",) or not (isinstance(left, dict) and isinstance(right, dict)):
        return False
    was, now = kinds & left.keys(), kinds & right.keys()
    return bool(was and now) and was.isdisjoint(now)


def get(value: Any, location: Location) -> Any:
    """The value at a location."""
    for part in location:
        value = value[part]
    return value


def subtree(document: Document, at: Location, to: Location) -> dict[Location, Mark]:
    """The marks below `at`, moved to `to`."""
    found: dict[Location, Mark] = {}
    queue: list[tuple[Location, Any]] = [((), get(document.value, at))]
    while queue:
        inside, value = queue.pop()
        if (*at, *inside) in document.marks:
            found[*to, *inside] = document.marks[*at, *inside]
        queue += [((*inside, key), below) for key, below in _items(value)]
    return found


def _items(value: Any) -> Iterable[tuple[str | int, Any]]:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def rule_marks(document: Document, places: Mapping[str | int, int]) -> dict[Location, Mark]:
    """The marks of the rules in `places`, moved from the old position to the new."""
    return {
        ("rules", places[at[1]], *at[2:]): mark
        for at, mark in document.marks.items()
        if at[:1] == ("rules",) and len(at) > 1 and at[1] in places
    }
