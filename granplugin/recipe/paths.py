"""Paths in a recipe: they start at the file they are written in, and must be there."""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from granplugin.reading import why_unreadable
from granplugin.recipe.configs import ENDINGS
from granplugin.recipe.data import SOURCES
from granplugin.recipe.model import MODELS
from granplugin.recipe.source import Document
from granplugin.recipe.strict import Strict, is_pythons_own, paths_of
from granplugin.recipe.yaml_text import Location


def anchored(document: Document) -> Document:
    """Paths that start at the file they are written in, made absolute."""
    value = document.value
    roles = ("calibration", "evaluation", "analysis")
    sections: dict[Location, Mapping[str, type[Strict]]] = {
        ("model",): MODELS,
        **{("data", role): SOURCES for role in roles},
    }
    places: list[Location] = [
        ("extends",),
        ("base",),
        ("evaluate",),
        ("statistics", "import"),
        ("statistics", "export"),
        ("build", "timing_cache"),
        *(
            (*at, key)
            for at, kinds in sections.items()
            for kind, section in kinds.items()
            if kind in _peek(value, at, {})
            for key in paths_of(section)
        ),
    ]
    folder = document.folder
    for place in places:
        parent = _peek(value, place[:-1], None)
        given = parent.get(place[-1]) if isinstance(parent, dict) else None
        if isinstance(given, list):
            parent[place[-1]] = [str(folder / x) if isinstance(x, str) else x for x in given]
        elif isinstance(given, str) and _is_file(place[-1], given):
            parent[place[-1]] = str(folder / given)
        elif isinstance(given, str) and place[-1] in _CALLABLES:
            parent[place[-1]] = _beside(folder, given)
    return document


def _is_file(key: str | int, given: str) -> bool:
    """Whether a value that may be a name is a file's."""
    if key in _CALLABLES:
        return given.rpartition(":")[0].endswith(".py")
    return key != "base" or (":" not in given and given.endswith(ENDINGS))


_CALLABLES = ("callable", "evaluate")


def _beside(folder: Path, given: str) -> str:
    """`mynet:MyNet` is `mynet.py:MyNet` where that lies beside the recipe and no other module of the
    name is installed."""
    module, _, name = given.rpartition(":")
    file = folder / f"{module}.py"
    if not module.isidentifier() or is_pythons_own(module) or not file.is_file():
        return given
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return given
    other = spec is not None and spec.origin != str(file.resolve())
    return given if other else f"{file}:{name}"


def _peek(value: Any, at: Location, default: Any) -> Any:
    for part in at:
        if not isinstance(value, dict) or part not in value:
            return default
        value = value[part]
    return value if isinstance(value, dict) else default


def why_missing(path: Path, folder: bool) -> str | None:
    """Why this is not a file (or a folder) one can read, or None."""
    why = why_unreadable(path, folder)
    if why is None:
        return None
    if not why.startswith("no such"):
        return f"{shown(path)} {why}"
    names = _names_in(path.parent)
    near = difflib.get_close_matches(path.name, names, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{why.partition(':')[0]}: {shown(path)}{hint}"


def _names_in(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in islice(os.scandir(folder), _COMPARED)]
    except (OSError, ValueError):
        return []


_COMPARED = 1000
"""Names of a folder that a missing one is compared with."""


def shown(path: Path) -> str:
    """Relative to the current folder where it is in there."""
    absolute = Path(os.path.abspath(path))
    cwd = Path.cwd()
    return str(absolute.relative_to(cwd) if absolute.is_relative_to(cwd) else absolute)
