"""A report as text of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from granplugin.report.build import main_engine
from granplugin.report.findings_text import finding_lines
from granplugin.report.model import EngineResult, Override, Ratio, Report, VariantResult

WIDTH = 80


def render(report: Report) -> Group:
    """The report for a terminal: the table, then what the numbers need to be read rightly."""
    parts: list = [_heading(report), "", _table(report), ""]
    for position, result in enumerate(report.variants[0].engines):
        if result.kernels is not None:
            parts += [*_built(report, position), ""]
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


def headline_metric(report: Report) -> str | None:
    """The metric of the table's accuracy column."""
    names = list(main_engine(report.variants[-1]).metrics)
    return next((name for name in ("top1", "top5") if name in names), names[0] if names else None)


def _heading(report: Report) -> Text:
    engine = main_engine(report.variants[0])
    source = "" if report.evaluated_on == "evaluation" else " (the calibration data)"
    low = report.variants[-1].precision
    return Text(
        f"{report.name}: {report.evaluation_samples} samples{source}, "
        f"{engine.engine} {engine.version}, {report.machine.cores} cores"
        + (f", {low} where not quantized" if low != "fp32" else ""),
        style="bold",
    )


def _table(report: Report) -> Table:
    metric = headline_metric(report)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, width=WIDTH)
    engine = main_engine(report.variants[0])
    batches = [latency.batch for latency in engine.latency]
    unit = main_engine(report.variants[-1]).metrics[metric].unit if metric else ""
    table.add_column("variant", ratio=1, overflow="fold")
    table.add_column(f"{metric} {unit}".strip() if metric else "", justify="right", no_wrap=True)
    table.add_column("against fp32 (95 %)", justify="right", no_wrap=True)
    table.add_column("SQNR", justify="right", no_wrap=True)
    for batch in batches:
        table.add_column(f"ms b{batch}", justify="right", no_wrap=True)
    table.add_column("MB", justify="right", no_wrap=True)
    table.add_column("int8", justify="right", no_wrap=True)
    for variant in report.variants:
        found = main_engine(variant)
        table.add_row(
            Text(variant.name, style="bold" if variant.kind == "recipe" else ""),
            _value(found, metric),
            _against(found, metric),
            _sqnr(found),
            *[f"{latency.median_ms:.2f}" for latency in found.latency],
            f"{variant.onnx_bytes / 1e6:.2f}",
            int8_column(found),
        )
    return table


def _built(report: Report, position: int) -> Iterator[Text | Table]:
    """What is known of an engine from its plan alone."""
    first = report.variants[0].engines[position]
    reason = f"not run: {first.cannot_run}" if first.cannot_run else "its plan"
    yield Text(
        f"{first.engine} {first.version}, batch {report.batch_size}, {reason}",
        style="bold",
        overflow="fold",
    )
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("variant", "honoured", "kernels", "MB moved", "engine MB", "build s"):
        table.add_column(name, justify="left" if name == "variant" else "right")
    for variant in report.variants:
        found = variant.engines[position]
        moved = "-" if found.traffic_bytes is None else f"{found.traffic_bytes / 1e6:.1f}"
        table.add_row(
            variant.name,
            f"{found.honoured}/{len(found.verdicts)}" if found.verdicts else "-",
            str(found.kernels),
            moved,
            f"{found.engine_bytes / 1e6:.2f}",
            f"{found.build_seconds:.1f}",
        )
    yield table
    for variant in report.variants:
        bad = [v for v in variant.engines[position].verdicts if v.verdict in ("degraded", "wrong")]
        for verdict in bad[:5]:
            told = f"{variant.name}: {verdict.site} {verdict.verdict}: {verdict.detail}"
            yield Text(f"  {told} ({verdict.where})", style="yellow", overflow="fold")
        if len(bad) > 5:
            yield Text(f"  {variant.name}: and {len(bad) - 5} more", style="yellow")
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
        if metric in main_engine(v).metrics
        and (interval := main_engine(v).metrics[metric].vs.get("fp32"))
        and interval.verdict == "no measurable difference"
    ]
    if same:
        yield f"=  no measurable difference from fp32: {', '.join(same)}"
    if report.smallest_provable_drop is not None:
        yield (
            f"The smallest drop that {report.evaluation_samples} samples can prove: "
            f"{report.smallest_provable_drop:.2f} points."
        )
    yield from latency_lines(shown)
    yield from agreement_sentences(report)


def latency_lines(shown: Sequence[VariantResult]) -> Iterator[str]:
    """Each variant's latency as a multiple of fp32's, with its interval."""
    found = [(variant.name, main_engine(variant).latency) for variant in shown]
    found = [(name, latency) for name, latency in found if latency and "fp32" in latency[0].vs]
    if not found:
        return
    yield "latency as a multiple of fp32's (95 %; = no measurable difference):"
    width = max(len(name) for name, _ in found)
    for name, latencies in found:
        ratios = [(latency.batch, latency.vs["fp32"]) for latency in latencies]
        yield f"  {name:<{width}}  " + "  ".join(
            f"batch {batch} {r.value:.2f} [{r.low:.2f}, {r.high:.2f}]{_same(r)}"
            for batch, r in ratios
        )


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
