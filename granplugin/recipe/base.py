"""`base`: one of modelopt's configs below a recipe's own rules, each entry at its own line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from granplugin.errors import RecipeError
from granplugin.recipe.configs import Config, read_config
from granplugin.recipe.paths import shown
from granplugin.recipe.quant_cfg import Converted, rules_of
from granplugin.recipe.source import Document
from granplugin.recipe.yaml_text import Location, Mark

_KEY = ("base",)


def with_base(document: Document) -> Document:
    """The document with the rules of its `base` in front of its own, and with nothing by default.

    Raises RecipeError: no such config, defaults beside it, or an entry that no recipe can say, at
    the line of `base` with that of the entry.
    """
    said = document.value.get("base")
    if not isinstance(said, str):
        return document  # of what is no text, the schema will say so
    if "defaults" in document.value:
        raise document.error(
            ("defaults",),
            "base says what a layer gets before any rule, and so do defaults; leave one out (bn: "
            "fold is said in a rule)",
        )
    try:
        said = shown(Path(said)) if Path(said).is_absolute() else said
        config = read_config(said)
        converted = rules_of(config.value, config.name)
    except RecipeError as err:
        raise document.error(_KEY, str(err)) from err
    for loss in converted.lost:
        if loss.stops:
            place = _mark(config, loss.entry, document.mark(_KEY))
            raise document.error(
                _KEY,
                f"{config.name} ({place}): {loss}; no engine here is told so: take another "
                "config, or one of your own without it",
            )
    return _below(document, config, converted)


def _below(document: Document, config: Config, converted: Converted) -> Document:
    here = document.mark(_KEY)
    rules, marks = list[dict[str, Any]](), dict[Location, Mark]()
    count: dict[int | None, int] = {}
    for index, (rule, entry) in enumerate(zip(converted.rules, converted.entries, strict=True)):
        count[entry] = count.get(entry, 0) + 1
        more = chr(ord("a") + count[entry] - 1) if count[entry] > 1 else ""
        rules.append(
            {"id": f"{_word(config.name)}[{'' if entry is None else entry}{more}]", **rule}
        )
        marks[("rules", index)] = _mark(config, entry, here)
    notes = [f"{here}: {config.name}: {loss}" for loss in converted.lost]
    own = document.value.get("rules")
    own = own if isinstance(own, list) else []
    for at, mark in document.marks.items():
        if at[:1] == ("rules",) and len(at) > 1 and isinstance(at[1], int):
            marks[("rules", at[1] + len(rules), *at[2:])] = mark
        elif at[:1] != ("rules",):
            marks[at] = mark
    marks[("rules",)] = document.marks.get(("rules",), here)
    marks[("defaults",)] = here
    if not isinstance(document.value.get("rules", []), list):
        return document  # the schema refuses it
    value: Mapping[str, Any] = {**document.value, "defaults": {"bn": "keep"}}
    return replace(
        document,
        value={**value, "rules": [*rules, *own]},
        marks=marks,
        notes=(*document.notes, *notes),
    )


def _mark(config: Config, entry: int | None, here: Mark) -> Mark:
    return here if entry is None else config.marks[entry]


def _word(name: str) -> str:
    """A name as the ids of rules are written."""
    kept = re.sub(r"[^A-Za-z0-9_-]", "-", name)
    return kept if kept[:1].isalpha() else f"base-{kept}"
