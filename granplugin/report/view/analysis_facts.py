"""What the short and the whole view of an analysis both say, and which settings they are about."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

import yaml

from granplugin.recipe.settings import FLOAT
from granplugin.report.schema.analysis import (
    Analysis,
    NetworkEffect,
    Override,
    SettingFigures,
    SkippedSetting,
)
from granplugin.words import counted, duration, first

_YAML_WIDTH = 80
"""Of the rules to copy, comments included."""


def measured_on(analysis: Analysis) -> str:
    """The samples behind the figures."""
    drawn = f"{analysis.local_samples:,} of them, drawn at random"
    if analysis.local_samples >= analysis.samples:
        drawn = "all of them"
    layers = counted(analysis.layers, "layer")
    if analysis.sites:
        layers += f" and {counted(analysis.sites, 'other site')}"
    return (
        f"{layers} on {counted(analysis.samples, 'sample')} "
        f"({analysis.data} data), the layers' own dB on {drawn}; calibrated on "
        f"{analysis.calibration_samples:,}; {_took(analysis.seconds)}"
    )


def _took(seconds: Mapping[str, float]) -> str:
    """The time it took; local errors are measured in every analysis that was not kept."""
    total = sum(seconds.values())
    took = duration(total) if total >= 0.5 else ""
    if seconds.get("local errors"):
        return took or "under 1 s"
    return f"{took}, the rest kept from an earlier run" if took else "kept from an earlier run"


def loss_means(analysis: Analysis) -> str:
    """What `loss` is, in words."""
    return {
        "metric": f"points of {analysis.metric} below fp32",
        "decisions": "percent of decisions that are not fp32's",
        "outputs": "the outputs' relative error in percent",
    }[analysis.loss]


def effects(analysis: Analysis) -> list[tuple[str, NetworkEffect]]:
    """The network as the recipe has it - where it quantizes -, and with the finest settings."""
    named = [("the recipe", analysis.start), ("the finest", analysis.finest)]
    return [(name, effect) for name, effect in named if effect]


def own_and_best(
    settings: Iterable[SettingFigures],
) -> tuple[SettingFigures | None, SettingFigures | None]:
    """The recipe's own setting of a site, None where it is float, and the best of the others that
    round."""
    rounding = [s for s in settings if s.format != FLOAT]
    own = next((s for s in rounding if s.start), None)
    others = [(db, s) for s in rounding if not s.start and (db := db_alone(s)) is not None]
    return own, max(others, key=lambda of: of[0])[1] if others else None


def db_alone(setting: SettingFigures) -> float | None:
    """Of the layer's output, this site alone rounded; None where it is not known."""
    return setting.alone.db if setting.alone else None


def promised(analysis: Analysis) -> Iterator[str]:
    """What each engine makes of the recipe as it is; engines that have all of it in one line."""
    of_layers = [
        (f"{layer.layer}.{role}", setting)
        for layer in analysis.layers
        for role, settings in (("weight", layer.weights), ("input", layer.inputs))
        for setting in settings
        if setting.format != FLOAT
    ]
    others = [(each.site, setting) for each in analysis.sites for setting in each.settings]
    own = [(site, setting.costs) for site, setting in (*of_layers, *others) if setting.start]
    groups: dict[str, dict[tuple[str, str], list[str]]] = {}
    for engine in dict.fromkeys(engine for _, costs in own for engine in costs):
        of_engine = groups.setdefault(engine, {})
        for site, costs in own:
            if engine not in costs:
                said = ("not known", "")
            elif costs[engine].promise != "native":
                said = (costs[engine].promise, costs[engine].reason)
            else:
                continue
            of_engine.setdefault(said, []).append(site)
    if whole := [engine for engine, found in groups.items() if not found]:
        yield f"{', '.join(whole)}: all of the recipe is native"
    for engine, found in groups.items():
        for (promise, reason), of in found.items():
            share = f"{len(of)} of the recipe's {counted(own, 'site')}"
            yield f"{engine}: {promise} for {share} ({first(of)})" + (
                f": {reason}" if reason else ""
            )


def unmeasured(analysis: Analysis) -> Iterator[str]:
    """Why kernels and MB are not known."""
    counts: dict[tuple[str, str], int] = {}
    asked = 0
    for layer in analysis.layers:
        for setting in (*layer.weights, *layer.inputs):
            asked += 1
            for engine, cost in setting.costs.items():
                if cost.unmeasured:
                    key = (engine, cost.unmeasured)
                    counts[key] = counts.get(key, 0) + 1
    for (engine, reason), count in counts.items():
        of = "all settings" if count == asked else counted(count, "setting")
        yield f"{engine}: no kernels and MB of {of}: {reason}"


def by_reason(skipped: Iterable[SkippedSetting]) -> list[tuple[str, list[SkippedSetting]]]:
    """What was not tried, by reason, those of the most settings first."""
    groups: dict[str, list[SkippedSetting]] = {}
    for each in skipped:
        groups.setdefault(each.reason, []).append(each)
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def within_tolerance(analysis: Analysis) -> str:
    """Whether the loss with the suggested rules is, or that samples cannot tell."""
    advice, tolerance = analysis.advice, f"the tolerance of {analysis.tolerance:g}"
    if advice.promise == "cannot tell":
        return f"it cannot be told whether that is within {tolerance}"
    return f"{'within' if advice.promise == 'within' else 'not within'} {tolerance}"


def rules_yaml(overrides: Sequence[Override]) -> Iterator[str]:
    """The rules as a recipe has them, each behind its reason as a comment.

    A rule takes one line where it fits. Only a name longer than a line makes a longer one.
    """
    yield "rules:"
    for override in overrides:
        yield from textwrap.wrap(
            override.reason, _YAML_WIDTH, initial_indent="  # ", subsequent_indent="  #   ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
        flow = _dump(override.rule, flow=True)
        if len(flow) == 1 and len(flow[0]) <= _YAML_WIDTH - 4:
            yield f"  - {flow[0]}"
        else:
            head, *rest = _dump(override.rule, flow=False)
            yield f"  - {head}"
            yield from (f"    {line}" for line in rest)


def _dump(rule: object, flow: bool) -> list[str]:
    text: str = yaml.safe_dump(
        rule, sort_keys=False, allow_unicode=True, width=_YAML_WIDTH - 4, default_flow_style=flow
    )
    return text.splitlines()
