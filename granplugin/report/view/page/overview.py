"""Every variant in one table, and as a point: what it gives against what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from granplugin.report.schema.page import Axis, Figure, Spot
from granplugin.report.schema.run import EngineResult, MetricValue, Override, Report, VariantResult
from granplugin.report.view.elements import (
    Block,
    Cell,
    Column,
    Paragraph,
    Row,
    Sense,
    Table,
    cells,
    columns,
)
from granplugin.report.view.metric_figures import bounds, figure, spec_of
from granplugin.report.view.moved import MOVED
from granplugin.report.view.run_facts import megabytes, ratio_text
from granplugin.report.view.senses import SENSES

BEST = "★"
_RULES = 6
"""Lines on what a variant decides otherwise that a point tells."""


@dataclass(frozen=True)
class _Best:
    """The names that have the best figure of a column, or one whose interval reaches into its."""

    names: frozenset[str]

    @classmethod
    def of(cls, known: Mapping[str, Figure], less: bool) -> _Best:
        if len(known) < 2:
            return cls(frozenset())
        least = [_span(each, less) for each in known.values()]
        reach = min(worst for _, worst in least)
        return cls(frozenset(n for n, each in known.items() if _span(each, less)[0] <= reach))


def _marked(best: Mapping[str, _Best], column: str, name: str, text: str) -> str:
    return f"{text} {BEST}" if column in best and name in best[column].names else text


def _span(of: Figure, less: bool) -> tuple[float, float]:
    """Its best and its worst, where less is better."""
    low = of.value if of.low is None else of.low
    high = of.value if of.high is None else of.high
    return (low, high) if less else (-high, -low)


def overview(report: Report) -> Iterator[Block]:
    """Variants by every metric, time, size, what engines honour, and coverage; and what the mark
    in it means."""
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
    heads += ["ONNX MB", *(f"{name} honoured" for name in audited), "products in fewer bits"]
    best = _best_of(report)
    rows = [
        _row(report, variant, engine, metrics, batches, audited, best)
        for variant, engine in zip(report.variants, engines, strict=True)
    ]
    yield Table(columns(*heads), tuple(rows)).known
    if any(each.names for each in best.values()):
        yield Paragraph(
            f"{BEST} best of its column, or not told apart from it by the 95 % intervals; "
            "what an engine computes wrongly takes no part."
        )


def _best_of(report: Report) -> dict[str, _Best]:
    """By column of figures: metric, batch, size."""
    known: dict[str, dict[str, Figure]] = {}
    less: set[str] = set()
    for variant, engine in zip(report.variants, report.main_engine, strict=True):
        if engine.held and engine.held.wrong:
            continue
        for name, metric in engine.metrics.items():
            known.setdefault(name, {})[variant.name] = _figure(metric)
            if metric.lower_is_better:
                less.add(name)
        for timed in engine.latency:
            column = f"ms {timed.batch}"
            less.add(column)
            ratio = timed.vs.get("fp32")
            if ratio is not None:
                figure = Figure(value=ratio.value, low=ratio.low, high=ratio.high)
                known.setdefault(column, {})[variant.name] = figure
            elif variant.name == "fp32":
                known.setdefault(column, {})[variant.name] = Figure(value=1)
        less.add("MB")
        known.setdefault("MB", {})[variant.name] = Figure(value=round(variant.onnx_bytes / 1e6, 2))
    return {column: _Best.of(of, column in less) for column, of in known.items()}


def _figure(metric: MetricValue) -> Figure:
    return Figure(value=metric.value, low=metric.low, high=metric.high)


def _row(
    report: Report,
    variant: VariantResult,
    engine: EngineResult,
    metrics: Sequence[str],
    batches: Sequence[int],
    audited: Sequence[str],
    best: Mapping[str, _Best],
) -> Row:
    sense: Sense = "strong" if variant.kind == "recipe" else "plain"
    name = variant.name
    told: list[str | Cell | None] = [Cell(name, sense)]
    for metric in metrics:
        told += _metric(report, name, engine, metric, best)
    timed = {each.batch: each for each in engine.latency}
    for batch in batches:
        found = timed.get(batch)
        if found is None:
            told += [None, None]
            continue
        told.append(_marked(best, f"ms {batch}", name, f"{found.median_ms:.3f}"))
        told.append(ratio_text(found.vs.get("fp32")))
    told.append(_marked(best, "MB", name, megabytes(variant.onnx_bytes) or ""))
    by_name = {each.engine: each for each in variant.engines}
    told += [_counted(by_name.get(each)) for each in audited]
    covered = variant.coverage
    told.append(f"{covered.quantized} of {covered.products}" if covered else None)
    return Row(cells(*told), notes=tuple(_notes(variant, engine)))


def _notes(variant: VariantResult, engine: EngineResult) -> Iterator[str]:
    name = variant.name
    if variant.same_as:
        yield f"{name}: same file as {variant.same_as}"
    if engine.held and engine.held.wrong:
        yield f"{name}: {engine.engine} is WRONG on it"
    elif engine.traced:
        floats = ", ".join(part.name for part in engine.traced.left_float)
        yield f"{name}: float on {engine.engine}, which computes it wrongly: {floats}"
    if engine.refused is not None:
        yield f"{name}: {engine.engine} refused it"
    if inside := variant.computed_in(engine):
        yield f"{name}: {engine.engine} computes it in {inside}"
    for each in variant.engines:
        simulated = sum(what == "simulated" for what in each.made.values())
        if simulated:
            yield (
                f"{name}: accuracy only on {each.engine}, which does not have {simulated} of its "
                "operands: they are simulated in float, and time and size say nothing of them"
            )


def _metric(
    report: Report, name: str, engine: EngineResult, metric: str, best: Mapping[str, _Best]
) -> list[str | Cell | None]:
    value = engine.metrics.get(metric)
    if value is None:
        return [None, None]
    known = [each.metrics[metric] for each in report.main_engine if metric in each.metrics]
    spec = spec_of(known)
    said = _marked(best, metric, name, figure(value.value, spec))
    if value.low is not None and value.high is not None:
        said += f" {bounds(value.low, value.high, spec)}"
    wrong = bool(engine.held and engine.held.wrong)
    against = value.vs.get("fp32")
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
    costs = sorted(x.values(), key=lambda each: each.key.startswith("ms"))
    return costs, list(y.values()), found


def _spot(
    report: Report,
    variant: VariantResult,
    main: EngineResult,
    x: dict[str, Axis],
    y: dict[str, Axis],
) -> Spot:
    figures: dict[str, Figure] = {}

    def add(axes: dict[str, Axis], title: str, value: Figure, less: bool) -> None:
        axes.setdefault(title, Axis(key=title, title=title, better="less" if less else "more"))
        figures[title] = value

    for engine in variant.engines:
        for timed in engine.latency:
            at = f"batch {timed.batch}, {engine.engine}"
            if "fp32" in timed.vs:
                ratio = timed.vs["fp32"]
                value = Figure(value=ratio.value, low=ratio.low, high=ratio.high)
                add(x, f"part of fp32's time, {at}", value, True)
            elif variant.name == "fp32":
                add(x, f"part of fp32's time, {at}", Figure(value=1), True)
            add(x, f"ms, {at}", Figure(value=timed.median_ms), True)
        if engine.moved and engine.moved.total is not None:
            batch = engine.batch or report.batch_size
            title = f"{MOVED} by the plan, not measured, {engine.engine}, batch {batch}"
            add(x, title, Figure(value=engine.moved.total / 1e6), True)
    add(x, "ONNX MB", Figure(value=variant.onnx_bytes / 1e6), True)
    for name, metric in main.metrics.items():
        add(y, f"{name} {metric.unit}".strip(), _figure(metric), metric.lower_is_better)
    wrong = bool(main.held and main.held.wrong)
    says = list(_differs(o for o in report.overrides if o.variant == variant.name))
    return Spot(name=variant.name, kind=variant.kind, figures=figures, says=says, wrong=wrong)


def _differs(overrides: Iterable[Override]) -> Iterator[str]:
    """What a variant decides otherwise than the defaults, a line for each rule and change."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for each in overrides:
        change = (each.rule, each.role, each.default, each.now)
        found.setdefault(change, []).append(each.layer)
    for (rule, role, default, now), layers in list(found.items())[:_RULES]:
        where = layers[0] if len(layers) == 1 else f"{len(layers)} layers"
        yield f"{rule}: {role} {default} -> {now}, {where}"
    if len(found) > _RULES:
        yield f"and {len(found) - _RULES} more"
