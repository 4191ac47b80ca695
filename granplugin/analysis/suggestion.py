"""The suggested recipe: the analyzed one, and behind it a rule for each kind of override."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from granplugin.analysis.tried import FLOATING, Pair, RoundedNetwork, Tried
from granplugin.planning.rows import QuantizedRow
from granplugin.quant import calibrators, granularity
from granplugin.quant.layers import Layer
from granplugin.recipe.match import Match, select
from granplugin.recipe.settings import FLOAT

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
    network: RoundedNetwork,
    lowered: Mapping[str, bool],
    reasons: Mapping[str, str],
    layers: Sequence[Layer],
) -> tuple[Suggested, ...]:
    """One rule for all layers that are changed alike, in the order of the first of each.

    `reasons` are of the overrides; `lowered` says of a layer whether an engine has its setting only
    rewritten.
    """
    groups: dict[str, list[str]] = {}
    bodies: dict[str, dict[str, Any]] = {}
    factors = {layer.name: layer.multiplied for layer in layers}
    floating = _floating_operands(overrides, network)
    told: set[str] = set()
    for name, pair in overrides.items():
        if name in network.sites:
            rows, at = network.sites[name].rows, pair[1]
            layer, operand = rows[0].layer, rows[0].operand
            settings = FLOAT if at is None else _settings(rows[0], rows[at])
            body: dict[str, Any] = {operand: settings}
            multiplied = factors[layer]
            if at is None and operand in multiplied and len(multiplied) > 1:
                if floating[layer].issuperset(multiplied):
                    if layer in told:
                        continue
                    told.add(layer)
                    body = dict.fromkeys(multiplied, FLOAT)
                else:
                    body["half"] = "allow"
        else:
            body = _body(network.tried[name], start[name], pair)
        if lowered.get(name):
            body["on_unsupported"] = "lower"
        text = _flow(body)
        groups.setdefault(text, []).append(name)
        bodies[text] = body
    found = []
    for text, names in groups.items():
        sites = [network.sites[name].own.layer if name in network.sites else name for name in names]
        reason = f"{names[0]}: {reasons[names[0]]}"
        if len(names) > 1:
            reason += f" (and {len(names) - 1} more like it)"
        rule = {"match": _match(sites, layers), **bodies[text]}
        found.append(Suggested(tuple(sites), rule, reason))
    return tuple(found)


def _floating_operands(
    overrides: Mapping[str, Pair], network: RoundedNetwork
) -> dict[str, set[str]]:
    """Layer -> its operands that are sites of their own, and left float."""
    found: dict[str, set[str]] = {}
    for name, pair in overrides.items():
        if name in network.sites and pair == FLOATING:
            own = network.sites[name].own
            found.setdefault(own.layer, set()).add(own.operand)
    return found


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
    if pair == FLOATING:
        return {"format": FLOAT}
    body: dict[str, Any] = {}
    for role, rows, old, new in (
        ("weight", tried.asked.weights, start[0], pair[0]),
        ("input", tried.asked.inputs, start[1], pair[1]),
    ):
        if new == old:
            continue
        if new is None:
            body |= {role: FLOAT, "half": "allow"}
            continue
        assert old is not None, "what the recipe leaves float stays so"
        now, then = rows[new], rows[old]
        settings = _settings(then, now)
        if settings is not None:
            body[role] = settings
        if role == "weight" and now.bn != then.bn:
            body["bn"] = now.bn
    return body


def _settings(then: QuantizedRow, now: QuantizedRow) -> Any:
    settings: dict[str, Any] = {}
    if now.format != then.format:
        settings["format"] = now.format
    if now.block != then.block or now.dynamic != then.dynamic:
        settings["granularity"] = granularity.written(now.granularity)
    if now.calibrator != then.calibrator and not now.dynamic:
        settings["calibrator"] = calibrators.written(now.calibrator)
    if now.amax is not None and now.amax != then.amax:
        settings["amax"] = now.amax
    if list(settings) == ["granularity"]:
        given = settings["granularity"]
        return given if isinstance(given, (str, dict)) else settings
    return settings or None


def _match(names: Sequence[str], layers: Sequence[Layer]) -> Any:
    """The shortest match of exactly these layers: a glob, a trait, a type, or their names."""
    if len(names) == 1:
        return names[0]
    wanted = [n for n, layer in enumerate(layers) if layer.name in set(names)]
    parts = [name.split(".") for name in names]
    globs = []
    if len({len(each) for each in parts}) == 1:
        columns = zip(*parts, strict=True)
        globs.append(".".join(each[0] if len(set(each)) == 1 else "*" for each in columns))
    if len({each[-1] for each in parts}) == 1:
        globs.append(f"**.{parts[0][-1]}")
    # A glob of stars alone looks like all layers, even where it is not.
    for glob in (glob for glob in globs if set(glob) - set("*.")):
        if list(select(Match(name=[glob]), layers)) == wanted:
            return glob
    of = [layer for layer in layers if layer.name in set(names)]
    for key, values in (
        ("trait", set.intersection(*(set(layer.traits) for layer in of))),
        ("type", {layer.type for layer in of}),
    ):
        for value in sorted(values):
            if list(select(Match.model_validate({key: [value]}), layers)) == wanted:
                return {key: value}
    return list(names)


def _comment(text: str, indent: str) -> list[str]:
    width = WIDTH - len(indent) - 2
    return [f"{indent}# {line}" for line in textwrap.wrap(text, width, break_long_words=False)]


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")
