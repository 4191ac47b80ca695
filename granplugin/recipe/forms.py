"""The forms a recipe has: a file, its text, or Python values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from granplugin.errors import RecipeError
from granplugin.recipe.source import Document, parse_document, read_document
from granplugin.recipe.yaml_text import MAX_DEPTH, MAX_VALUES, Location, Mark

RecipeForm = str | Path | Mapping[str, Any]
"""A Path is a file; a mapping has the recipe's keys as Python values. A str is the recipe's text
where it has a line break or a `: ` in it or begins with `{`, and else a file's name."""

IN_MEMORY = Path("<recipe>")
"""Stands for the file of a recipe that is in none: its relative paths start at the current folder,
and errors name a place in it as `<recipe>:3:5` (text) or `<recipe>:rules[0].match` (values)."""


def read(form: RecipeForm) -> tuple[Document, Path]:
    """The values of a recipe with their places, and its file. Raises RecipeError where there is no
    such file, the text is not YAML, or a value is none that YAML has."""
    if isinstance(form, Mapping):
        return document_of(form), IN_MEMORY
    if isinstance(form, str) and is_text(form):
        return parse_document(form, str(IN_MEMORY), Path.cwd()), IN_MEMORY
    if not isinstance(form, (str, Path)):
        raise RecipeError(
            f"a recipe is a file, its text or a dict of its keys, not of type {type(form).__name__}"
        )
    path = Path(form)
    return read_document(path), path


def is_text(form: str) -> bool:
    """Whether this is a recipe's text, and not a file's name.

    >>> [is_text(form) for form in ("r.yaml", "version: 1", "{rules: []}", "rules:\\n- a")]
    [False, True, True, True]
    """
    return "\n" in form or ": " in form or form.startswith("{")


def document_of(values: Mapping[str, Any]) -> Document:
    """A recipe written as Python values: str, numbers, bool, None, paths, mappings and sequences.

    Raises RecipeError for others, for keys that are no str or int, and beyond MAX_DEPTH levels or
    MAX_VALUES values.
    """
    marks: dict[Location, Mark] = {}
    return Document(_plain(values, (), marks), marks, Path.cwd())


def _plain(value: Any, at: Location, marks: dict[Location, Mark]) -> Any:
    mark = marks[at] = Mark(str(IN_MEMORY), 0, 0, "".join(_steps(at)).removeprefix("."))
    if len(marks) > MAX_VALUES:
        raise RecipeError(f"{mark}: over {MAX_VALUES:,} values")
    if len(at) > MAX_DEPTH:
        raise RecipeError(f"{mark}: nested over {MAX_DEPTH} levels deep")
    if isinstance(value, Mapping):
        for key in value:
            # A number is an axis; in YAML it is a word as it stands.
            if not isinstance(key, (str, int)) or isinstance(key, bool):
                raise RecipeError(f"{mark}: a key must be a word, not {key!r}")
        words = {str(key): inside for key, inside in value.items()}
        return {key: _plain(inside, (*at, key), marks) for key, inside in words.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_plain(inside, (*at, index), marks) for index, inside in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise RecipeError(
        f"{mark}: a recipe has text, numbers, true, false, lists and mappings, and no value of type "
        f"{type(value).__name__}"
    )


def _steps(at: Location) -> Iterator[str]:
    for part in at:
        yield f"[{part}]" if isinstance(part, int) else f".{part}"
