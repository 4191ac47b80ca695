"""An analysis as text of 80 columns: the network, the worst layers and why, what to do."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from granplugin.quant.granularity import spelt
from granplugin.recipe.settings import Settings
from granplugin.report.columns import cut, table
from granplugin.report.findings_text import WIDTH, names, wrapped
from granplugin.report.schema.analysis import (
    ALL,
    Analysis,
    EngineCost,
    LayerAnalysis,
    NetworkEffect,
    Override,
    SettingFigures,
    Share,
    SkippedSetting,
    Sqnr,
)

TOP = 15
"""Layers that are shown where not all are asked for."""
_LOUD_DB = 20.0
"""A layer that leaves less of the network's output is worth a sentence."""
_SITES = 3
"""Other sites that are told."""
_REASONS = 5
"""Reasons for skipping that are told."""
_SHORT = {
    "only inputs whose last axis is the features have tokens": "no tokens there",
    "only an input has scales computed at run time": "only inputs have run-time scales",
}
"""Reasons that many sites have, by how they begin, in fewer words."""
_SHARE = "of its channels' signal"
_SHARES = "channels' signal: every channel counts alike; a dB goes by the loudest ones"


def lines(analysis: Analysis, all_layers: bool = False) -> list[str]:
    """What was measured, the network, the worst layers - or all - and why, and what to do."""
    shown = analysis.layers if all_layers else analysis.layers[:TOP]
    parts = (
        _measured(analysis),
        _network(analysis),
        _ranked(analysis, shown),
        _reasons(analysis, shown),
        _aside(analysis),
        _advised(analysis),
    )
    told = [["", *part] for each in parts if (part := list(each))]
    return [line for part in told for line in part][1:]


def _measured(analysis: Analysis) -> Iterator[str]:
    yield from wrapped(f"{analysis.recipe}: {measured_on(analysis)}", "")
    yield from wrapped(
        f"loss: {loss_means(analysis)}; tolerated: {analysis.tolerance:g} more than with the "
        "finest: the best setting of each layer that every engine of the recipe has",
        "",
    )
    yield "±: to the farther end of the 95 % interval over samples"


def measured_on(analysis: Analysis) -> str:
    """The samples behind the figures."""
    drawn = f"{analysis.local_samples:,} of them, drawn at random"
    if analysis.local_samples >= analysis.samples:
        drawn = "all of them"
    return (
        f"{counted(analysis.layers, 'layer')} on {counted(analysis.samples, 'sample')} "
        f"({analysis.data} data), the layers' own dB on {drawn}; calibrated on "
        f"{analysis.calibration_samples:,}; {_took(analysis.seconds)}"
    )


def _took(seconds: Mapping[str, float]) -> str:
    """The time it took; local errors are measured in every analysis that was not kept."""
    total = sum(seconds.values())
    took = f"{total:.0f} s" if total >= 0.5 else ""
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


def _network(analysis: Analysis) -> Iterator[str]:
    finest = analysis.finest
    heads = (
        "network",
        "loss",
        _head(cut(analysis.metric or "metric", 10), finest.metric or analysis.fp32),
        _head("agreement", finest.agreement),
        "SQNR dB",
        _head("KL", finest.kl),
    )
    rows = [(name, *_effect(effect)) for name, effect in effects(analysis)]
    if analysis.fp32:
        rows.insert(0, ("fp32", "-", _share(analysis.fp32), "-", "-", "-"))
    yield from table(heads, rows, "<>>>>>")
    if analysis.start is None:
        yield "The recipe quantizes nothing."


def _head(name: str, share: Share | None) -> str:
    return f"{name} {share.unit}".rstrip() if share else name


def effects(analysis: Analysis) -> list[tuple[str, NetworkEffect]]:
    """The network as the recipe has it - where it quantizes -, and with the finest settings."""
    named = [("the recipe", analysis.start), ("the finest", analysis.finest)]
    return [(name, effect) for name, effect in named if effect]


def _effect(effect: NetworkEffect) -> Sequence[str]:
    shares = [_share(x) for x in (effect.metric, effect.agreement)]
    return _share(effect.loss), *shares, _db(effect.sqnr, True), _share(effect.kl, 1)


