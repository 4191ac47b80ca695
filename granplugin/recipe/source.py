"""Recipe text -> plain values, with the line and column of every key and value.

The text is YAML 1.2's core schema: only true and false are booleans (so `on` is a word), `1e-3` is
a number, and a key may be written once.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from granplugin.errors import RecipeError

MAX_BYTES = 1_000_000
MAX_VALUES = 200_000
MAX_DEPTH = 50
MAX_DIGITS = 18

Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a recipe; lines and columns count from 1. Where there is no text, line and column
    are 0, and `key` is the place in Python values, as `rules[0].match`."""

    file: str
    line: int
    column: int
    key: str = ""

    def __str__(self) -> str:
        place = f"{self.line}:{self.column}" if self.line else self.key
        return f"{self.file}:{place}" if place else self.file


@dataclass(frozen=True)
class Document:
    """Plain values, where each was written - `marks[("rules", 0, "match")]` - and the folder its
    paths start from."""

    value: Any
    marks: Mapping[Location, Mark]
    folder: Path

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

    Raises RecipeError: no such file, more than MAX_BYTES, not UTF-8, not YAML, a key twice, more
    than MAX_DEPTH levels, or aliases that expand to more than MAX_VALUES values.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{path}: larger than 1 MB, which no recipe needs")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file") from None
    except UnicodeDecodeError as err:
        raise RecipeError(f"{path}: not UTF-8 text") from err
    except OSError as err:
        raise RecipeError(f"{path}: cannot be read: {err.strerror}") from err
    return parse_document(text, str(path), path.resolve().parent)


def parse_document(text: str, file: str, folder: Path) -> Document:
    """Parse a recipe's text; `file` names it in messages."""
    value, marks = _parse(text, file)
    value = {} if value is None else value
    if not isinstance(value, dict):
        raise RecipeError(f"{file}:1:1: a recipe is a mapping of keys such as model: and rules:")
    return Document(value, {**marks, (): Mark(file, 1, 1)}, folder)


def parse_value(text: str, file: str) -> Any:
    """The value of `--set key=value`."""
    return _parse(text, file)[0]


def _parse(text: str, file: str) -> tuple[Any, dict[Location, Mark]]:
    reader = _Reader(file)
    try:
        node = _Loader(text, file).get_single_node()
        return None if node is None else reader.read(node, ()), reader.marks
    except yaml.YAMLError as err:
        raise RecipeError(_explain(err, file, text)) from err
    except (ValueError, OverflowError) as err:  # PyYAML, of an escape such as "\UFFFFFFFF"
        raise RecipeError(f"{file}:1:1: not YAML: {err}") from err


def merge(base: Document, own: Document, kinds: Collection[str]) -> Document:
    """`own` extends `base`: its keys win, mapping by mapping; base's rules come first. What _WHOLE
    names is taken whole, so that no parameter of one granularity or data source meets another, and
    so is a model of another kind; `kinds` are the keys of `model` of which there is one."""
    value, marks = _merge(base, own, (), frozenset(kinds))
    return Document(value, marks, own.folder)


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
    return {
        to + location[len(at) :]: mark
        for location, mark in document.marks.items()
        if location[: len(at)] == at
    }


def rule_marks(document: Document, places: Mapping[str | int, int]) -> dict[Location, Mark]:
    """The marks of the rules in `places`, moved from the old position to the new."""
    return {
        ("rules", places[at[1]], *at[2:]): mark
        for at, mark in document.marks.items()
        if at[:1] == ("rules",) and len(at) > 1 and at[1] in places
    }


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema, and a limit to nesting."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def __init__(self, text: str, file: str) -> None:
        super().__init__(text)
        self.file, self.depth = file, 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _too_deep(_mark(self.file, self.peek_event().start_mark))
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
    )


class _Reader:
    def __init__(self, file: str) -> None:
        self.file = file
        self.marks: dict[Location, Mark] = {}
        self.constructor = yaml.constructor.SafeConstructor()

    def mark(self, node: yaml.Node) -> Mark:
        return _mark(self.file, node.start_mark)

    def read(self, node: yaml.Node, at: Location) -> Any:
        self.marks.setdefault(at, self.mark(node))
        if len(self.marks) > MAX_VALUES:
            raise RecipeError(
                f"{self.mark(node)}: the aliases around here expand to over {MAX_VALUES:,} values"
            )
        if len(at) > MAX_DEPTH:  # an alias of what it is in
            raise _too_deep(self.mark(node))
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*at, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, at)
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, at: Location) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            key = key_node.value if isinstance(key, (int, float)) else key
            if not isinstance(key, str):
                raise RecipeError(f"{self.mark(key_node)}: a key must be a word")
            if key in values:
                first = self.marks[(*at, key)]
                raise RecipeError(
                    f"{self.mark(key_node)}: key {key!r} is written twice; line {first.line} has it"
                )
            self.marks[(*at, key)] = self.mark(key_node)
            values[key] = self.read(value_node, (*at, key))
        return values

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        tag = node.tag.rpartition(":")[2]
        if tag == "str":
            if re.search(r"[\0\ud800-\udfff]", node.value):
                raise RecipeError(f"{self.mark(node)}: a character that no file can hold")
            return node.value
        if tag == "null":
            return None
        if tag == "bool":
            return node.value.lower() == "true"
        if tag == "int":
            if len(node.value) > MAX_DIGITS:
                raise RecipeError(f"{self.mark(node)}: a whole number of over {MAX_DIGITS} digits")
            return int(node.value, 16 if "x" in node.value else 10)
        if tag == "float":
            return self.constructor.construct_yaml_float(node)
        raise RecipeError(f"{self.mark(node)}: YAML tag {node.tag!r} is not allowed in a recipe")


def _mark(file: str, at: Any) -> Mark:
    return Mark(file, at.line + 1, at.column + 1)


def _too_deep(mark: Mark) -> RecipeError:
    return RecipeError(f"{mark}: nested over {MAX_DEPTH} levels deep")


def _explain(err: yaml.YAMLError, file: str, text: str) -> str:
    if isinstance(err, yaml.reader.ReaderError):
        before = text[: err.position].split("\n")
        where = Mark(file, len(before), len(before[-1]) + 1)
        return f"{where}: not YAML: character #x{err.character:04x} is not allowed"
    at = err.problem_mark or err.context_mark
    where = _mark(file, at)
    line = "".join(text.splitlines()[at.line : at.line + 1])
    if re.search(r"(^|[\s:\[,-])\*", line) and isinstance(
        err, (yaml.scanner.ScannerError, yaml.composer.ComposerError)
    ):
        return f"{where}: a pattern that starts with * must be quoted, as in match: '*.conv'"
    if "\t" in line:
        return f"{where}: not YAML: a tab cannot indent; use spaces"
    return f"{where}: not YAML: {err.problem or err.context}"
