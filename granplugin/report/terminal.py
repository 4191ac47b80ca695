"""A report as text of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from granplugin.report.findings_text import finding_lines
from granplugin.report.schema.run import (
    ClockValue,
    EngineResult,
    Override,
    Ratio,
    Report,
    VariantResult,
)

WIDTH = 80
EngineOf = Callable[[VariantResult], EngineResult]
"""Which of a variant's engines is shown."""


def render(report: Report) -> Group:
    """The report for a terminal: the table, then what the numbers need to be read rightly."""
    parts: list = [_heading(report), "", _table(report, lambda variant: variant.main_engine), ""]
    for position in range(len(report.variants[0].engines)):
        parts += _engine(report, position)
    parts += [Text(line, overflow="fold") for line in _reading(report)]
    parts += [Text(line, style="yellow", overflow="fold") for line in _broken(report)]
    if found := list(made(report)):
        parts += ["", *[Text(line, overflow="fold") for line in found]]
    if report.overrides:
        parts += ["", *[Text(line, overflow="fold") for line in overrides(report)]]
    if report.notes:
        parts += ["", *[Text(f"note: {note}", overflow="fold") for note in report.notes]]
    for limit in report.limits:
        style = {"met": "green", "missed": "red", "cannot tell": "yellow"}[limit.verdict]
        said = f"limit {limit.limit} <= {limit.bound:g} ({limit.variant})"
        line = f"{said}: {limit.verdict}; {limit.why}"
        parts.append(Text(line, style=style, overflow="fold"))
    return Group(*parts)


def _engine(report: Report, position: int) -> Iterator[Text | Table | str]:
    """One engine beside the main one: what was imported of it, and its plan."""

    def engine_of(variant: VariantResult) -> EngineResult:
        return variant.engines[position]

    engines = [engine_of(variant) for variant in report.variants]
    if engines[0].imported and any(engine.metrics or engine.latency for engine in engines):
        title = f"{engines[0].engine} {imported_version(engines)}"
        yield Text(title, style="bold", overflow="fold")
        yield _table(report, engine_of)
        for line in latency_lines(report.variants, engine_of):
            yield Text(line, overflow="fold")
        yield ""
    if any(engine.kernels is not None for engine in engines):
        yield from _built(report, position)
        yield ""


def imported_version(engines: Sequence[EngineResult]) -> str:
    """The version of an imported engine, where any variant's is known."""
    return max((engine.version for engine in engines), key=len)


def headline_metric(report: Report) -> str | None:
    """The metric of the table's accuracy column."""
    names = list(report.variants[-1].main_engine.metrics)
    return next((name for name in ("top1", "top5") if name in names), names[0] if names else None)


def _heading(report: Report) -> Text:
    engine = report.variants[0].main_engine
    source = "" if report.evaluated_on == "evaluation" else " (the calibration data)"
    low = report.variants[-1].precision
    return Text(
        f"{report.name}: {report.evaluation_samples} samples{source}, "
        f"{engine.engine} {engine.version}, {report.machine.cores} cores"
        + (f", {low} where not quantized" if low != "fp32" else ""),
        style="bold",
    )


def _table(report: Report, engine_of: EngineOf) -> Table:
    metric = headline_metric(report)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, width=WIDTH)
    engines = [engine_of(variant) for variant in report.variants]
    batches = sorted({latency.batch for engine in engines for latency in engine.latency})
    unit = report.variants[-1].main_engine.metrics[metric].unit if metric else ""
    table.add_column("variant", ratio=1, overflow="fold")
    table.add_column(f"{metric} {unit}".strip() if metric else "", justify="right", no_wrap=True)
    table.add_column("against fp32 (95 %)", justify="right", no_wrap=True)
    table.add_column("SQNR", justify="right", no_wrap=True)
    for batch in batches:
        table.add_column(f"ms b{batch}", justify="right", no_wrap=True)
    table.add_column("MB", justify="right", no_wrap=True)
    table.add_column("int8", justify="right", no_wrap=True)
    for variant, found in zip(report.variants, engines, strict=True):
        times = {latency.batch: f"{latency.median_ms:.2f}" for latency in found.latency}
        table.add_row(
            Text(variant.name, style="bold" if variant.kind == "recipe" else ""),
            _value(found, metric),
            _against(found, metric),
            _sqnr(found),
            *[times.get(batch, "-") for batch in batches],
            f"{variant.onnx_bytes / 1e6:.2f}",
            int8_column(found),
        )
    return table


