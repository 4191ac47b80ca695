"""The suggested recipe: the analyzed one, and behind it a rule for each kind of override."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from granplugin.analysis.local import Tried
from granplugin.analysis.network import FLOATING, Pair
from granplugin.granularity import spelt
from granplugin.layers import Layer
from granplugin.plan import Row
from granplugin.recipe.rules import select
from granplugin.recipe.schema import FLOAT, Match

WIDTH = 96


@dataclass(frozen=True)
class Suggested:
    """One rule: the layers it is for, its keys as a recipe has them, and why."""

    layers: tuple[str, ...]
    rule: dict[str, Any]
    reason: str


def suggest(
    overrides: Mapping[str, Pair],
    start: Mapping[str, Pair],
    tried: Mapping[str, Tried],
    lowered: Mapping[str, bool],
    reasons: Mapping[str, str],
    layers: Sequence[Layer],
) -> tuple[Suggested, ...]:
    """One rule for all layers that are changed alike, in the order of the first of each.

    `lowered` says of a layer whether an engine has its setting only rewritten.
    """
    groups: dict[str, list[str]] = {}
    bodies: dict[str, dict[str, Any]] = {}
    for name, pair in overrides.items():
        if pair == FLOATING:
            name, _, role = name.rpartition(".")
            body = {role: FLOAT}
        else:
            body = _body(tried[name], start[name], pair)
        if lowered.get(name):
            body["on_unsupported"] = "lower"
        text = _flow(body)
        groups.setdefault(text, []).append(name)
        bodies[text] = body
    return tuple(
        Suggested(
            tuple(names),
            {"match": _match(names, layers), **bodies[text]},
            _reason(names, reasons, bodies[text]),
        )
        for text, names in groups.items()
    )


def recipe_text(
    recipe: Path, target: Path, rules: Sequence[Suggested], said: str, settings: Sequence[str] = ()
) -> str:
    """The suggested recipe's text, to be written to `target`; it extends `recipe`, which was
    analyzed with these `--set` settings."""
    relative = os.path.relpath(recipe.resolve(), target.resolve().parent)
    lines = _comment(f"Suggested by granplugin analyze {recipe.name}. {said}", "")
    if settings:
        lines += _comment(f"Apply it as it was analyzed: --set {' --set '.join(settings)}", "")
    lines += ["version: 1", f"extends: {_flow(relative)}"]
    lines.append("rules:" if rules else "rules: []")
    for each in rules:
        lines += [*_comment(each.reason, "  "), f"  - {_flow(each.rule)}"]
    return "\n".join(lines) + "\n"


def _body(tried: Tried, start: Pair, pair: Pair) -> dict[str, Any]:
    """The keys of a rule that turns the recipe's settings of a layer into these."""
    body: dict[str, Any] = {}
    for role, rows, old, new in (
        ("weight", tried.asked.weights, start[0], pair[0]),
        ("input", tried.asked.inputs, start[1], pair[1]),
    ):
        if new is None or new == old:
            continue
        now, then = rows[new], rows[old]
        settings = _settings(then, now)
        if settings is not None:
            body[role] = settings
        if role == "weight" and now.bn != then.bn:
            body["bn"] = now.bn
    return body


def _settings(then: Row, now: Row) -> Any:
    settings: dict[str, Any] = {}
    if now.format != then.format:
        settings["format"] = now.format
    if now.block != then.block or now.dynamic != then.dynamic:
        settings["granularity"] = spelt(now.granularity)
    if now.calibrator != then.calibrator and not now.dynamic:
        kind = now.calibrator
        settings["calibrator"] = (
            kind.kind if kind.percentile is None else {kind.kind: kind.percentile}
        )
    if now.amax is not None and now.amax != then.amax:
        settings["amax"] = now.amax
    if list(settings) == ["granularity"]:
        given = settings["granularity"]
        return given if isinstance(given, (str, dict)) else settings
    return settings or None


def _match(names: Sequence[str], layers: Sequence[Layer]) -> Any:
    """The shortest match of exactly these layers: a glob, or their names."""
    if len(names) == 1:
        return names[0]
    wanted = {n for n, layer in enumerate(layers) if layer.name in set(names)}
    parts = [name.split(".") for name in names]
    if len({len(each) for each in parts}) == 1:
        choices = []
        for column in zip(*parts, strict=True):
            same = len(set(column)) == 1
            choices.append([column[0]] if same else ["*"])
        for glob in map(".".join, product(*choices)):
            if set(select(Match(name=[glob]), layers)) == wanted:
                return glob
    return list(names)


def _reason(names: Sequence[str], reasons: Mapping[str, str], body: Mapping[str, Any]) -> str:
    role = next(iter(body))
    site = f"{names[0]}.{role}"
    first = f"{names[0]}: {reasons[names[0]]}"
    if body[role] == FLOAT and site in reasons:
        first = f"{site}: {reasons[site]}"
    return first if len(names) == 1 else f"{first} (and {len(names) - 1} more like it)"


def _comment(text: str, indent: str) -> list[str]:
    width = WIDTH - len(indent) - 2
    return [f"{indent}# {line}" for line in textwrap.wrap(text, width, break_long_words=False)]


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")