def _ranked(analysis: Analysis, shown: Sequence[LayerAnalysis]) -> Iterator[str]:
    if not shown:
        yield "No layer could be analysed."
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
    yield from wrapped(told, "")
    heads = ("#", "layer", "alone", "dB", "restored", "dB", "weight", "best", "input", "best")
    rows = [_row(layer) for layer in shown]
    yield from table(heads, rows, "><>>>>>>>>", named=1)
    if more := len(analysis.layers) - len(shown):
        yield f"and {counted(more, 'more layer')}: --all shows them"
    of_network = [e.sqnr for layer in shown for e in (layer.alone, layer.restored) if e]
    pairs = [own_and_best(found) for layer in shown for found in (layer.weights, layer.inputs)]
    of_layers = [s.alone for pair in pairs for s in pair if s and s.alone]
    widest = [(_widest(of_network), "the network's"), (_widest(of_layers), "a layer's")]
    if told := [f"{half} for {whose}" for half, whose in widest if half]:
        yield f"widest interval of the dB: {', '.join(told)}"


def _row(layer: LayerAnalysis) -> Sequence[str]:
    cells = [str(layer.rank), layer.layer]
    for effect in (layer.alone, layer.restored):
        cells += [_share(effect.loss, 1), _db(effect.sqnr)] if effect else ["-", "-"]
    for settings in (layer.weights, layer.inputs):
        own, best = own_and_best(settings)
        cells += [_db(own.alone) if own else "float" if best else "-"]
        cells += ["-" if best is None else _db(best.alone) if _better(best, own) else "="]
    return cells


def own_and_best(
    settings: Iterable[SettingFigures],
) -> tuple[SettingFigures | None, SettingFigures | None]:
    """The recipe's own setting of a site, None where it is float, and the best of the others."""
    own = next((s for s in settings if s.start), None)
    others = [s for s in settings if not s.start and s.alone and s.alone.db is not None]
    return own, max(others, key=lambda s: s.alone.db, default=None)


def _better(best: SettingFigures, own: SettingFigures | None) -> bool:
    """By what is shown: by a tenth of a dB."""
    if own is None or own.alone is None or own.alone.db is None:
        return True
    return best.alone.db - own.alone.db >= 0.1


def _reasons(analysis: Analysis, shown: Sequence[LayerAnalysis]) -> Iterator[str]:
    """Why, of the layers whose loss matters, and what the best other setting gives and costs."""
    mattering = [layer for layer in shown if _matters(analysis, layer)]
    measured = [layer for layer in shown if layer.alone]
    if measured and not mattering:
        yield from wrapped(
            f"None of the {counted(measured, 'layer')} that were measured in the network loses "
            f"more than {analysis.tolerance:g} alone, or adds more to the whole.",
            "",
        )
    for layer in mattering:
        yield from wrapped(f"{layer.rank} {layer.layer}: {layer.why}", "")
        for role, own, other in _ways_out(analysis, layer):
            dbs = f"{_db(own.alone, True)} -> {_db(other.alone, True)} dB"
            told = f"{role} {own.setting} -> {other.setting}: {dbs}"
            if own.scales != other.scales:
                noun = "scale" if other.scales == 1 else "scales"
                told += f", {_scales(own)} -> {_scales(other)} {noun}"
            yield from wrapped(told, "    ")
            for engine in (e for e in own.costs if e in other.costs):
                if change := _change(own.costs[engine], other.costs[engine]):
                    yield from wrapped(f"{engine}: {change}", "    ")
    if any(_SHARE in layer.why for layer in mattering):
        yield _SHARES


def _ways_out(
    analysis: Analysis, layer: LayerAnalysis
) -> Iterator[tuple[str, SettingFigures, SettingFigures]]:
    """Sites with the recipe's own setting and another: the suggested ones, or else the best one of
    the site that loses more."""
    found = False
    for role, settings in (("weight", layer.weights), ("input", layer.inputs)):
        own, _ = own_and_best(settings)
        if own and (other := _suggested(analysis, layer.layer, role, own, settings)):
            found = True
            yield role, own, other
    if not found:
        role = "input" if layer.loss_in == "input" else "weight"
        own, best = own_and_best(layer.inputs if role == "input" else layer.weights)
        if own and best and _better(best, own):
            yield role, own, best


