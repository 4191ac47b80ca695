"""A report as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator

from granplugin.report.findings_text import finding_lines
from granplugin.report.schema.run import Interval, MetricValue, Report
from granplugin.report.terminal import (
    agreement_sentences,
    gpu_sentences,
    imported_version,
    int8_column,
    made,
    moved,
    overrides,
)


def to_markdown(report: Report) -> str:
    """The whole report: every engine's table, overrides, limits, notes, machine."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield f"# {report.name}"
    yield ""
    yield (
        f"{', '.join(report.recipes)}; {report.created}; granplugin {report.granplugin}. "
        f"Calibrated on {report.calibration_samples} samples, measured on "
        f"{report.evaluation_samples} ({report.evaluated_on} data)."
    )
    packages = ", ".join(f"{name} {version}" for name, version in report.machine.packages.items())
    yield (
        f"Machine: {report.machine.processor}, {report.machine.cores} cores, "
        f"{report.machine.system}, Python {report.machine.python}, {packages}."
    )
    for position, engine in enumerate(result.engine for result in report.variants[0].engines):
        yield from _engine(report, engine, position)
    yield ""
    if report.smallest_provable_drop is not None:
        yield (
            f"The smallest drop that {report.evaluation_samples} samples can prove: "
            f"{report.smallest_provable_drop:.2f} points."
        )
    for sentence in gpu_sentences(report):
        yield f"{sentence}."
    yield from agreement_sentences(report)
    for lines in (overrides(report) if report.overrides else (), made(report)):
        if told := list(lines):
            yield from ("", "```text", *told, "```")
    if report.limits:
        yield ""
        yield "| limit | variant | bound | verdict | |"
        yield "|---|---|---|---|---|"
        for limit in report.limits:
            cells = [limit.limit, limit.variant, f"{limit.bound:g}", limit.verdict, limit.why]
            yield f"| {' | '.join(cells)} |"
    for note in report.notes:
        yield ""
        yield f"Note: {note}"


def _built(report: Report, position: int) -> Iterator[str]:
    """An engine that was not run."""
    first = report.variants[0].engines[position]
    yield ""
    yield f"## {first.engine} {first.version}"
    yield ""
    yield f"Built for batch {report.batch_size} and audited, not run: {first.cannot_run}."
    yield from _made_of_rows(report, position)


def _made_of_rows(report: Report, position: int) -> Iterator[str]:
    """What an engine's plan says."""
    yield ""
    yield "| variant | rows honoured | degraded | kernels | MB moved | engine MB | build s |"
    yield "|---" * 7 + "|"
    for variant in report.variants:
        found = variant.engines[position]
        degraded = sum(v.verdict in ("degraded", "wrong") for v in found.verdicts)
        cells = [
            variant.name,
            f"{found.honoured} of {len(found.verdicts)}" if found.verdicts else "",
            str(degraded) if found.verdicts else "",
            "" if found.kernels is None else str(found.kernels),
            moved(found, ""),
            "" if found.engine_bytes is None else f"{found.engine_bytes / 1e6:.2f}",
            "" if found.build_seconds is None else f"{found.build_seconds:.1f}",
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"
    for variant in report.variants:
        found = variant.engines[position].findings
        if found:
            yield ""
            yield f"{variant.name}: {len(found)} findings."
            yield ""
            yield "```text"
            yield from finding_lines(found)
            yield "```"
    for variant in report.variants:
        for v in variant.engines[position].verdicts:
            if v.verdict != "honoured":
                yield ""
                yield f"{variant.name}: {v.site} {v.verdict}: {v.detail} ({v.where})"


def _engine(report: Report, name: str, position: int) -> Iterator[str]:
    results = [variant.engines[position] for variant in report.variants]
    last = results[-1]
    if last.cannot_run and not last.imported:
        yield from _built(report, position)
        return
    latencies = [latency for result in results for latency in result.latency]
    batches = sorted({latency.batch for latency in latencies})
    measured = {name: value for result in results for name, value in result.metrics.items()}
    columns = ["variant"]
    for metric, value in measured.items():
        columns.append(f"{metric} {value.unit}".strip())
        columns += [f"{metric} against fp32"] if "fp32" in value.vs else []
    columns += [f"ms, batch {batch}" for batch in batches]
    columns += [f"against fp32, batch {batch}" for batch in batches]
    columns += ["ONNX MB", "engine MB", "int8 layers", "scales"]
    yield ""
    yield f"## {name} {imported_version(results) if last.imported else last.version}"
    yield ""
    yield "| " + " | ".join(columns) + " |"
    yield "|---" * len(columns) + "|"
    for variant, result in zip(report.variants, results, strict=True):
        cells = [variant.name]
        for metric, value in measured.items():
            found = result.metrics.get(metric)
            cells.append(_value(found))
            if "fp32" in value.vs:
                cells.append(_difference(found.vs.get("fp32")) if found else "")
        own = {latency.batch: latency for latency in result.latency}
        for batch in batches:
            x = own.get(batch)
            cells.append(f"{x.median_ms:.3f} (p90 {x.p90_ms:.3f})" if x else "")
        for batch in batches:
            ratio = own[batch].vs.get("fp32") if batch in own else None
            cells.append(f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio else "")
        cells += [
            f"{variant.onnx_bytes / 1e6:.3f}",
            "" if result.engine_bytes is None else f"{result.engine_bytes / 1e6:.3f}",
            int8_column(result),
            str(variant.scales),
        ]
        yield "| " + " | ".join(cells) + " |"
    if batches:
        yield ""
        yield (
            f"Latency: median of {latencies[0].rounds} interleaved rounds; largest spread "
            f"(interquartile range over median) {100 * max(x.spread for x in latencies):.0f} %."
        )
    elif not last.imported:
        yield ""
        yield f"{name} is the numerical reference (optimizations off); its latency says nothing."
    if last.imported:
        yield from _made_of_rows(report, position)


def _value(found: MetricValue | None) -> str:
    if found is None:
        return ""
    value = f"{found.value:.2f}" if math.isfinite(found.value) else "equal"
    return value if found.low is None else f"{value} [{found.low:.2f}, {found.high:.2f}]"


def _difference(interval: Interval | None) -> str:
    if interval is None:
        return ""
    if interval.low is None:
        return f"{interval.value:+.2f} ({interval.verdict})"
    return f"{interval.value:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}] {interval.verdict}"
