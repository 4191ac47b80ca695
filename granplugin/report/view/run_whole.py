"""A run as a document: every engine's table with every metric, overrides, limits, notes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from granplugin.engines import REFERENCE
from granplugin.report.schema.run import EngineResult, Interval, MetricValue, Report
from granplugin.report.view.elements import (
    Block,
    Column,
    Item,
    Paragraph,
    Row,
    Section,
    Table,
    cells,
    columns,
)
from granplugin.report.view.findings import findings_items
from granplugin.report.view.metric_figures import bounds, difference, figure, spec_of
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
    seconds,
    version_of,
    warnings,
)
from granplugin.report.view.troubles import troubles


def run_whole_view(report: Report) -> Section:
    """All that report.json has to be read by people."""
    packages = ", ".join(f"{name} {version}" for name, version in report.machine.packages.items())
    sentences = [*provable(report), *(f"{told}." for told in gpu_sentences(report))]
    return Section(
        report.name,
        (
            Paragraph(
                f"{', '.join(report.recipes)}; {report.created}; granplugin {report.granplugin}. "
                f"Calibrated on {report.calibration_samples} samples, measured on "
                f"{report.evaluation_samples} ({report.evaluated_on} data)."
            ),
            Paragraph(
                f"Machine: {report.machine.processor}, {report.machine.cores} cores, "
                f"{report.machine.system}, Python {report.machine.python}, {packages}."
            ),
            *troubles(report),
            *warnings(report),
            *(_engine(report, engines) for engines in report.by_engine),
            *map(Paragraph, [*sentences, *agreement_sentences(report)]),
            *covered(report, listed=True),
            *ran(report),
            *overrides(report),
            *made(report),
            *_limits(report),
            *(Paragraph(f"Note: {note}") for note in report.notes),
        ),
    )


def _engine(report: Report, engines: Sequence[EngineResult]) -> Section:
    last = engines[-1]
    title = f"{last.engine} {version_of(engines) if last.imported else last.version}"
    if last.cannot_run and not last.imported:
        why = f"Built for {built_for(report, engines)} and audited, not run: {last.cannot_run}."
        return Section(title, (Paragraph(why), *_made_of_rows(report, engines)))
    if all(each.refused is not None for each in engines):
        return Section(title, (Paragraph("It refused every file; the reasons are above."),))
    rows = _made_of_rows(report, engines) if last.imported else ()
    own = [e for v, e in zip(report.variants, engines, strict=True) if v.same_as is None]
    differences = map(Paragraph, false_differences(own))
    outputs = _of_outputs(report, engines)
    return Section(
        title, (_figures(report, engines), *outputs, *differences, *_timing(engines), *rows)
    )


def _of_outputs(report: Report, engines: Sequence[EngineResult]) -> Iterator[Table]:
    """The SQNR of each output, where there are several."""
    found = [engine.metrics.get("sqnr_db") for engine in engines]
    names = list(dict.fromkeys(name for each in found if each for name in each.outputs))
    if names:
        rows = tuple(
            Row(cells(named(variant, engine), *(figure(each.outputs[n], ".2f") for n in names)))
            for variant, engine, each in zip(report.variants, engines, found, strict=True)
            if each and each.outputs
        )
        yield Table(columns(Column("SQNR in dB of"), *names), rows)


def _figures(report: Report, engines: Sequence[EngineResult]) -> Table:
    batches = sorted({latency.batch for engine in engines for latency in engine.latency})
    measured = {name: value for engine in engines for name, value in engine.metrics.items()}
    heads = []
    specs = {
        name: spec_of(engine.metrics[name] for engine in engines if name in engine.metrics)
        for name in measured
    }
    for metric, value in measured.items():
        heads += [f"{metric} {value.unit}".strip(), f"{metric} against fp32"]
    heads += [f"ms, batch {batch}" for batch in batches]
    heads += [f"against fp32, batch {batch}" for batch in batches]
    heads += ["ONNX MB", "engine MB", "int8 layers", "native in float", "scales"]
    rows = []
    for variant, engine in zip(report.variants, engines, strict=True):
        told = []
        for at, metric in enumerate(measured):
            found = engine.metrics.get(metric)
            against, spec = found.vs.get("fp32") if found else None, specs[metric]
            refused = engine.refused is not None and at == 0
            told += ["refused" if refused else _value(found, spec), _difference(against, spec)]
        own = {latency.batch: latency for latency in engine.latency}
        timed = [own.get(batch) for batch in batches]
        told += [f"{x.median_ms:.3f} (p90 {x.p90_ms:.3f})" if x else None for x in timed]
        told += [ratio_text(x.vs.get("fp32")) if x else None for x in timed]
        told += [megabytes(variant.onnx_bytes, 3), megabytes(engine.engine_bytes, 3)]
        told += [int8_layers(engine), broken(engine), str(variant.scales)]
        rows.append(Row(cells(named(variant, engine), *told)))
    return Table(columns(Column("variant"), *heads), tuple(rows)).known


def _timing(engines: Sequence[EngineResult]) -> Iterator[Paragraph]:
    latencies = [latency for engine in engines for latency in engine.latency]
    if latencies:
        spread = 100 * max(latency.iqr for latency in latencies)
        yield Paragraph(
            f"Latency: median of {latencies[0].rounds} interleaved rounds; largest spread "
            f"(interquartile range over median) {spread:.0f} %."
        )
    elif engines[-1].engine == REFERENCE and not engines[-1].imported:
        yield Paragraph(
            f"{REFERENCE} is the numerical reference (optimizations off); its latency says nothing."
        )


def _made_of_rows(report: Report, engines: Sequence[EngineResult]) -> Iterator[Block]:
    """What an engine's plan says."""
    moved = [f"{MOVED}: {head.head}" for head in moved_heads()]
    heads = columns(
        Column("variant"), "rows honoured", "degraded", "native in float", "kernels", *moved,
        "engine MB", "build s",
    )  # fmt: skip
    variants = list(zip((variant.name for variant in report.variants), engines, strict=True))
    yield Table(heads, tuple(_plan_row(name, engine) for name, engine in variants)).known
    for name, engine in variants:
        if engine.findings:
            count = len(engine.findings)
            yield Paragraph(f"{name}: {count} finding{'s' if count > 1 else ''}.")
            yield from findings_items(engine.findings)
    yield from (
        Item(f"{name}: {v.site} {v.verdict}: {v.detail} ({v.where})")
        for name, engine in variants
        for v in engine.verdicts
        if v.verdict != "honoured"
    )


