"""What the short and the whole view of a run both say: figures of an engine, and sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from granplugin.measures.metrics import METRICS
from granplugin.report.schema.parts import Coverage
from granplugin.report.schema.run import (
    ClockValue,
    EngineResult,
    Override,
    Ratio,
    Report,
    VariantResult,
)
from granplugin.report.view.coverage import coverage_items, coverage_line
from granplugin.report.view.elements import Item
from granplugin.report.view.metric_figures import NONE_MEASURABLE


def built_for(report: Report, engines: Sequence[EngineResult]) -> str:
    """The batch and the GPUs that an engine's plan and its bytes are of."""
    batch = engines[0].batch
    told = f"batch {batch}" if batch else f"batches of up to {report.batch_size}"
    return f"{told}, {', '.join(engines[0].targets)}" if engines[0].targets else told


def named(variant: VariantResult, engine: EngineResult) -> str:
    """The variant, with what the engine computes it in where that is not what it says."""
    ran = variant.computed_in(engine)
    return f"{variant.name} (in {ran})" if ran else variant.name


def broken(engine: EngineResult) -> str | None:
    """Layers that it runs in float of those that it was to have natively; None where none is."""
    found = f"{engine.native_in_float}/{engine.native_layers}"
    return found if engine.native_in_float else None


def ran(report: Report) -> Iterator[Item]:
    """How much each engine runs in fewer bits of each recipe and variant, and which promises it
    breaks."""
    for engines in report.by_engine:
        seen: list[str] = []
        for variant, engine in zip(report.variants, engines, strict=True):
            if variant.kind == "baseline" or not engine.layers:
                continue
            told = f"runs {engine.int8_layers} of {len(engine.layers)} layers in 8 bits"
            if engine.native_in_float:
                told += (
                    f"; {engine.native_in_float} of {engine.native_layers} that it was to have "
                    "natively are float:"
                )
            sites = tuple(engine.broken_layers)
            if told not in seen:
                seen.append(told)
                yield Item(
                    f"{engine.engine} of {variant.name}: {told}",
                    names=sites,
                    sense="doubtful" if sites else "plain",
                )


def int8_layers(engine: EngineResult) -> str | None:
    """Weighted layers the engine ran in INT8, of all; None where it does not tell."""
    return f"{engine.int8_layers}/{len(engine.layers)}" if engine.layers else None


def megabytes(count: int | None, decimals: int = 2) -> str | None:
    return None if count is None else f"{count / 1e6:.{decimals}f}"


def seconds(taken: float | None) -> str | None:
    return None if taken is None else f"{taken:.1f}"


def version_of(engines: Sequence[EngineResult]) -> str:
    """Their version; of an imported engine, where any variant's is known."""
    if engines[0].imported:
        return max((engine.version for engine in engines), key=len)
    return engines[0].version


def ratio_text(ratio: Ratio | None) -> str | None:
    """A ratio of latencies and its 95 % interval."""
    return f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio else None


def same_as_fp32(engine: EngineResult) -> bool:
    """Whether no metric that was compared with fp32's differs measurably, and one was."""
    against = [found.vs["fp32"] for found in engine.metrics.values() if "fp32" in found.vs]
    return bool(against) and all(each.verdict == NONE_MEASURABLE for each in against)


def false_differences(engines: Sequence[EngineResult]) -> Iterator[str]:
    """What 95 % means where a table has several comparisons with fp32."""
    metrics = [found for engine in engines for found in engine.metrics.values()]
    latencies = [found for engine in engines for found in engine.latency]
    count = sum("fp32" in found.vs for found in metrics)
    count += sum("fp32" in found.vs for found in latencies)
    if count > 1:
        yield (
            f"Each of the {count} comparisons with fp32 has its own 95 %: were there no difference "
            f"at all, {count / 20:.1f} of them would be expected to show one."
        )


def provable(report: Report) -> Iterator[str]:
    """How small a drop the samples can prove, where a metric is a proportion."""
    found = report.provable
    if found is None:
        return
    samples = f"{report.evaluation_samples:,} samples"
    if found.drop is None:
        told = f"{samples} prove no drop with a probability of 80 %"
    else:
        told = f"{samples} prove a drop of {_up(found.drop)} points with a probability of 80 %"
        if found.back and found.drop_with_back is not None:
            told += (
                f", one of {_up(found.drop_with_back)} where {found.back:.2f} % of the samples "
                "become right besides, as here"
            )
    yield f"{told}; the smallest that is significant is {found.significant_drop:.2f}."


def _up(points: float) -> str:
    """Rounded up, so that it holds."""
    return f"{math.ceil(100 * points - 1e-9) / 100:.2f}"


