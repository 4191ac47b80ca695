"""YAML text -> plain values, with the line and column of every key and value.

The text is YAML 1.2's core schema: only true and false are booleans (so `on` is a word), `1e-3` is
a number, and a key may be written once. It is read event by event, so that depth and size are
limited while it is read: composers recurse, and libyaml's ends the process on deep nesting.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from granplugin.errors import RecipeError

MAX_VALUES = 100_000
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


def parse(text: str, file: str) -> tuple[Any, dict[Location, Mark]]:
    """The value of a text, None where it has none, and where each part of it is written; `file`
    names it in messages.

    Raises RecipeError: not YAML, a key twice, another tag than YAML's own words, a scalar that is
    not what its tag says, more than MAX_DEPTH levels, or over MAX_VALUES values, aliases expanded.
    """
    documents = list(_documents(text, file, several=False))
    return documents[0] if documents else (None, {})


def parse_all(text: str, file: str) -> list[tuple[Any, dict[Location, Mark]]]:
    """The same of each document of a text that may have several."""
    return list(_documents(text, file, several=True))


def _documents(text: str, file: str, several: bool) -> Iterator[tuple[Any, dict[Location, Mark]]]:
    if found := yaml.reader.Reader.NON_PRINTABLE.search(text):
        before = text[: found.start()].split("\n")
        where = Mark(file, len(before), len(before[-1]) + 1)
        raise RecipeError(f"{where}: not YAML: character #x{ord(found[0]):04x} is not allowed")
    try:
        nodes = list(_Nodes(text, file).documents(several))
    except yaml.MarkedYAMLError as err:
        raise RecipeError(_explained(err, file, text)) from err
    except (yaml.YAMLError, ValueError, OverflowError) as err:  # escapes, of the parser in Python
        raise RecipeError(f"{file}:1:1: not YAML: {err}") from err
    for node in nodes:
        reader = _Reader()
        yield reader.read(node, ()), reader.marks


@dataclass(slots=True)
class _Node:
    """Of a kind, `str`, `seq` or `map`, a text, the nodes in it, or pairs of nodes; `tag` is as it
    is written."""

    mark: Mark
    kind: str
    tag: str | None
    value: Any
    plain: bool = False


class _Nodes:
    """The tree of a text's nodes, from its events; an alias is the node that it names."""

    def __init__(self, text: str, file: str) -> None:
        # libyaml's parser is 20 times as fast; yaml has it wherever it has wheels.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self.events: Iterator[Any] = yaml.parse(text, Loader=loader)
        self.file = file
        self.anchors: dict[str, _Node] = {}
        self.count = 0

    def documents(self, several: bool) -> Iterator[_Node]:
        next(self.events)
        read = 0
        while not isinstance(start := next(self.events), yaml.StreamEndEvent):
            if read and not several:
                raise RecipeError(f"{self.mark(start)}: not YAML: a second document starts here")
            yield self.node(next(self.events), 0)
            next(self.events)
            read += 1

    def mark(self, event: Any) -> Mark:
        return _mark(self.file, event.start_mark)

    def node(self, event: Any, depth: int) -> _Node:
        mark = self.mark(event)
        self.count += 1
        if self.count > MAX_VALUES:
            raise RecipeError(f"{mark}: over {MAX_VALUES:,} values, which no recipe needs")
        if depth >= MAX_DEPTH:
            raise _too_deep(mark)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise RecipeError(f"{mark}: {_STAR}")
            return self.anchors[event.anchor]
        if isinstance(event, yaml.ScalarEvent):
            node = _Node(mark, "str", event.tag, event.value, event.implicit[0])
        else:
            kind = "seq" if isinstance(event, yaml.SequenceStartEvent) else "map"
            node = _Node(mark, kind, event.tag, [])
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        if node.kind != "str":
            while not isinstance(item := next(self.events), yaml.CollectionEndEvent):
                inside = self.node(item, depth + 1)
                if node.kind == "map":
                    node.value.append((inside, self.node(next(self.events), depth + 1)))
                else:
                    node.value.append(inside)
        return node


_SCALARS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}
"""Tag -> how a scalar of it is written, in the order they are tried; any other is text."""
_WRITTEN = {tag: re.compile(pattern) for tag, pattern in _SCALARS.items()}
_TAG = "tag:yaml.org,2002:"


