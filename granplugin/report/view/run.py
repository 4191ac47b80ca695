"""A run in short: the table of its variants, then what the figures need to be read rightly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from granplugin.report.schema.run import EngineResult, LimitResult, Report, VariantResult
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
from granplugin.report.view.findings import findings_items
from granplugin.report.view.metric_figures import (
    NONE_MEASURABLE,
    bounds,
    difference,
    figure,
    headline,
    spec_of,
)
from granplugin.report.view.moved import MOVED, moved_cells, moved_heads
from granplugin.report.view.run_facts import (
    agreement_sentences,
    broken,
    built_for,
    covered,
    false_differences,
    gpu_sentences,
    int8_layers,
    made,
    megabytes,
    named,
    overrides,
    provable,
    ran,
    ratio_text,
    same_as_fp32,
    seconds,
    version_of,
    warnings,
)
from granplugin.report.view.senses import SENSES
from granplugin.report.view.troubles import troubles

_LISTED = 5
"""Rows of a variant that an engine does not honour, told one by one."""


def run_view(report: Report) -> Section:
    """The variants on the main engine, every engine's plan, sentences, overrides and limits."""
    parts: tuple[Iterable[Block], ...] = (
        (*_tables(report, report.main_engine), *troubles(report), *warnings(report)),
        covered(report),
        _engines(report),
        (*_reading(report), *ran(report)),
        made(report),
        overrides(report),
        map(Paragraph, (f"note: {note}" for note in report.notes)),
        map(_limit, report.limits),
    )
    told = (tuple(part) for part in parts)
    return Section(_heading(report), tuple(Section("", part) for part in told if part))


def _heading(report: Report) -> str:
    engine = report.main_engine[0]
    source = "" if report.evaluated_on == "evaluation" else " (the calibration data)"
    low = report.variants[-1].precision
    return (
        f"{report.name}: {report.evaluation_samples} samples{source}, "
        f"{engine.engine} {engine.version}, {report.machine.cores} cores"
    ) + (f", {low} where not quantized" if low != "fp32" else "")


def _headline_metric(report: Report) -> str | None:
    """The metric of the table's accuracy column."""
    names = dict.fromkeys(name for engine in report.main_engine for name in engine.metrics)
    return headline(list(names))


def _tables(report: Report, engines: Sequence[EngineResult]) -> Iterator[Block]:
    """The variants on an engine with the headline metric; then with the others, two a table."""
    yield _table(report, engines)
    measured = dict.fromkeys(name for engine in engines for name in engine.metrics)
    others = [name for name in measured if name not in (_headline_metric(report), "sqnr_db")]
    for at in range(0, len(others), 2):
        yield Section("", (_metrics_table(report, engines, others[at : at + 2]),))
    yield from _worst_outputs(report, engines)


def _worst_outputs(report: Report, engines: Sequence[EngineResult]) -> Iterator[Section]:
    """Of several outputs the one where each variant is worst: together the loudest decide."""
    rows = []
    for variant, engine in zip(report.variants, engines, strict=True):
        sqnr = engine.metrics.get("sqnr_db")
        if sqnr and sqnr.outputs:
            name, value = min(sqnr.outputs.items(), key=lambda each: each[1])
            shown = cells(named(variant, engine), f"{figure(value, '.1f')}", Cell(name))
            rows.append(Row(shown))
    if rows:
        count = max(len(e.metrics["sqnr_db"].outputs) for e in engines if "sqnr_db" in e.metrics)
        heads = columns(Column("variant"), "SQNR", Column(f"of the worst of {count} outputs"))
        yield Section("", (Table(heads, tuple(rows), spaced=True),))


def _metrics_table(
    report: Report, engines: Sequence[EngineResult], metrics: Sequence[str]
) -> Table:
    heads: list[str] = []
    told: list[list[str | Cell | None]] = [[] for _ in engines]
    for metric in metrics:
        found = [engine.metrics.get(metric) for engine in engines]
        known = [each for each in found if each]
        spec, compared = spec_of(known), any("fp32" in each.vs for each in known)
        bounded = compared or any(each.low is not None for each in known)
        heads.append(f"{metric} {known[0].unit}".strip())
        heads += ["against fp32 (95 %)" if compared else "(95 %)"] if bounded else []
        for cells_of, each, engine in zip(told, found, engines, strict=True):
            cells_of.append(figure(each.value, spec) if each else None)
            cells_of += [_against(engine, metric, spec, said=True)] if bounded else []
    rows = (
        Row(cells(named(variant, engine), *of))
        for variant, engine, of in zip(report.variants, engines, told, strict=True)
    )
    return Table(columns(Column("variant", fills=True), *heads), tuple(rows))


