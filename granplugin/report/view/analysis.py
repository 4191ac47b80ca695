"""An analysis in short: the network, the worst layers and why, what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from granplugin.report.schema.analysis import (
    ALL,
    Analysis,
    LayerAnalysis,
    NetworkEffect,
    Share,
    SkippedSetting,
)
from granplugin.report.view.analysis_facts import (
    by_reason,
    effects,
    loss_means,
    measured_on,
    own_and_best,
    promised,
    rules_yaml,
    unmeasured,
    within_tolerance,
)
from granplugin.report.view.analysis_figures import db_text, share_text, widest
from granplugin.report.view.analysis_reasons import better, reasons
from granplugin.report.view.coverage import coverage_line
from granplugin.report.view.elements import (
    Block,
    Column,
    Item,
    Row,
    Section,
    Table,
    Verbatim,
    cells,
    columns,
    items,
)
from granplugin.words import counted, first

TOP = 15
"""Layers that are shown where not all are asked for."""
_REASONS = 5
"""Reasons for skipping that are told."""
_SHORT = {
    "only inputs whose last axis is the features have tokens": "no tokens there",
    "only an input has scales computed at run time": "only inputs have run-time scales",
}
"""Reasons that many sites have, by how they begin, in fewer words."""


def analysis_view(analysis: Analysis, all_layers: bool = False) -> Section:
    """What was measured, the network, the worst layers - or all - and why, and what to do."""
    shown = analysis.layers if all_layers else analysis.layers[:TOP]
    parts = (
        _measured(analysis),
        _network(analysis),
        _ranked(analysis, shown),
        reasons(analysis, shown),
        _aside(analysis),
        (Item(f"what to do: {analysis.advice.said}"),),
        *_advised(analysis),
    )
    told = (tuple(part) for part in parts)
    return Section("", tuple(Section("", part) for part in told if part))


def _measured(analysis: Analysis) -> Iterator[Item]:
    yield Item(f"{analysis.recipe}: {measured_on(analysis)}")
    if analysis.coverage:
        yield Item(f"the recipe {coverage_line(analysis.coverage)}")
    others = ", other sites as they are or float, whichever loses less" if analysis.sites else ""
    yield Item(
        f"loss: {loss_means(analysis)}; tolerated: {analysis.tolerance:g}; the finest: the "
        f"best setting of each layer that every engine of the recipe has{others}"
    )
    yield Item("±: to the farther end of the 95 % interval over samples")


def _network(analysis: Analysis) -> Iterator[Block]:
    finest = analysis.finest
    heads = columns(
        Column("network"),
        "loss",
        _head(_metric(analysis.metric), finest.metric or analysis.fp32),
        _head("agreement", finest.agreement),
        "SQNR dB",
        _head("KL", finest.kl),
    )
    rows = [Row(cells(name, *_effect(effect))) for name, effect in effects(analysis)]
    if analysis.fp32:
        rows.insert(0, Row(cells("fp32", None, share_text(analysis.fp32), None, None, None)))
    yield Table(heads, tuple(rows)).known
    if analysis.start is None:
        yield Item("The recipe quantizes nothing whose settings could be tried.")


def _metric(name: str | None) -> str:
    """A user's metric may be called anything; its column is no wider than its figures."""
    name = name or "metric"
    return name if len(name) <= 10 else f"{name[:9]}~"


def _head(name: str, share: Share | None) -> str:
    return f"{name} {share.unit}".rstrip() if share else name


def _effect(effect: NetworkEffect) -> Sequence[str | None]:
    shares = [share_text(x) for x in (effect.metric, effect.agreement)]
    return share_text(effect.loss), *shares, db_text(effect.sqnr, True), share_text(effect.kl, 1)


