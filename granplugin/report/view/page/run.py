"""What a run came to, for whoever has no time: three sentences, one table, every variant a point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from granplugin.report.schema.page import Axis, Figure, Spot
from granplugin.report.schema.run import EngineResult, Interval, Report, VariantResult
from granplugin.report.view.coverage import coverage_line
from granplugin.report.view.elements import (
    Block,
    Cell,
    Column,
    Item,
    Paragraph,
    Row,
    Section,
    Sense,
    Table,
    cells,
    columns,
)
from granplugin.report.view.metric_figures import bounds, figure, headline, spec_of
from granplugin.report.view.moved import MOVED
from granplugin.report.view.run_facts import megabytes, ran, ratio_text, warnings
from granplugin.report.view.senses import SENSES
from granplugin.report.view.troubles import troubles


def verdict(report: Report) -> Section:
    """Accuracy, then time and size, then how much is quantized and honoured; and what makes these
    mean less than they seem to."""
    told: list[Block] = [*troubles(report), *warnings(report)]
    for variant, engine in zip(report.variants, report.main_engine, strict=True):
        if variant.kind == "recipe":
            told += (*_accuracy(report, variant, engine), *_price(variant), *_honoured(variant))
    told += ran(report)
    for limit in report.limits:
        said = f"limit {limit.limit} <= {limit.bound:g} ({limit.variant}): {limit.verdict}; "
        told.append(Item(said + limit.why, sense=SENSES[limit.verdict]))
    return Section("", tuple(told))


def _accuracy(report: Report, variant: VariantResult, engine: EngineResult) -> Iterator[Paragraph]:
    name = headline(list(engine.metrics))
    if name is None:
        return
    found = engine.metrics[name]
    spec = spec_of([found])
    against: Interval | None = found.vs.get("fp32")
    said = f"{variant.name} has {name} {figure(found.value, spec)} {found.unit}".rstrip()
    sense: Sense = "strong"
    wrong = bool(engine.held and engine.held.wrong)
    if wrong:
        said, sense = f"{said} on {engine.engine}, which computes something else", "bad"
    elif against is not None and report.broken_baseline is None:
        said += f" on {engine.engine}, {against.verdict} than fp32" if against.verdict in (
            "better", "worse",
        ) else f" on {engine.engine}: no measurable difference from fp32"  # fmt: skip
        if against.low is not None and against.high is not None:
            said += f" (difference {bounds(against.low, against.high, spec, '+')}, 95 %)"
        sense = SENSES.get(against.verdict, "strong")
    yield Paragraph(f"{said}, on {report.evaluation_samples} samples.", sense)


def _price(variant: VariantResult) -> Iterator[Paragraph]:
    told = [
        f"{ratio_text(timed.vs['fp32'])} of fp32's time at batch {timed.batch} on {engine.engine}"
        for engine in variant.engines
        for timed in engine.latency
        if "fp32" in timed.vs
    ]
    size = f"its file has {megabytes(variant.onnx_bytes)} MB"
    yield Paragraph(
        f"It takes {', '.join(told)}; {size}." if told else f"No time was measured; {size}."
    )


def _honoured(variant: VariantResult) -> Iterator[Paragraph]:
    told = [
        f"{engine.engine} computes {engine.honoured} of {len(engine.verdicts)} as asked"
        for engine in variant.engines
        if engine.verdicts
    ]
    if variant.coverage:
        yield Paragraph(f"It {coverage_line(variant.coverage)}.")
    if told:
        yield Paragraph(f"Of its quantized operands, {', '.join(told)}.")


def overview(report: Report) -> Table:
    """Variants by every metric, time, size, what engines honour, and coverage."""
    engines = report.main_engine
    metrics = list(dict.fromkeys(name for engine in engines for name in engine.metrics))
    batches = sorted({timed.batch for engine in engines for timed in engine.latency})
    audited = list(
        dict.fromkeys(e.engine for v in report.variants for e in v.engines if e.verdicts)
    )
    heads: list[str | Column] = [Column("variant")]
    for name in metrics:
        unit = next(e.metrics[name].unit for e in engines if name in e.metrics)
        heads += [f"{name} {unit}".strip(), "against fp32"]
    heads += [f"{word} batch {batch}" for batch in batches for word in ("ms,", "of fp32's,")]
    heads += ["ONNX MB", *(f"{name} honoured" for name in audited), "products quantized"]
    rows = [
        _row(report, variant, engine, metrics, batches, audited)
        for variant, engine in zip(report.variants, engines, strict=True)
    ]
    return Table(columns(*heads), tuple(rows)).known


def _row(
    report: Report,
    variant: VariantResult,
    engine: EngineResult,
    metrics: Sequence[str],
    batches: Sequence[int],
    audited: Sequence[str],
) -> Row:
    name: Sense = "strong" if variant.kind == "recipe" else "plain"
    told: list[str | Cell | None] = [Cell(variant.name, name)]
    for metric in metrics:
        told += _metric(report, engine, metric)
    timed = {each.batch: each for each in engine.latency}
    for batch in batches:
        found = timed.get(batch)
        told += (
            [f"{found.median_ms:.3f}", ratio_text(found.vs.get("fp32"))] if found else [None] * 2
        )
    told.append(megabytes(variant.onnx_bytes))
    by_name = {each.engine: each for each in variant.engines}
    told += [_counted(by_name.get(each)) for each in audited]
    covered = variant.coverage
    told.append(f"{covered.quantized} of {covered.products}" if covered else None)
    notes = [f"{variant.name}: same file as {variant.same_as}"] if variant.same_as else []
    if engine.held and engine.held.wrong:
        notes.append(f"{variant.name}: {engine.engine} is WRONG on it")
    elif engine.traced:
        floats = ", ".join(part.name for part in engine.traced.left_float)
        notes.append(
            f"{variant.name}: float on {engine.engine}, which computes it wrongly: {floats}"
        )
    if engine.refused is not None:
        notes.append(f"{variant.name}: {engine.engine} refused it")
    if inside := variant.computed_in(engine):
        notes.append(f"{variant.name}: {engine.engine} computes it in {inside}")
    return Row(cells(*told), notes=tuple(notes))


def _metric(report: Report, engine: EngineResult, metric: str) -> list[str | Cell | None]:
    found = engine.metrics.get(metric)
    if found is None:
        return [None, None]
    known = [each.metrics[metric] for each in report.main_engine if metric in each.metrics]
    spec = spec_of(known)
    said = figure(found.value, spec)
    if found.low is not None and found.high is not None:
        said += f" {bounds(found.low, found.high, spec)}"
    wrong = bool(engine.held and engine.held.wrong)
    against = found.vs.get("fp32")
    if against is None:
        return [Cell(said, "bad" if wrong else "plain"), None]
    # That no difference is measurable is no praise: few samples tell none.
    sense: Sense = SENSES.get(against.verdict, "plain")
    told = f"{against.value:+{spec}}"
    if against.low is not None and against.high is not None:
        told += f" {bounds(against.low, against.high, spec, '+')}"
    return [Cell(said, "bad" if wrong else sense), Cell(told, sense)]


def _counted(engine: EngineResult | None) -> Cell | None:
    if engine is None or not engine.verdicts:
        return None
    all_of = engine.honoured == len(engine.verdicts)
    return Cell(f"{engine.honoured}/{len(engine.verdicts)}", "plain" if all_of else "doubtful")


def spots(report: Report) -> tuple[list[Axis], list[Axis], list[Spot]]:
    """The axes of what variants cost, those of what they give, and the variants."""
    x: dict[str, Axis] = {}
    y: dict[str, Axis] = {}
    pairs = zip(report.variants, report.main_engine, strict=True)
    found = [_spot(report, variant, main, x, y) for variant, main in pairs]
    return list(x.values()), list(y.values()), found


def _spot(
    report: Report,
    variant: VariantResult,
    main: EngineResult,
    x: dict[str, Axis],
    y: dict[str, Axis],
) -> Spot:
    figures: dict[str, Figure] = {}

    def add(axes: dict[str, Axis], key: str, title: str, value: Figure) -> None:
        axes.setdefault(key, Axis(key=key, title=title, better="less" if axes is x else "more"))
        figures[key] = value

    for engine in variant.engines:
        for timed in engine.latency:
            title = f"ms, batch {timed.batch}, {engine.engine}"
            add(x, title, title, Figure(value=timed.median_ms))
        if engine.moved and engine.moved.total is not None:
            title = f"{MOVED}, {engine.engine}, batch {engine.batch or report.batch_size}"
            add(x, title, title, Figure(value=engine.moved.total / 1e6))
    add(x, "ONNX MB", "ONNX MB", Figure(value=variant.onnx_bytes / 1e6))
    for name, metric in main.metrics.items():
        title = f"{name} {metric.unit}".strip()
        add(y, name, title, Figure(value=metric.value, low=metric.low, high=metric.high))
    differs = [o for o in report.overrides if o.variant == variant.name]
    says = [f"{o.layer}.{o.role}: {o.default} -> {o.now}" for o in differs[:6]]
    if len(differs) > len(says):
        says.append(f"and {len(differs) - len(says)} more")
    wrong = bool(main.held and main.held.wrong)
    return Spot(name=variant.name, kind=variant.kind, figures=figures, says=says, wrong=wrong)
