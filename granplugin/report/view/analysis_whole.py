"""An analysis as a document: all layers with all settings, and what each figure means."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from granplugin.report.schema.analysis import (
    ALL,
    Analysis,
    EngineCost,
    Facts,
    LayerAnalysis,
    NetworkEffect,
    SettingFigures,
    Share,
    Sqnr,
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
from granplugin.report.view.coverage import coverage_items, coverage_line
from granplugin.report.view.elements import (
    Block,
    Column,
    Paragraph,
    Row,
    Section,
    Table,
    Terms,
    Verbatim,
    cells,
    columns,
    items,
)
from granplugin.words import counted, first

_EFFECT = ("loss", "metric", "agreement", "KL", "SQNR dB")
_SETTING = (
    "scales", "bytes", "weight dB", "output dB", "both sites dB", "network dB",
    "channels lost %", "clipped %", "zeroed %",
)  # fmt: skip
_MEANINGS = {
    "SQNR dB": "signal to quantization noise: 10 log10 of the sum of squares over the sum of "
    "squared changes. 20 dB is a relative error of 10 %, 40 dB of 1 %; exact: nothing changed; "
    "none: there is no signal.",
    "the finest": "the network with the setting of each layer that, of those asked, loses least "
    "there, of those that every engine of the recipe has, natively or rewritten; what is a site of "
    "its own - of a call, a skip, a lookup - as the recipe has it or float, whichever loses less.",
    "alone": "the network with only this layer quantized, as the recipe has it.",
    "restored": "the network with all that the recipe quantizes, but not this layer.",
    "agreement": "samples on which the network decides as fp32 does.",
    "KL": "the divergence of the class probabilities from fp32's, KL(fp32 || this).",
    "weight dB": "of the weight itself.",
    "output dB": "of the layer's output, with this site alone rounded.",
    "both sites dB": "the same, with the layer's other site as the recipe has it.",
    "network dB": "of the network's outputs, with this layer alone quantized so.",
    "channels lost": "the share of the output channels' signal that rounding this site alone "
    "takes: the mean over channels of min(1, noise / signal). Every channel counts alike there, "
    "while the loudest ones decide a dB.",
    "clipped": "values beyond the range.",
    "zeroed": "values that are not 0 but are rounded to it.",
    "scales": "scales stored; 0 where they are found at run time.",
    "promises": "native: the engine has it; lowered: rewritten exactly into what it has; "
    "simulated: float on the device, accuracy only; refused. Kernels are the layer's in a built "
    "engine, and MB what they read and write.",
}


def analysis_whole_view(analysis: Analysis) -> Section:
    """The network, what to do, every layer, every setting, what was skipped, what figures mean."""
    return Section(
        f"Analysis of {analysis.recipe}",
        (
            Paragraph(f"{measured_on(analysis)}. granplugin {analysis.granplugin}."),
            Paragraph(
                f"A loss is {loss_means(analysis)}; {analysis.tolerance:g} is tolerated. Brackets hold the 95 % interval over all the data; "
                "a figure without them is exact for its samples."
            ),
            *_covered(analysis),
            Section("The network", tuple(_network(analysis))),
            Section("What to do", tuple(_advised(analysis))),
            Section("The layers, worst first", (_ranked(analysis),)),
            Section(
                "Why, and every setting",
                tuple(_settings(analysis, layer) for layer in analysis.layers),
            ),
            *_sites(analysis),
            *_aside(analysis),
            Section("What the figures mean", tuple(_meanings(analysis))),
        ),
    )


def _covered(analysis: Analysis) -> Iterator[Block]:
    if analysis.coverage:
        yield Paragraph(f"The recipe {coverage_line(analysis.coverage)}.")
        yield from coverage_items(analysis.coverage)


def _network(analysis: Analysis) -> Iterator[Block]:
    rows = [Row(cells(name, *_effect(effect))) for name, effect in effects(analysis)]
    if analysis.fp32:
        rows.insert(0, Row(cells("fp32", None, _share(analysis.fp32), None, None, None)))
    if analysis.advice.suggested:
        rows.append(Row(cells("suggested rules", *_effect(analysis.advice.suggested))))
    yield Table(columns(Column(""), *_effect_heads(analysis)), tuple(rows)).known
    if analysis.start is None:
        yield Paragraph("The recipe quantizes nothing whose settings could be tried.")


def _advised(analysis: Analysis) -> Iterator[Block]:
    advice = analysis.advice
    yield Paragraph(advice.said)
    if advice.overrides:
        yield Verbatim(tuple(rules_yaml(advice.overrides)), "yaml")
        yield Paragraph(f"With these rules, {within_tolerance(analysis)}.")


def _ranked(analysis: Analysis) -> Block:
    if not analysis.layers:
        return Paragraph("No layer could be analysed.")
    heads = columns(
        "#", Column("layer", "name"), Column("kind"), "loss alone", "dB alone", "loss restored",
        "dB restored", "weight dB", Column("best other"), "input dB", Column("best other"),
    )  # fmt: skip
    return Table(heads, tuple(map(_layer_row, analysis.layers))).known


def _layer_row(layer: LayerAnalysis) -> Row:
    told: list[str | None] = [str(layer.rank), layer.layer, _kind(layer)]
    for effect in (layer.alone, layer.restored):
        told += [_share(effect.loss), _db(effect.sqnr)] if effect else [None, None]
    for settings in (layer.weights, layer.inputs):
        own, best = own_and_best(settings)
        told.append(_db(own.alone) if own else "float" if settings else None)
        told.append(f"{_db(best.alone)} {best.setting}" if best else None)
    return Row(cells(*told))


def _settings(analysis: Analysis, layer: LayerAnalysis) -> Section:
    blocks: list[Block] = [Paragraph(layer.why), Paragraph(_facts(layer.facts))]
    settings = [*layer.weights, *layer.inputs]
    if settings:
        engines = list(dict.fromkeys(engine for each in settings for engine in each.costs))
        rows = [_setting("weight", each, engines) for each in layer.weights]
        rows += [_setting("input", each, engines) for each in layer.inputs]
        heads = columns(Column("site"), Column("setting"), *_SETTING, *map(Column, engines))
        every = Table(heads, tuple(rows)).known
        tables = (*_in_network(analysis, layer), every)
        blocks.append(Section(counted(settings, "setting"), tables, aside=True))
    return Section(f"{layer.rank} {layer.layer}", tuple(blocks))


def _in_network(analysis: Analysis, layer: LayerAnalysis) -> Iterator[Table]:
    named = [("alone", layer.alone), ("restored", layer.restored)]
    rows = tuple(Row(cells(name, *_effect(effect))) for name, effect in named if effect)
    if layer.alone:
        yield Table(columns(Column("network"), *_effect_heads(analysis)), rows).known


def _sites(analysis: Analysis) -> Iterator[Section]:
    if not analysis.sites:
        return
    rows = tuple(
        Row(cells(each.site, setting.setting, _db(setting.alone), f"{setting.scales:,}"))
        for each in analysis.sites
        for setting in each.settings
    )
    heads = columns(Column("site", "name"), Column("setting"), "dB", "scales")
    yield Section(
        "What else the recipe quantizes, worst first",
        (Paragraph("Figures are of the tensor itself."), Table(heads, rows)),
    )


def _setting(role: str, each: SettingFigures, engines: Sequence[str]) -> Row:
    lost = None if each.channels_lost is None else 100 * each.channels_lost
    return Row(
        cells(
            role,
            each.setting
            + (" (the recipe's)" if each.start else "")
            + (" (saw only zeros, stays float)" if each.zero_range else ""),
            f"{each.scales:,}",
            f"{each.scale_bytes:,}",
            *(_db(figure) for figure in (each.weight, each.alone, each.both)),
            _db(each.network.sqnr) if each.network else None,
            *(None if x is None else f"{x:.3g}" for x in (lost, each.clipped, each.zeroed)),
            *(_cost(each.costs[e]) if e in each.costs else None for e in engines),
        )
    )


def _cost(cost: EngineCost) -> str:
    """The promise, and why where it is not native; kernels and MB, where known.

    >>> _cost(EngineCost(promise="native", reason="", kernels=1, mb=0.9, unmeasured=None))
    'native, 1 kernel, 0.90 MB moved'
    """
    told: list[str] = [cost.promise]
    told += [counted(cost.kernels, "kernel")] if cost.kernels is not None else []
    told += [f"{cost.mb:.2f} MB moved"] if cost.mb is not None else []
    return ", ".join(told) + (f": {cost.reason}" if cost.promise != "native" else "")


def _kind(layer: LayerAnalysis) -> str:
    kinds = ", ".join([layer.type, *layer.traits])
    return f"{kinds}, {layer.calls} calls" if layer.calls > 1 else kinds


def _facts(facts: Facts) -> str:
    """Largest over median channel range, and the channels that stick out."""
    told = []
    folded = (facts.spread_after, facts.widest_after)
    changed = folded != (facts.spread_before, facts.widest_before)
    for what, spread, widest in (
        ("of the weight", facts.spread_before, facts.widest_before),
        ("with its batch norm folded in", *(folded if changed else (None, None))),
        ("of the input", facts.input_spread, facts.widest_input),
    ):
        if spread is not None:
            where = "" if widest is None else f" (channel {widest})"
            told.append(f"{what} {spread:,.4g}{where}")
    said = [f"Largest over median channel range: {', '.join(told)}"] if told else []
    for what, found in (("weight", facts.outlier_channels), ("input", facts.input_outliers)):
        if found:
            said.append(f"outlying channels of the {what}: {first(list(map(str, found)), 10)}")
    for what, count in (("weight", facts.dead_channels), ("input", facts.dead_inputs)):
        if count:
            said.append(f"dead channels of the {what}: {count}")
    if facts.outlier_samples:
        times = (
            f" (the largest {facts.sample_spread:,.4g} times the median)"
            if facts.sample_spread
            else ""
        )
        said.append(f"samples whose input sticks out: {facts.outlier_samples}{times}")
    return "; ".join(said) + "." if said else "Nothing is known of its channels."


def _aside(analysis: Analysis) -> Iterator[Section]:
    for title, told in (
        ("Engines", [*promised(analysis), *unmeasured(analysis)]),
        ("Skipped", _skipped(analysis)),
        ("Notes", analysis.notes),
    ):
        if told:
            yield Section(title, items(told))


def _skipped(analysis: Analysis) -> list[str]:
    told = []
    for reason, of in by_reason(analysis.skipped):
        sites = ", ".join(dict.fromkeys(each.site for each in of))
        settings = list(dict.fromkeys(each.setting for each in of))
        what = f"{counted(of, 'setting')} ({', '.join(settings)})"
        told.append(f"{'all settings' if settings == [ALL] else what} of {sites}: {reason}")
    return told


def _meanings(analysis: Analysis) -> Iterator[Block]:
    yield Terms(tuple(_MEANINGS.items()))
    machine = analysis.machine
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in analysis.seconds.items())
    yield Paragraph(
        f"Machine: {machine.processor}, {machine.cores} cores, {machine.system}, Python "
        f"{machine.python}, {packages}." + (f" Seconds: {stages}." if stages else "")
    )


def _effect_heads(analysis: Analysis) -> Sequence[str]:
    return tuple((analysis.metric or head) if head == "metric" else head for head in _EFFECT)


def _effect(effect: NetworkEffect) -> Sequence[str | None]:
    shares = (effect.loss, effect.metric, effect.agreement, effect.kl)
    return (*(_share(share) for share in shares), _db(effect.sqnr))


def _share(share: Share | None) -> str | None:
    if share is None:
        return None
    form = "z.2f" if share.unit in ("%", "points") else ".4g"
    told = f"{share.value:{form}}"
    if share.low is not None and share.high is not None:
        told += f" [{share.low:{form}}, {share.high:{form}}]"
    return f"{told} {share.unit}".rstrip()


def _db(sqnr: Sqnr | None) -> str | None:
    if sqnr is None:
        return None
    if sqnr.db is None:
        return "none"
    if sqnr.db == math.inf:
        return "exact"
    if sqnr.low is None or sqnr.high is None:
        return f"{sqnr.db:z.1f}"
    return f"{sqnr.db:z.1f} [{sqnr.low:.1f}, {sqnr.high:.1f}]"