def _ranked(analysis: Analysis, shown: Sequence[LayerAnalysis]) -> Iterator[Block]:
    if not shown:
        yield Item("No layer could be analysed.")
        return
    told = "The layers, worst first. "
    if any(layer.alone for layer in shown):
        told += (
            "alone: loss and dB of the network with only this layer quantized; restored: with all "
            "that the recipe quantizes but this layer"
        )
        unmeasured = not all(layer.alone for layer in shown)
        told += " (-: analyze.top says how many are measured so). " if unmeasured else ". "
    told += (
        "weight, input: dB of the layer's output with only that rounded, as the recipe has it; "
        "best: with the best other setting (=: none is better)."
    )
    yield Item(told)
    heads = columns(
        "#", Column("layer", "name"), "alone", "dB", "restored", "dB", "weight", "best", "input",
        "best",
    )  # fmt: skip
    yield Table(heads, tuple(map(_row, shown))).known
    if more := len(analysis.layers) - len(shown):
        yield Item(f"and {counted(more, 'more layer')}: --all shows them")
    of_network = [e.sqnr for layer in shown for e in (layer.alone, layer.restored) if e]
    pairs = [own_and_best(found) for layer in shown for found in (layer.weights, layer.inputs)]
    of_layers = [s.alone for pair in pairs for s in pair if s and s.alone]
    halves = [(widest(of_network), "the network's"), (widest(of_layers), "a layer's")]
    if listed := [f"{half} for {whose}" for half, whose in halves if half]:
        yield Item(f"widest interval of the dB: {', '.join(listed)}")


def _row(layer: LayerAnalysis) -> Row:
    told: list[str | None] = [str(layer.rank), layer.layer]
    for effect in (layer.alone, layer.restored):
        told += [share_text(effect.loss, 1), db_text(effect.sqnr)] if effect else [None, None]
    for settings in (layer.weights, layer.inputs):
        own, best = own_and_best(settings)
        told.append(db_text(own.alone) if own else "float" if best else None)
        told.append(None if best is None else db_text(best.alone) if better(best, own) else "=")
    return Row(cells(*told))


def _aside(analysis: Analysis) -> Iterator[Item]:
    """What engines promise the recipe, what was not measured or asked, and notes."""
    yield from items((*_other_sites(analysis), *promised(analysis), *unmeasured(analysis)))
    yield from _skipped(analysis.skipped)
    yield from items(f"note: {note}" for note in analysis.notes)


def _other_sites(analysis: Analysis) -> Iterator[str]:
    """What else the recipe quantizes, and the worst of it."""
    if analysis.sites:
        own = [(each.site, next(s for s in each.settings if s.start)) for each in analysis.sites]
        worst = first([f"{site} {db_text(s.alone) or '-'} dB" for site, s in own])
        yield f"besides, the recipe quantizes {counted(own, 'site')}, worst first: {worst}"


def _skipped(skipped: Sequence[SkippedSetting]) -> Iterator[Item]:
    """A line for each of the most frequent reasons; a layer that is skipped whole has all of it."""
    groups = by_reason(skipped)
    told = 0
    for reason, of in groups[:_REASONS]:
        told += len(of)
        sites = list(dict.fromkeys(each.site for each in of))
        settings = list(dict.fromkeys(each.setting for each in of))
        if settings == [ALL]:
            yield Item(f"skipped all settings of {first(sites)}: {reason}")
            continue
        where = sites[0] if len(sites) == 1 else counted(sites, "site")
        yield Item(f"not tried: {'; '.join(settings)} on {where} ({_brief(reason)})", brief=True)
    if more := len(skipped) - told:
        rest = counted(len(groups) - _REASONS, "other reason")
        yield Item(f"not tried: {counted(more, 'more setting')}, for {rest}; analysis.md lists all")


def _brief(reason: str) -> str:
    """Without the granularity, which is told before it, and without the way out."""
    said = re.sub(r"^\w+: ", "", reason).partition(";")[0]
    return next((short for start, short in _SHORT.items() if said.startswith(start)), said)


def _advised(analysis: Analysis) -> Iterator[tuple[Block, ...]]:
    if analysis.advice.overrides:
        yield (Verbatim(tuple(rules_yaml(analysis.advice.overrides)), "yaml"),)
        yield (Item(_reaches(analysis)),)


def _reaches(analysis: Analysis) -> str:
    """What the suggested rules make of the network, beside what it was."""
    advice = analysis.advice
    told = ""
    if effect := advice.suggested:
        figures = [f"loss {share_text(effect.loss)}"]
        if effect.metric:
            unit = effect.metric.unit
            figures.append(f"{analysis.metric} {share_text(effect.metric)} {unit}".rstrip())
        if effect.agreement:
            figures.append(f"agreement {share_text(effect.agreement)} %")
        figures.append(f"{db_text(effect.sqnr, True)} dB")
        beside = [f"{name}: {share_text(e.loss)}" for name, e in effects(analysis)]
        figures[0] += f" ({', '.join(beside)})"
        told = f"with these rules: {', '.join(figures)}; "
    return f"{told}{within_tolerance(analysis)}"