def _built(report: Report, position: int) -> Iterator[Text | Table]:
    """What is known of an engine from its plan alone."""
    engines = [variant.engines[position] for variant in report.variants]
    first = engines[0]
    not_run = first.cannot_run and not first.imported
    reason = f"not run: {first.cannot_run}" if not_run else "its plan"
    version = imported_version(engines) if first.imported else first.version
    yield Text(
        f"{first.engine} {version}, batch {report.batch_size}, {reason}",
        style="bold",
        overflow="fold",
    )
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("variant", "honoured", "kernels", "MB moved", "engine MB", "build s"):
        table.add_column(name, justify="left" if name == "variant" else "right")
    for variant in report.variants:
        found = variant.engines[position]
        table.add_row(
            variant.name,
            f"{found.honoured}/{len(found.verdicts)}" if found.verdicts else "-",
            "-" if found.kernels is None else str(found.kernels),
            moved(found, "-"),
            "-" if found.engine_bytes is None else f"{found.engine_bytes / 1e6:.2f}",
            "-" if found.build_seconds is None else f"{found.build_seconds:.1f}",
        )
    yield table
    for variant in report.variants:
        bad = [v for v in variant.engines[position].verdicts if v.verdict in ("degraded", "wrong")]
        for verdict in bad[:5]:
            told = f"{variant.name}: {verdict.site} {verdict.verdict}: {verdict.detail}"
            yield Text(f"  {told} ({verdict.where})", style="yellow", overflow="fold")
        if len(bad) > 5:
            yield Text(f"  {variant.name}: and {len(bad) - 5} more", style="yellow")
        unknown = [v.site for v in variant.engines[position].verdicts if v.verdict == "unknown"]
        if unknown:
            head = f"  {variant.name}: not known of {len(unknown)}: "
            yield Text(head + _names(unknown, WIDTH - len(head)), overflow="fold")
    counts = [(v.name, len(v.engines[position].findings)) for v in report.variants]
    told = ", ".join(f"{name} {count}" for name, count in counts if count)
    if told:
        yield Text(f"findings on {first.engine}, all in report.md: {told}", overflow="fold")
    for variant in report.variants:
        if variant.kind == "recipe":
            found = variant.engines[position].findings
            yield from map(Text, finding_lines(found, most=2, indent="  "))


def _broken(report: Report) -> Iterator[str]:
    """Rows an engine that was run computes in float, though it has kernels for them."""
    for variant in report.variants:
        for engine in variant.engines:
            if engine.broken_promises and engine.kernels is None and variant.kind != "baseline":
                sites = [verdict.site for verdict in engine.broken_promises]
                head = f"{engine.engine} ran {len(sites)} rows of {variant.name} in float: "
                yield head + _names(sites, WIDTH - len(head))


def moved(engine: EngineResult, nothing: str) -> str:
    """MB that its kernels move; `nothing` where there is no plan, unknown where sizes are open."""
    if engine.kernels is None:
        return nothing
    return "unknown" if engine.traffic_bytes is None else f"{engine.traffic_bytes / 1e6:.1f}"


def _value(engine: EngineResult, metric: str | None) -> str:
    found = engine.metrics.get(metric) if metric else None
    return f"{found.value:.2f}" if found else "-"


def _against(engine: EngineResult, metric: str | None) -> Text:
    found = engine.metrics.get(metric) if metric else None
    interval = found.vs.get("fp32") if found else None
    if interval is None:
        own = found and found.low is not None
        return Text(f"[{found.low:.2f}, {found.high:.2f}]" if own else "-")
    style = {"worse": "red", "better": "green"}.get(interval.verdict, "")
    if interval.low is None:
        return Text(f"{interval.value:+.2f}", style=style)
    mark = " =" if interval.verdict == "no measurable difference" else ""
    return Text(
        f"{interval.value:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]{mark}", style=style
    )


def _sqnr(engine: EngineResult) -> str:
    found = engine.metrics.get("sqnr_db")
    if found is None:
        return "-"
    return f"{found.value:.1f}" if math.isfinite(found.value) else "equal"


def int8_column(engine: EngineResult) -> str:
    """Weighted layers the engine ran in INT8, of all; a dash where it does not tell."""
    return f"{engine.int8_layers}/{len(engine.layers)}" if engine.layers else "-"


def _reading(report: Report) -> Iterator[str]:
    """The sentences below the table."""
    metric = headline_metric(report)
    shown = [v for v in report.variants if v.name != "fp32"]
    same = [
        v.name
        for v in shown
        if metric in v.main_engine.metrics
        and (interval := v.main_engine.metrics[metric].vs.get("fp32"))
        and interval.verdict == "no measurable difference"
    ]
    if same:
        yield f"=  no measurable difference from fp32: {', '.join(same)}"
    if report.smallest_provable_drop is not None:
        yield (
            f"The smallest drop that {report.evaluation_samples} samples can prove: "
            f"{report.smallest_provable_drop:.2f} points."
        )
    yield from latency_lines(shown, lambda variant: variant.main_engine)
    yield from gpu_sentences(report)
    yield from agreement_sentences(report)