class _Reader:
    def __init__(self) -> None:
        self.marks: dict[Location, Mark] = {}

    def read(self, node: _Node, at: Location) -> Any:
        self.marks.setdefault(at, node.mark)
        if len(self.marks) > MAX_VALUES:
            raise RecipeError(
                f"{node.mark}: the aliases around here expand to over {MAX_VALUES:,} values"
            )
        if len(at) > MAX_DEPTH:  # an alias of what it is in
            raise _too_deep(node.mark)
        if node.kind == "str":
            return _scalar(node)
        if node.tag not in (None, "!", f"{_TAG}{node.kind}"):
            raise _bad_tag(node)
        if node.kind == "map":
            return self._mapping(node, at)
        return [self.read(item, (*at, index)) for index, item in enumerate(node.value)]

    def _mapping(self, node: _Node, at: Location) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = _scalar(key_node) if key_node.kind == "str" else None
            key = key_node.value if isinstance(key, (int, float)) else key
            if not isinstance(key, str):
                raise RecipeError(f"{key_node.mark}: a key must be a word")
            if key in values:
                first = self.marks[(*at, key)]
                raise RecipeError(
                    f"{key_node.mark}: key {key!r} is written twice; line {first.line} has it"
                )
            self.marks[(*at, key)] = key_node.mark
            values[key] = self.read(value_node, (*at, key))
        return values


def _scalar(node: _Node) -> Any:
    text: str = node.value
    tag = "str" if node.tag == "!" else (node.tag or "").removeprefix(_TAG)
    if not tag:
        kinds = (kind for kind, form in _WRITTEN.items() if form.fullmatch(text))
        tag = next(kinds, "str") if node.plain else "str"
    elif tag not in ("str", *_WRITTEN):
        raise _bad_tag(node)
    if tag == "str":
        if re.search(r"[\0\ud800-\udfff]", text):
            raise RecipeError(f"{node.mark}: a character that no file can hold")
        return text
    if tag == "int" and len(text) > MAX_DIGITS:
        raise RecipeError(f"{node.mark}: a whole number of over {MAX_DIGITS} digits")
    if not _WRITTEN[tag].fullmatch(text):
        raise RecipeError(
            f"{node.mark}: {text!r:.60} is no {tag}, which the tag !!{tag} says it is"
        )
    if tag == "null":
        return None
    if tag == "bool":
        return text.lower() == "true"
    if tag == "int":
        return int(text, 16 if "x" in text else 10)
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _mark(file: str, at: Any) -> Mark:
    return Mark(file, at.line + 1, at.column + 1)


def _too_deep(mark: Mark) -> RecipeError:
    return RecipeError(f"{mark}: nested over {MAX_DEPTH} levels deep")


def _bad_tag(node: _Node) -> RecipeError:
    return RecipeError(f"{node.mark}: YAML tag {node.tag!r} is not allowed in a recipe")


_STAR = "a pattern that starts with * must be quoted, as in match: '*.conv'"
_SAID = {
    r"mapping values are not allowed": "a ': ' makes a key of what is before it, which cannot be a "
    "key here; quote the text, or indent the line as the keys it belongs to",
    r"expected key|block end": "the line is indented otherwise than the keys it belongs to, which "
    "begin at {context}, or there is text behind a closing quote",
    r"expected '-' indicator": "an item with '-' is expected, indented as the others of the list "
    "that begins at {context}",
    r"sequence entries are not allowed": "a list's '-' cannot stand here; begin a new line with it",
    r"expected ',' or '[\]}]'": "',' or a closing bracket is expected; the bracket that is open "
    "is at {context}",
    r"unexpected end of stream": "the quote that begins at {context} is not closed",
    r"could not find expected ':'": "a ':' is expected behind the key at {context}",
    r"cannot start any token": "a value cannot begin with {character!r}; quote it",
    r"node content": "a value is expected",
    r"escape char": "an escape that YAML does not know; write text with \\ in single quotes",
}
"""What a parser says, as a pattern -> our words for it."""


def _explained(err: yaml.MarkedYAMLError, file: str, text: str) -> str:
    lines = text.splitlines() or [""]

    def place(at: Any) -> tuple[int, int]:
        """Behind the last character, where the parser says that the text ends on a line more."""
        return (at.line, at.column) if at.line < len(lines) else (len(lines) - 1, len(lines[-1]))

    at = err.problem_mark or err.context_mark
    row, column = place(at)
    where, line = Mark(file, row + 1, column + 1), lines[row]
    problem = f"{err.problem or err.context}"
    if "alias" in f"{err.context}" or "alias" in problem:
        return f"{where}: {_STAR}"
    if "cannot start any token" in problem and line[column : column + 1] == "\t":
        return f"{where}: not YAML: a tab cannot indent; use spaces"
    context = place(err.context_mark or at)
    said = next((words for told, words in _SAID.items() if re.search(told, problem)), problem)
    told = said.format(
        context=f"{context[0] + 1}:{context[1] + 1}", character=line[column : column + 1]
    )
    return f"{where}: not YAML: {told}"