def _plan_row(name: str, engine: EngineResult) -> Row:
    told, count = engine.verdicts, len(engine.verdicts)
    degraded = sum(v.verdict in ("degraded", "wrong") for v in told)
    return Row(
        cells(
            name,
            f"{engine.honoured} of {count}" if told else None,
            str(degraded) if told else None,
            broken(engine),
            None if engine.kernels is None else str(engine.kernels),
            *moved_cells(engine.moved),
            megabytes(engine.engine_bytes),
            seconds(engine.build_seconds),
        )
    )


def _limits(report: Report) -> Iterator[Table]:
    if not report.limits:
        return
    heads = (Column("limit"), Column("variant"), Column("bound", "figure"), Column("verdict"))
    yield Table(
        (*heads, Column("")),
        tuple(
            Row(cells(each.limit, each.variant, f"{each.bound:g}", each.verdict, each.why))
            for each in report.limits
        ),
    )


def _value(found: MetricValue | None, spec: str) -> str | None:
    if found is None:
        return None
    value = figure(found.value, spec)
    if found.low is None or found.high is None:
        return value
    return f"{value} {bounds(found.low, found.high, spec)}"


def _difference(interval: Interval | None, spec: str) -> str | None:
    if interval is None:
        return None
    verdict = f"({interval.verdict})" if interval.low is None else interval.verdict
    return f"{difference(interval, spec)} {verdict}"