def latency_lines(shown: Sequence[VariantResult], engine_of: EngineOf) -> Iterator[str]:
    """Each variant's latency as a multiple of fp32's, with its interval."""
    found = [(variant.name, engine_of(variant).latency) for variant in shown]
    found = [(name, latency) for name, latency in found if any("fp32" in x.vs for x in latency)]
    if not found:
        return
    yield "latency as a multiple of fp32's (95 %; = no measurable difference):"
    width = max(len(name) for name, _ in found)
    for name, latencies in found:
        ratios = [(each.batch, each.vs["fp32"]) for each in latencies if "fp32" in each.vs]
        yield f"  {name:<{width}}  " + "  ".join(
            f"batch {batch} {r.value:.2f} [{r.low:.2f}, {r.high:.2f}]{_same(r)}"
            for batch, r in ratios
        )


def gpu_sentences(report: Report) -> Iterator[str]:
    """What latencies on a GPU need besides: CUDA graphs, the builds' spread, clocks."""
    for position, engine in enumerate(report.variants[0].engines):
        of = {v.name: v.engines[position].latency for v in report.variants}
        for index, timed in enumerate(engine.latency):
            if not timed.clocks:
                continue
            graphs = {name: values[index].graph_ms for name, values in of.items()}
            told = [f"{name} {ms:.3f}" for name, ms in graphs.items() if ms is not None]
            yield (
                f"{engine.engine}, batch {timed.batch}, ms as a CUDA graph: "
                f"{', '.join(told) or 'none could be captured, log.txt says why'}"
            )
            yield (
                f"{engine.engine}, batch {timed.batch}: two builds of one network differ by up to "
                f"{100 * timed.build_spread:.1f} %, which the intervals include; GPU before and "
                f"after: {'; '.join(map(_clocks, timed.clocks))}"
            )


def _clocks(read: ClockValue) -> str:
    told = [(read.sm_mhz, " MHz"), (read.memory_mhz, " MHz memory"), (read.temperature_c, " C")]
    return ", ".join(f"{value:.0f}{unit}" for value, unit in told if value is not None)


def _same(ratio: Ratio) -> str:
    return " =" if ratio.low <= 1 <= ratio.high else ""


def agreement_sentences(report: Report) -> Iterator[str]:
    """How many values were compared, and what differed."""
    checked = [v.agreement for v in report.variants if v.agreement]
    if checked:
        values = sum(a.values for a in checked)
        differs = sum(a.oracle_differs for a in checked)
        modelopt = sum(a.modelopt_differs for a in checked)
        yield (
            f"Agreement over {values:,} values: ONNX Runtime differs from the numpy "
            f"oracle in {differs}, modelopt in {modelopt} (rounding ties)."
        )
        same = [a.network_agreement for a in checked if a.network_agreement is not None]
        quality = min(a.network_sqnr_db for a in checked)
        yield (
            "Whole networks against modelopt's fake-quant, "
            f"{checked[0].network_samples} samples: SQNR at least {quality:.0f} dB"
            + (f", same class for at least {min(same):.0f} %." if same else ".")
        )


def overrides(report: Report) -> Iterator[str]:
    """The sites where each recipe and variant leaves the defaults, by rule."""
    yield f"overrides of {report.defaults}:"
    by_rule: dict[tuple[str, str, str], dict[tuple[str, str, str], list[Override]]] = {}
    for o in report.overrides:
        changes = by_rule.setdefault((o.variant, o.rule, o.where), {})
        changes.setdefault((o.role, o.default, o.now), []).append(o)
    for (variant, rule, where), changes in by_rule.items():
        yield f"  {variant}: {rule} ({where})"
        for (role, default, now), sites in changes.items():
            head = f"    {role}: {default} -> {now}"
            yield f"{head}, {_names([site.layer for site in sites], WIDTH - len(head) - 2)}"
            floats = [site.layer for site in sites if site.ran == "float" and now != "float"]
            if floats:
                head = "      of these the engine ran in float: "
                yield head + _names(floats, WIDTH - len(head))


def made(report: Report) -> Iterator[str]:
    """What engines got in place of rows they do not have, by what was made of them."""
    for variant in report.variants:
        for engine in variant.engines:
            sites: dict[str, list[str]] = {}
            for site, what in engine.made.items():
                sites.setdefault(what, []).append(site)
            if sites:
                yield f"{variant.name} on {engine.engine}, made of what it does not have:"
            for what, of_what in sites.items():
                what += " (float on the device, accuracy only)" if what == "simulated" else ""
                yield f"  {what}: {_names(of_what, WIDTH - len(what) - 4)}"


def _names(names: Sequence[str], width: int) -> str:
    """As many names as fit, and how many more there are."""
    if len(names) == 1:
        return names[0]
    for shown in range(min(len(names), 3), 0, -1):
        more = len(names) - shown
        text = ", ".join(names[:shown]) + (f" and {more} more" if more else "")
        if len(text) <= width:
            return text
    return f"{len(names)} layers"
