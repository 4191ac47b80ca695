"""A report as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator

from granplugin.report.build import main_engine
from granplugin.report.findings_text import finding_lines
from granplugin.report.model import Interval, MetricValue, Report
from granplugin.report.terminal import agreement_sentences, int8_column, made, overrides


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
    """A plan that was read, of an engine that was not run."""
    first = report.variants[0].engines[position]
    yield ""
    yield f"## {first.engine} {first.version}"
    yield ""
    yield f"Built for batch {report.batch_size} and audited, not run: {first.cannot_run}."
    yield ""
    yield "| variant | rows honoured | degraded | kernels | MB moved | engine MB | build s |"
    yield "|---" * 7 + "|"
    for variant in report.variants:
        found = variant.engines[position]
        degraded = sum(v.verdict in ("degraded", "wrong") for v in found.verdicts)
        moved = "" if found.traffic_bytes is None else f"{found.traffic_bytes / 1e6:.2f}"
        cells = [
            variant.name, f"{found.honoured} of {len(found.verdicts)}", str(degraded),
            str(found.kernels), moved, f"{found.engine_bytes / 1e6:.2f}",
            f"{found.build_seconds:.1f}",
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
            if v.verdict in ("degraded", "wrong"):
                yield ""
                yield f"{variant.name}: {v.site} {v.verdict}: {v.detail} ({v.where})"


def _engine(report: Report, name: str, position: int) -> Iterator[str]:
    first = report.variants[-1].engines[position]
    if first.cannot_run:
        yield from _built(report, position)
        return
    batches = [latency.batch for latency in first.latency]
    columns = ["variant"]
    for metric, value in first.metrics.items():
        columns.append(f"{metric} {value.unit}".strip())
        columns += [f"{metric} against fp32"] if "fp32" in value.vs else []
    columns += [f"ms, batch {batch}" for batch in batches]
    columns += [f"against fp32, batch {batch}" for batch in batches]
    columns += ["ONNX MB", "engine MB", "int8 layers", "scales"]
    yield ""
    yield f"## {name} {first.version}"
    yield ""
    yield "| " + " | ".join(columns) + " |"
    yield "|---" * len(columns) + "|"
    for variant in report.variants:
        result = variant.engines[position]
        cells = [variant.name]
        for metric, value in first.metrics.items():
            found = result.metrics.get(metric)
            cells.append(_value(found))
            if "fp32" in value.vs:
                cells.append(_difference(found.vs.get("fp32")) if found else "")
        cells += [f"{x.median_ms:.3f} (p90 {x.p90_ms:.3f})" for x in result.latency]
        for latency in result.latency:
            ratio = latency.vs.get("fp32")
            cells.append(f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio else "")
        cells += [
            f"{variant.onnx_bytes / 1e6:.3f}",
            f"{result.engine_bytes / 1e6:.3f}",
            int8_column(result),
            str(variant.scales),
        ]
        yield "| " + " | ".join(cells) + " |"
    if not batches:
        yield ""
        yield f"{name} is the numerical reference (optimizations off); its latency says nothing."
    else:
        main = main_engine(report.variants[0])
        spread = max(x.spread for v in report.variants for e in v.engines for x in e.latency)
        yield ""
        yield (
            f"Latency: median of {main.latency[0].rounds} interleaved rounds; largest spread "
            f"(interquartile range over median) {100 * spread:.0f} %."
        )


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
