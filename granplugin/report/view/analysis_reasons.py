"""Why, of the layers whose loss matters, and what other settings give and cost there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from granplugin.recipe.settings import FLOAT, Settings, long_form
from granplugin.report.schema.analysis import (
    Analysis,
    EngineCost,
    LayerAnalysis,
    SettingFigures,
)
from granplugin.report.view.analysis_facts import db_alone, own_and_best
from granplugin.report.view.analysis_figures import db_text
from granplugin.report.view.elements import Item
from granplugin.words import counted

_LOUD_DB = 20.0
"""A layer that leaves less of the network's output is worth a sentence."""
_SHARE = "of its channels' signal"
_SHARES = "channels' signal: every channel counts alike; a dB goes by the loudest ones"


def reasons(analysis: Analysis, shown: Sequence[LayerAnalysis]) -> Iterator[Item]:
    """Why, of the layers whose loss matters, and what the best other setting gives and costs."""
    mattering = [layer for layer in shown if _matters(analysis, layer)]
    measured = [layer for layer in shown if layer.alone]
    if measured and not mattering:
        yield Item(
            f"None of the {counted(measured, 'layer')} that were measured in the network is seen to "
            f"lose more than {analysis.tolerance:g} alone, or to add more to the whole."
        )
    for layer in mattering:
        yield Item(f"{layer.rank} {layer.layer}: {layer.why}")
        for role, own, other in _ways_out(analysis, layer):
            dbs = f"{db_text(own.alone, True)} -> {db_text(other.alone, True)} dB"
            told = f"{role} {own.setting} -> {other.setting}: {dbs}"
            if own.scales != other.scales:
                noun = "scale" if other.scales == 1 else "scales"
                told += f", {_scales(own)} -> {_scales(other)} {noun}"
            yield Item(told, 2)
            for engine in (e for e in own.costs if e in other.costs):
                if change := _change(own.costs[engine], other.costs[engine], analysis.batch_size):
                    yield Item(f"{engine}: {change}", 2)
    if any(_SHARE in layer.why for layer in mattering):
        yield Item(_SHARES)


def _ways_out(
    analysis: Analysis, layer: LayerAnalysis
) -> Iterator[tuple[str, SettingFigures, SettingFigures]]:
    """Sites with the recipe's own setting and another: the suggested ones, or else the best one of
    the site that loses more, or of both where both do."""
    found = False
    for role, settings in (("weight", layer.weights), ("input", layer.inputs)):
        own, _ = own_and_best(settings)
        if own and (other := suggested(analysis, layer.layer, role, own, settings)):
            found = True
            yield role, own, other
    roles = {"input": ("input",), "both": ("weight", "input")}.get(layer.loss_in, ("weight",))
    for role in () if found else roles:
        own, best = own_and_best(layer.inputs if role == "input" else layer.weights)
        if own and best and better(best, own):
            yield role, own, best


def suggested(
    analysis: Analysis,
    layer: str,
    role: str,
    own: SettingFigures,
    settings: Iterable[SettingFigures],
) -> SettingFigures | None:
    """The setting that the suggested rules turn a site's own into; None where they do not change
    it, or where it cannot be told."""
    rule: dict[str, Any] = {}
    for override in analysis.advice.overrides:
        if layer in override.layers:
            rule |= override.rule
    bn = rule.get("bn", own.bn) if role == "weight" else own.bn
    if role not in rule and bn == own.bn:
        return None
    given = Settings.model_validate(long_form(rule.get(role, {})))
    if given.format == FLOAT:
        return next((each for each in settings if each.format == FLOAT), None)
    granularity = str(given.granularity) if given.granularity else own.granularity
    kind = str(given.calibrator) if given.calibrator else own.calibrator or "max"
    wanted = given.format or own.format, granularity, bn
    found = [
        each
        for each in settings
        if not each.start
        and (each.format, each.granularity, each.bn) == wanted
        and each.calibrator in (None, kind)
    ]
    return found[0] if len(found) == 1 else None


def _matters(analysis: Analysis, layer: LayerAnalysis) -> bool:
    """A rule is about it, it costs more than the tolerance, alone or in the whole, or it alone
    changes the outputs by more than a tenth."""
    costs = [layer.alone.loss.value] if layer.alone else []
    if layer.restored and analysis.start:
        costs.append(analysis.start.loss.value - layer.restored.loss.value)
    advised = any(layer.layer in override.layers for override in analysis.advice.overrides)
    db = layer.alone.sqnr.db if layer.alone else None
    loud = db is not None and db < _LOUD_DB
    return advised or loud or any(cost > analysis.tolerance for cost in costs)


def _scales(setting: SettingFigures) -> str:
    return f"{setting.scales:,}" if setting.scales else "run-time"


def _change(a: EngineCost, b: EngineCost, batch: int) -> str:
    """What an engine does otherwise; empty where it does the same, natively."""
    told = []
    if {a.promise, b.promise} != {"native"}:
        told.append(
            f"{a.promise} -> {b.promise}" if a.promise != b.promise else f"both {a.promise}"
        )
    if None not in (a.kernels, b.kernels) and a.kernels != b.kernels:
        told.append(f"{a.kernels} -> {b.kernels} kernels")
    if None not in (a.mb, b.mb) and f"{a.mb:.2f}" != f"{b.mb:.2f}":
        told.append(f"{a.mb:.2f} -> {b.mb:.2f} MB moved at batch {batch}")
    return ", ".join(told)


def better(best: SettingFigures, own: SettingFigures | None) -> bool:
    """By what is shown: by a tenth of a dB."""
    before, after = db_alone(own) if own else None, db_alone(best)
    return before is None or after is None or after - before >= 0.1