def _suggested(
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
    given = rule.get(role, {})
    if not isinstance(given, dict) or not given.keys() <= Settings.model_fields.keys():
        given = {"granularity": given}
    granularity = given.get("granularity", spelt(own.granularity))
    kind = given.get("calibrator", own.calibrator or "max")
    if isinstance(kind, dict):
        kind = " ".join(f"{name} {value:g}" for name, value in kind.items())
    wanted = given.get("format", own.format), granularity, bn
    found = [
        each
        for each in settings
        if not each.start
        and (each.format, spelt(each.granularity), each.bn) == wanted
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
    loud = layer.alone is not None and layer.alone.sqnr.db is not None
    loud = loud and layer.alone.sqnr.db < _LOUD_DB
    return advised or loud or any(cost > analysis.tolerance for cost in costs)


def _scales(setting: SettingFigures) -> str:
    return f"{setting.scales:,}" if setting.scales else "run-time"


def _change(a: EngineCost, b: EngineCost) -> str:
    """What an engine does otherwise; empty where it does the same, natively."""
    told = []
    if {a.promise, b.promise} != {"native"}:
        told.append(
            f"{a.promise} -> {b.promise}" if a.promise != b.promise else f"both {a.promise}"
        )
    if None not in (a.kernels, b.kernels) and a.kernels != b.kernels:
        told.append(f"{a.kernels} -> {b.kernels} kernels")
    if None not in (a.mb, b.mb) and f"{a.mb:.2f}" != f"{b.mb:.2f}":
        told.append(f"{a.mb:.2f} -> {b.mb:.2f} MB moved")
    return ", ".join(told)


def _aside(analysis: Analysis) -> Iterator[str]:
    """What engines promise the recipe, what was not measured or asked, and notes."""
    others = other_sites(analysis)
    for line in (*others, *promised(analysis), *unmeasured(analysis)):
        yield from wrapped(line, "")
    yield from _skipped(analysis.skipped)
    for note in analysis.notes:
        yield from wrapped(f"note: {note}", "")


def other_sites(analysis: Analysis) -> Iterator[str]:
    """What else the recipe quantizes, and the worst of it."""
    if not analysis.sites:
        return
    own = [(each.site, next(s for s in each.settings if s.start)) for each in analysis.sites]
    worst = ", ".join(f"{site} {_db(s.alone)} dB" for site, s in own[:_SITES])
    yield f"besides, the recipe quantizes {counted(own, 'site')}, worst first: {worst}" + (
        f" and {len(own) - _SITES} more" if len(own) > _SITES else ""
    )


def promised(analysis: Analysis) -> Iterator[str]:
    """What each engine makes of the recipe as it is; engines that have all of it in one line."""
    of_layers = [
        (f"{layer.layer}.{role}", setting)
        for layer in analysis.layers
        for role, settings in (("weight", layer.weights), ("input", layer.inputs))
        for setting in settings
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
            yield f"{engine}: {promise} for {share} ({names(of)})" + (
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


def by_reason(found: Iterable[SkippedSetting]) -> list[tuple[str, list[SkippedSetting]]]:
    """What was not tried, by reason, those of the most settings first."""
    groups: dict[str, list[SkippedSetting]] = {}
    for each in found:
        groups.setdefault(each.reason, []).append(each)
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def _skipped(found: Sequence[SkippedSetting]) -> Iterator[str]:
    """A line for each of the most frequent reasons; a layer that is skipped whole has all of it."""
    groups = by_reason(found)
    told = 0
    for reason, of in groups[:_REASONS]:
        told += len(of)
        sites = list(dict.fromkeys(each.site for each in of))
        settings = list(dict.fromkeys(each.setting for each in of))
        if settings == [ALL]:
            yield from wrapped(f"skipped all settings of {names(sites)}: {reason}", "")
            continue
        where = sites[0] if len(sites) == 1 else counted(sites, "site")
        line = f"not tried: {'; '.join(settings)} on {where} ({_brief(reason)})"
        yield textwrap.shorten(line, WIDTH, placeholder=" ...")
    if more := len(found) - told:
        reasons = counted(len(groups) - _REASONS, "other reason")
        yield f"not tried: {counted(more, 'more setting')}, for {reasons}; analysis.md lists all"


def _brief(reason: str) -> str:
    """Without the granularity, which is told before it, and without the way out."""
    said = re.sub(r"^\w+: ", "", reason).partition(";")[0]
    return next((short for start, short in _SHORT.items() if said.startswith(start)), said)


def _advised(analysis: Analysis) -> Iterator[str]:
    advice = analysis.advice
    yield from wrapped(f"what to do: {advice.said}", "")
    if not advice.overrides:
        return
    yield ""
    yield from rules_yaml(advice.overrides)
    yield ""
    yield from wrapped(reaches(analysis), "")


def reaches(analysis: Analysis) -> str:
    """What the suggested rules make of the network, beside what it was."""
    advice = analysis.advice
    told = ""
    if effect := advice.suggested:
        figures = [f"loss {_share(effect.loss)}"]
        if effect.metric:
            unit = effect.metric.unit
            figures.append(f"{analysis.metric} {_share(effect.metric)} {unit}".rstrip())
        if effect.agreement:
            figures.append(f"agreement {_share(effect.agreement)} %")
        figures.append(f"{_db(effect.sqnr, True)} dB")
        beside = [f"{name}: {_share(e.loss)}" for name, e in effects(analysis)]
        figures[0] += f" ({', '.join(beside)})"
        told = f"with these rules: {', '.join(figures)}; "
    return f"{told}{within_tolerance(analysis)}"


def within_tolerance(analysis: Analysis) -> str:
    within = "within" if analysis.advice.reached else "not within"
    return f"{within} the tolerance of {analysis.tolerance:g}"


def rules_yaml(overrides: Sequence[Override]) -> Iterator[str]:
    """The rules as a recipe has them, each behind its reason as a comment.

    A rule takes one line where it fits. Only a name longer than a line makes a longer one.
    """
    yield "rules:"
    for override in overrides:
        yield from wrapped(override.reason, "  # ")
        flow = _dump(override.rule, flow=True)
        if len(flow) == 1 and len(flow[0]) <= WIDTH - 4:
            yield f"  - {flow[0]}"
        else:
            first, *rest = _dump(override.rule, flow=False)
            yield f"  - {first}"
            yield from (f"    {line}" for line in rest)


def _dump(rule: object, flow: bool) -> list[str]:
    text = yaml.safe_dump(
        rule, sort_keys=False, allow_unicode=True, width=WIDTH - 4, default_flow_style=flow
    )
    return text.splitlines()


def counted(of: int | Sequence[object], noun: str) -> str:
    """How many there are.

    >>> counted(1, "layer"), counted(["a", "b"], "layer")
    ('1 layer', '2 layers')
    """
    count = of if isinstance(of, int) else len(of)
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _db(sqnr: Sqnr | None, interval: bool = False) -> str:
    """dB with one decimal; `exact` where nothing changed, `none` where there is no signal."""
    if sqnr is None:
        return "-"
    if sqnr.db is None:
        return "none"
    if sqnr.db == math.inf:
        return "exact"
    return f"{sqnr.db:z.1f}" + (_half(sqnr.db, sqnr.low, sqnr.high, 1) if interval else "")


def _share(share: Share | None, decimals: int = 2) -> str:
    """Percent and points with so many decimals, others with two more digits; the interval."""
    if share is None:
        return "-"
    if share.unit in ("%", "points"):
        return f"{share.value:z.{decimals}f}{_half(share.value, share.low, share.high, decimals)}"
    told = f"{share.value:.{decimals + 2}g}"
    if share.low is None or share.high is None or not math.isfinite(share.value):
        return told
    return f"{told}±{max(share.high - share.value, share.value - share.low):.2g}"


def _half(value: float, low: float | None, high: float | None, decimals: int) -> str:
    """± and the farther bound, rounded up so that it is never 0."""
    if low is None or high is None or not math.isfinite(value):
        return ""
    half = max(high - value, value - low)
    if not math.isfinite(half):
        return "±inf"
    return f"±{math.ceil(round(half * 10**decimals, 6)) / 10**decimals:.{decimals}f}"


def _widest(figures: Iterable[Sqnr]) -> str:
    """The widest interval; empty where there is none."""
    halves = [_half(x.db, x.low, x.high, 1) for x in figures if x.db is not None]
    return max(halves, key=lambda half: float(half[1:] or 0), default="")