def gpu_sentences(report: Report) -> Iterator[str]:
    """What latencies on a GPU need besides: CUDA graphs, the builds' spread, clocks."""
    for engines in report.by_engine:
        for index, timed in enumerate(engines[0].latency):
            if not timed.clocks:
                continue
            graphs = {
                variant.name: engine.latency[index].graph_ms
                for variant, engine in zip(report.variants, engines, strict=True)
            }
            told = [f"{name} {ms:.3f}" for name, ms in graphs.items() if ms is not None]
            name = engines[0].engine
            yield (
                f"{name}, batch {timed.batch}, ms as a CUDA graph: "
                f"{', '.join(told) or 'none could be captured, log.txt says why'}"
            )
            yield (
                f"{name}, batch {timed.batch}: two builds of one network differ by up to "
                f"{100 * timed.build_spread:.1f} %, which the intervals include; GPU before and "
                f"after: {'; '.join(map(_clocks, timed.clocks))}"
            )


def _clocks(read: ClockValue) -> str:
    told = [(read.sm_mhz, " MHz"), (read.memory_mhz, " MHz memory"), (read.temperature_c, " C")]
    return ", ".join(f"{value:.0f}{unit}" for value, unit in told if value is not None)


def agreement_sentences(report: Report) -> Iterator[str]:
    """How many values were compared, and what differed."""
    checked = [v.agreement for v in report.variants if v.agreement]
    if checked:
        values = sum(a.values for a in checked)
        differs = sum(a.oracle_differs for a in checked)
        asked = [a.modelopt_differs for a in checked if a.modelopt_differs is not None]
        modelopt = f", modelopt in {sum(asked)} (rounding ties)" if asked else ""
        yield (
            f"Agreement over {values:,} values: ONNX Runtime differs from the numpy "
            f"oracle in {differs}{modelopt}."
        )
        measured = {name for v in report.variants for e in v.engines for name in e.metrics}
        decides = any(name in METRICS and METRICS[name].decides for name in measured)
        told_of = [a.network_agreement for a in checked if a.network_agreement is not None]
        same = told_of if decides else []
        quality = [a.network_sqnr_db for a in checked if a.network_sqnr_db is not None]
        told = [
            *([_same(min(map(float, quality)))] if quality else []),
            *([f"same class for at least {min(same):.0f} %"] if same else []),
        ]
        if told:
            other = "modelopt's fake-quant" if asked else "the oracle's arithmetic"
            yield (
                f"Whole networks against {other}, "
                f"{checked[0].network_samples} samples: {', '.join(told)}; two right computations "
                "differ too, as last bits can flip roundings (granplugin explain sqnr)."
            )


def _same(db: float) -> str:
    return "the same numbers" if math.isinf(db) else f"SQNR at least {db:.0f} dB"


def warnings(report: Report) -> Iterator[Item]:
    """What makes figures mean less than they seem to."""
    if report.broken_baseline:
        yield Item(f"WARNING: {report.broken_baseline}", sense="bad")
    for variant in report.variants:
        if variant.same_as and variant.kind != "baseline":
            yield Item(
                f"{variant.name} changes nothing: its file is {variant.same_as}'s", sense="doubtful"
            )


def covered(report: Report, listed: bool = False) -> Iterator[Item]:
    """How much each recipe and variant quantizes, of variants only what is not the recipe's;
    `listed` names what stays float."""
    seen: list[Coverage] = []
    for variant in report.variants:
        found = variant.coverage
        if found is None or variant.kind == "baseline" or found in seen:
            continue
        seen.append(found)
        yield Item(f"{variant.name} {coverage_line(found)}")
        if listed:
            yield from coverage_items(found)


def overrides(report: Report) -> Iterator[Item]:
    """The sites where each recipe and variant leaves the defaults, by rule."""
    if report.overrides:
        yield Item(f"overrides of {report.defaults}:")
    by_rule: dict[tuple[str, str, str], dict[tuple[str, str, str], list[Override]]] = {}
    for o in report.overrides:
        changes = by_rule.setdefault((o.variant, o.rule, o.where), {})
        changes.setdefault((o.role, o.default, o.now), []).append(o)
    for (variant, rule, where), changes in by_rule.items():
        yield Item(f"{variant}: {rule} ({where})", 1)
        for (role, default, now), sites in changes.items():
            yield Item(f"{role}: {default} -> {now},", 2, tuple(site.layer for site in sites))
            floats = [site.layer for site in sites if site.ran == "float" and now != "float"]
            if floats:
                yield Item("of these the engine ran in float:", 3, tuple(floats))


def made(report: Report) -> Iterator[Item]:
    """What engines got in place of rows they do not have, by what was made of them."""
    for variant in report.variants:
        for engine in variant.engines:
            sites: dict[str, list[str]] = {}
            for site, what in engine.made.items():
                sites.setdefault(what, []).append(site)
            if sites:
                yield Item(f"{variant.name} on {engine.engine}, made of what it does not have:")
            for what, of_what in sites.items():
                simulated = " (float on the device, accuracy only)" if what == "simulated" else ""
                yield Item(f"{what}{simulated}:", 1, tuple(of_what))