def _table(report: Report, engines: Sequence[EngineResult]) -> Table:
    metric = _headline_metric(report)
    batches = sorted({latency.batch for engine in engines for latency in engine.latency})
    units = (engine.metrics[metric].unit for engine in engines if metric in engine.metrics)
    unit = next(units, "")
    spec = spec_of(engine.metrics[metric] for engine in engines if metric in engine.metrics)
    heads = columns(
        Column("variant", fills=True),
        f"{metric} {unit}".strip() if metric else "",
        "against fp32 (95 %)",
        "SQNR",
        *(f"ms b{batch}" for batch in batches),
        "MB",
        "int8",
        "broken" if any(broken(engine) for engine in engines) else "",
    )
    rows = []
    for variant, engine in zip(report.variants, engines, strict=True):
        times = {latency.batch: f"{latency.median_ms:.2f}" for latency in engine.latency}
        rows.append(
            Row(
                cells(
                    Cell(named(variant, engine), "strong" if variant.kind == "recipe" else "plain"),
                    _value(engine, metric, spec),
                    _against(engine, metric, spec, said=report.broken_baseline is not None),
                    _sqnr(engine),
                    *map(times.get, batches),
                    megabytes(variant.onnx_bytes),
                    int8_layers(engine),
                    broken(engine),
                )
            )
        )
    told = {at for at in range(len(heads)) if any(row.cells[at].text for row in rows)}
    compared, noise = 2, 3
    gone = {at for at in (compared, noise) if at not in told}
    gone |= {noise} if metric == "sqnr_db" else set()
    known = [at for at, head in enumerate(heads) if at not in gone and (head.head or at < 2)]
    return Table(heads, tuple(rows)).only(known)


def _value(engine: EngineResult, metric: str | None, spec: str) -> str | Cell | None:
    if engine.refused is not None:
        return Cell("refused", "bad")
    found = engine.metrics.get(metric) if metric else None
    return figure(found.value, spec) if found else None


def _against(
    engine: EngineResult, metric: str | None, spec: str, said: bool = False
) -> Cell | None:
    """The difference from fp32, else the value's own interval; marked where no metric differs,
    or with its verdict `said`."""
    found = engine.metrics.get(metric) if metric else None
    if found is None:
        return None
    interval = found.vs.get("fp32")
    if interval is None:
        if found.low is None or found.high is None:
            return None
        return Cell(bounds(found.low, found.high, spec))
    sense: Sense = SENSES.get(interval.verdict, "plain")
    if said and interval.verdict != NONE_MEASURABLE:
        return Cell(f"{difference(interval, spec)} {interval.verdict}", sense)
    same = " =" if not said and interval.low is not None and same_as_fp32(engine) else ""
    return Cell(f"{difference(interval, spec)}{same}", sense)


def _sqnr(engine: EngineResult) -> str | None:
    sqnr = engine.metrics.get("sqnr_db")
    if sqnr is None:
        return None
    return f"{sqnr.value:.1f}" if math.isfinite(sqnr.value) else "equal"


def _engines(report: Report) -> Iterator[Section]:
    """Each engine beside the main one: what was imported of it, and its plan."""
    for position, engines in enumerate(report.by_engine):
        if engines[0].imported and any(engine.metrics or engine.latency for engine in engines):
            yield _imported(report, position)
        if any(engine.kernels is not None for engine in engines):
            yield _built(report, engines)


def _imported(report: Report, position: int) -> Section:
    engines = report.by_engine[position]
    return Section(
        f"{engines[0].engine} {version_of(engines)}",
        (*_tables(report, engines), *_latencies(zip(report.variants, engines, strict=True))),
    )


