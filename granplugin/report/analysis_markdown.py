"""An analysis as Markdown: all layers with all settings, and what each figure means."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from granplugin.report.analysis_text import (
    by_reason,
    counted,
    effects,
    loss_means,
    measured_on,
    own_and_best,
    promised,
    rules_yaml,
    unmeasured,
    within_tolerance,
)
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

_EFFECT = ("loss", "metric", "agreement", "KL", "SQNR dB")
_SETTING = (
    "setting", "scales", "bytes", "weight dB", "output dB", "both sites dB",
    "network dB", "channels lost %", "clipped %", "zeroed %",
)  # fmt: skip
_MEANINGS = {
    "SQNR dB": "signal to quantization noise: 10 log10 of the sum of squares over the sum of "
    "squared changes. 20 dB is a relative error of 10 %, 40 dB of 1 %; exact: nothing changed; "
    "none: there is no signal.",
    "the finest": "the network with the setting of each layer that, of those asked, loses least "
    "there, of those that every engine of the recipe has, natively or rewritten.",
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


def to_markdown(analysis: Analysis) -> str:
    """The whole analysis: the network, what to do, every layer, every setting, what was skipped."""
    parts = (
        _head(analysis),
        _network(analysis),
        _advised(analysis),
        _ranked(analysis),
        _settings(analysis),
        _sites(analysis),
        _aside(analysis),
        _meanings(analysis),
    )
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def _head(analysis: Analysis) -> Iterator[str]:
    yield f"# Analysis of {_code(analysis.recipe)}"
    yield ""
    yield f"{_text(measured_on(analysis))}. granplugin {analysis.granplugin}."
    yield ""
    yield (
        f"A loss is {_text(loss_means(analysis))}; {analysis.tolerance:g} more than with the "
        "finest settings is tolerated. Brackets hold the 95 % interval over all the data; a "
        "figure without them is exact for its samples."
    )


def _network(analysis: Analysis) -> Iterator[str]:
    yield from ("", "## The network", "")
    rows = [(name, *_effect(effect)) for name, effect in effects(analysis)]
    if analysis.fp32:
        rows.insert(0, ("fp32", "", _share(analysis.fp32), "", "", ""))
    if analysis.advice.suggested:
        rows.append(("suggested rules", *_effect(analysis.advice.suggested)))
    yield from _table(("", *_effect_heads(analysis)), rows)
    if analysis.start is None:
        yield from ("", "The recipe quantizes nothing.")


def _advised(analysis: Analysis) -> Iterator[str]:
    advice = analysis.advice
    yield from ("", "## What to do", "")
    yield _text(advice.said)
    if not advice.overrides:
        return
    yield from ("", "```yaml", *rules_yaml(advice.overrides), "```", "")
    yield f"With these rules the loss is {within_tolerance(analysis)}."


def _ranked(analysis: Analysis) -> Iterator[str]:
    yield from ("", "## The layers, worst first", "")
    if not analysis.layers:
        yield "No layer could be analysed."
        return
    heads = (
        "#", "layer", "kind", "loss alone", "dB alone", "loss restored", "dB restored",
        "weight dB", "best other", "input dB", "best other",
    )  # fmt: skip
    rows = []
    for layer in analysis.layers:
        cells = [str(layer.rank), _code(layer.layer), _kind(layer)]
        for effect in (layer.alone, layer.restored):
            cells += [_share(effect.loss), _db(effect.sqnr)] if effect else ["", ""]
        for settings in (layer.weights, layer.inputs):
            own, best = own_and_best(settings)
            cells += [_db(own.alone) if own else "float" if settings else ""]
            cells += [f"{_db(best.alone)} {_text(best.setting)}" if best else ""]
        rows.append(cells)
    yield from _table(heads, rows)


def _settings(analysis: Analysis) -> Iterator[str]:
    yield from ("", "## Why, and every setting")
    for layer in analysis.layers:
        yield ""
        yield f"### {layer.rank} {_code(layer.layer)}"
        yield ""
        yield _text(layer.why)
        yield ""
        yield _facts(layer.facts)
        settings = [*layer.weights, *layer.inputs]
        if not settings:
            continue
        yield from ("", "<details>")
        yield f"<summary>{counted(settings, 'setting')}</summary>"
        yield ""
        if layer.alone:
            rows = [("alone", *_effect(layer.alone))]
            rows += [("restored", *_effect(layer.restored))] if layer.restored else []
            yield from (*_table(("network", *_effect_heads(analysis)), rows), "")
        engines = list(dict.fromkeys(engine for each in settings for engine in each.costs))
        rows = [_setting("weight", each, engines) for each in layer.weights]
        rows += [_setting("input", each, engines) for each in layer.inputs]
        yield from _table(("site", *_SETTING, *map(_text, engines)), rows)
        yield from ("", "</details>")


def _sites(analysis: Analysis) -> Iterator[str]:
    if not analysis.sites:
        return
    yield from ("", "## What else the recipe quantizes, worst first", "")
    yield "Figures are of the tensor itself."
    yield ""
    rows = [
        (_code(each.site), _text(setting.setting), _db(setting.alone), f"{setting.scales:,}")
        for each in analysis.sites
        for setting in each.settings
    ]
    yield from _table(("site", "setting", "dB", "scales"), rows)


def _setting(role: str, each: SettingFigures, engines: Sequence[str]) -> Sequence[str]:
    lost = None if each.channels_lost is None else 100 * each.channels_lost
    return (
        role,
        _text(each.setting)
        + (" (the recipe's)" if each.start else "")
        + (" (saw only zeros, stays float)" if each.zero_range else ""),
        f"{each.scales:,}",
        f"{each.scale_bytes:,}",
        *(_db(figure) for figure in (each.weight, each.alone, each.both)),
        _db(each.network.sqnr) if each.network else "",
        *("" if x is None else f"{x:.3g}" for x in (lost, each.clipped, each.zeroed)),
        *(_text(_cost(each.costs[e])) if e in each.costs else "" for e in engines),
    )


def _cost(cost: EngineCost) -> str:
    """The promise, and why where it is not native; kernels and MB, where known.

    >>> _cost(EngineCost(promise="native", reason="", kernels=1, mb=0.9, unmeasured=None))
    'native, 1 kernel, 0.90 MB'
    """
    told = [cost.promise]
    told += [counted(cost.kernels, "kernel")] if cost.kernels is not None else []
    told += [f"{cost.mb:.2f} MB"] if cost.mb is not None else []
    return ", ".join(told) + (f": {cost.reason}" if cost.promise != "native" else "")


def _kind(layer: LayerAnalysis) -> str:
    told = _text(", ".join([layer.type, *layer.traits]))
    return f"{told}, {layer.calls} calls" if layer.calls > 1 else told


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
            more = f" and {len(found) - 10} more" if len(found) > 10 else ""
            listed = ", ".join(map(str, found[:10]))
            said.append(f"outlying channels of the {what}: {listed}{more}")
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


def _aside(analysis: Analysis) -> Iterator[str]:
    for head, told in (
        ("Engines", [*promised(analysis), *unmeasured(analysis)]),
        ("Skipped", _skipped(analysis)),
        ("Notes", analysis.notes),
    ):
        if told:
            yield from ("", f"## {head}", "", *(f"- {_text(each)}" for each in told))


def _skipped(analysis: Analysis) -> list[str]:
    told = []
    for reason, of in by_reason(analysis.skipped):
        sites = ", ".join(dict.fromkeys(each.site for each in of))
        settings = list(dict.fromkeys(each.setting for each in of))
        what = f"{counted(of, 'setting')} ({', '.join(settings)})"
        told.append(f"{'all settings' if settings == [ALL] else what} of {sites}: {reason}")
    return told


def _meanings(analysis: Analysis) -> Iterator[str]:
    yield from ("", "## What the figures mean", "")
    for name, means in _MEANINGS.items():
        yield f"- **{name}**: {means}"
    machine = analysis.machine
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in analysis.seconds.items())
    yield ""
    yield _text(
        f"Machine: {machine.processor}, {machine.cores} cores, {machine.system}, Python "
        f"{machine.python}, {packages}." + (f" Seconds: {stages}." if stages else "")
    )


def _effect_heads(analysis: Analysis) -> Sequence[str]:
    return tuple(_text(analysis.metric or head) if head == "metric" else head for head in _EFFECT)


def _effect(effect: NetworkEffect) -> Sequence[str]:
    shares = (effect.loss, effect.metric, effect.agreement, effect.kl)
    return (*(_share(share) for share in shares), _db(effect.sqnr))


def _share(share: Share | None) -> str:
    if share is None:
        return ""
    form = "z.2f" if share.unit in ("%", "points") else ".4g"
    told = f"{share.value:{form}}"
    if share.low is not None and share.high is not None:
        told += f" [{share.low:{form}}, {share.high:{form}}]"
    return _text(f"{told} {share.unit}".rstrip())


def _db(sqnr: Sqnr | None) -> str:
    if sqnr is None:
        return ""
    if sqnr.db is None:
        return "none"
    if sqnr.db == math.inf:
        return "exact"
    if sqnr.low is None or sqnr.high is None:
        return f"{sqnr.db:z.1f}"
    return f"{sqnr.db:z.1f} [{sqnr.low:.1f}, {sqnr.high:.1f}]"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns of which nothing is known are left out."""
    columns = [column for column in zip(heads, *rows, strict=True) if any(column[1:])]
    heads, *rows = zip(*columns, strict=True)
    for position, row in enumerate((heads, *rows)):
        cells = [cell.replace("|", "\\|") for cell in row]
        yield f"| {' | '.join(cells)} |"
        if position == 0:
            yield "|---" * len(heads) + "|"


def _text(text: str) -> str:
    """What Markdown would take for marks, escaped; underscores within words are none."""
    text = re.sub(r"[\\`*<~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)
    return " ".join(text.split())


def _code(name: str) -> str:
    return f"`{name}`"
