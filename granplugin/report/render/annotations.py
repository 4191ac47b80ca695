"""Cases as lines by which a CI server marks the recipe's line that asked for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from granplugin.report.view.cases import Case
from granplugin.visible import visible

_LEVELS = {"failed": "error", "error": "warning"}
"""Outcome -> how GitHub marks it; what is skipped or has passed is not."""


def github(cases: Sequence[Case]) -> Iterator[str]:
    """Workflow commands, of what has failed and of what cannot be told; files are named from the
    current folder, as a checkout's are.

    >>> list(github([Case("r.fast", "top1_drop", "failed", "100 % off")]))
    ['::error title=r.fast%3A top1_drop::100 %25 off']
    """
    for case in cases:
        if case.outcome in _LEVELS:
            at = case.place
            where = {"file": _relative(at.file)} if at else {}
            where |= {"line": str(at.line)} if at and at.line else {}
            where |= {"col": str(at.column)} if at and at.column else {}
            where["title"] = f"{case.of}: {case.name}"
            told = ",".join(f"{key}={_property(value)}" for key, value in where.items())
            yield f"::{_LEVELS[case.outcome]} {told}::{_data(case.told or case.name)}"


ANNOTATIONS: dict[str, Callable[[Sequence[Case]], Iterator[str]]] = {"github": github}
"""CI server -> its lines."""


def _relative(file: str) -> str:
    path = Path(file)
    inside = path.is_absolute() and path.is_relative_to(Path.cwd())
    return str(path.relative_to(Path.cwd())) if inside else os.path.normpath(file)


def _data(text: str) -> str:
    return visible(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