def _built(report: Report, engines: Sequence[EngineResult]) -> Section:
    """What is known of an engine from its plan alone."""
    engine = engines[0]
    not_run = engine.cannot_run and not engine.imported
    reason = f"not run: {engine.cannot_run}" if not_run else "its plan"
    heads = columns(
        Column("variant"), "honoured", "broken", "kernels", MOVED, "engine MB", "build s"
    )
    rows = tuple(
        Row(
            cells(
                variant.name,
                f"{found.honoured}/{len(found.verdicts)}" if found.verdicts else None,
                broken(found),
                None if found.kernels is None else str(found.kernels),
                moved_cells(found.moved)[-1],
                megabytes(found.engine_bytes),
                seconds(found.build_seconds),
            )
        )
        for variant, found in zip(report.variants, engines, strict=True)
    )
    told = [
        item
        for variant, found in zip(report.variants, engines, strict=True)
        for item in _unhonoured(variant.name, found)
    ]
    counts = [
        f"{variant.name} {len(found.findings)}"
        for variant, found in zip(report.variants, engines, strict=True)
        if found.findings
    ]
    listed = (
        [Paragraph(f"findings on {engine.engine}, all in report.md: {', '.join(counts)}")]
        if counts
        else []
    )
    findings = [
        item
        for variant, found in zip(report.variants, engines, strict=True)
        if variant.kind == "recipe"
        for item in findings_items(found.findings, most=2, depth=1)
    ]
    return Section(
        f"{engine.engine} {version_of(engines)}, {built_for(report, engines)}, {reason}",
        (
            Table(heads, rows, spaced=True).known,
            *_parts_moved(report, engines),
            *told,
            *listed,
            *findings,
        ),
    )


def _parts_moved(report: Report, engines: Sequence[EngineResult]) -> Iterator[Section]:
    """What kernels move, by what it is of."""
    rows = [
        Row(cells(variant.name, *moved_cells(found.moved)))
        for variant, found in zip(report.variants, engines, strict=True)
    ]
    if any(found.moved and found.moved.activations is not None for found in engines):
        heads = (Column(f"{MOVED} of"), *moved_heads())
        yield Section("", (Table(heads, tuple(rows), spaced=True).known,))


def _unhonoured(variant: str, engine: EngineResult) -> Iterator[Item]:
    """The rows that an engine does not honour, and those of which it is not known."""
    bad = [v for v in engine.verdicts if v.verdict in ("degraded", "wrong")]
    for verdict in bad[:_LISTED]:
        told = f"{variant}: {verdict.site} {verdict.verdict}: {verdict.detail} ({verdict.where})"
        yield Item(told, 1, sense=SENSES[verdict.verdict])
    if len(bad) > _LISTED:
        yield Item(f"{variant}: and {len(bad) - _LISTED} more", 1, sense="bad")
    unknown = tuple(v.site for v in engine.verdicts if v.verdict == "unknown")
    if unknown:
        yield Item(f"{variant}: not known of {len(unknown)}:", 1, unknown)


def _reading(report: Report) -> Iterator[Block]:
    """The sentences below the table."""
    metric = _headline_metric(report)
    of_all = zip(report.variants, report.main_engine, strict=True)
    shown = [(variant, engine) for variant, engine in of_all if variant.name != "fp32"]
    same = [
        named(variant, engine)
        for variant, engine in shown
        if metric in engine.metrics and same_as_fp32(engine)
    ]
    if same and not report.broken_baseline:
        yield Paragraph(f"= no measurable difference from fp32: {', '.join(same)}")
    compared = [engine for variant, engine in shown if variant.same_as is None]
    yield from map(Paragraph, false_differences(compared))
    yield from map(Paragraph, provable(report))
    yield from _latencies(shown)
    yield from map(Paragraph, gpu_sentences(report))
    yield from map(Paragraph, agreement_sentences(report))


def _latencies(shown: Iterable[tuple[VariantResult, EngineResult]]) -> Iterator[Block]:
    """Latencies against fp32's, with their intervals."""
    found = [(named(variant, engine), engine.latency) for variant, engine in shown]
    found = [(name, latency) for name, latency in found if any("fp32" in x.vs for x in latency)]
    if not found:
        return
    batches = sorted({each.batch for _, latency in found for each in latency})
    yield Paragraph("latency as a multiple of fp32's (95 %; = no measurable difference):")
    rows = []
    for name, latency in found:
        ratios = {each.batch: each.vs.get("fp32") for each in latency}
        told = [
            f"{ratio_text(r)}{' =' if r.low <= 1 <= r.high else ''}"
            if (r := ratios.get(b))
            else None
            for b in batches
        ]
        rows.append(Row(cells(name, *told)))
    heads = (Column("variant"), *(Column(f"batch {batch}") for batch in batches))
    yield Table(heads, tuple(rows), spaced=True)


def _limit(limit: LimitResult) -> Paragraph:
    told = f"limit {limit.limit} <= {limit.bound:g} ({limit.variant}): {limit.verdict}; {limit.why}"
    return Paragraph(told, SENSES[limit.verdict])
