"""Measurements -> Report: intervals, differences from the baselines, overrides and limits."""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import granplugin
from granplugin import backends
from granplugin.backends import TARGETED
from granplugin.measures import intervals as compare
from granplugin.measures import metrics, timing
from granplugin.planning.plan import Plan, Row, preset_plan
from granplugin.recipe.loaded import Loaded
from granplugin.recipe.build import BUILDERS, BUILDS_WITH
from granplugin.recipe.decisions import PRESETS
from granplugin.recipe.schema import Recipe
from granplugin.report.model import (
    ClockValue,
    EngineResult,
    Interval,
    LatencyValue,
    LayerRan,
    LimitResult,
    LintFinding,
    Machine,
    MetricValue,
    Override,
    Ratio,
    Report,
    SiteVerdict,
    VariantResult,
)

_STARTED = time.time()
_PACKAGES = ("nvidia-modelopt", "torch", "numpy", "onnx", "onnxruntime", "openvino")


def make_report(
    recipes: Sequence[Loaded],
    session: Any,
    built: Sequence[Any],
    results: Mapping[tuple[str, str], Any],
    latencies: Mapping[tuple[str, str, int], Any],
) -> Report:
    """The report of a run; `built`, `results` and `latencies` are pipeline's."""
    recipe = recipes[0].recipe
    baselines = [each.job.name for each in built if each.job.kind == "baseline"]
    variants = [_variant(each, recipe, baselines, results, latencies) for each in built]
    preset = _preset(recipes[0])
    defaults = preset_plan(preset, session.layers, recipes[0])
    overrides = [
        override
        for each, result in zip(built, variants, strict=True)
        if each.job.kind != "baseline"
        for override in _overrides(each.job, defaults, result)
    ]
    evaluation = session.evaluation
    drops = [m for m in recipe.metrics if metrics.METRICS[m].kind == "proportion"]
    return Report(
        granplugin=granplugin.__version__,
        name=recipe.name,
        recipes=[str(loaded.path) for loaded in recipes],
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=round(time.time() - _STARTED, 1),
        machine=machine(),
        defaults=preset,
        calibration_samples=session.calibration.samples,
        evaluation_samples=evaluation.samples,
        evaluated_on="evaluation" if recipe.data.evaluation else "calibration",
        batch_size=recipe.data.batch_size,
        smallest_provable_drop=compare.smallest_provable_drop(evaluation.samples)
        if drops
        else None,
        variants=variants,
        overrides=overrides,
        notes=[*_left_out(recipe), *_not_for_all(recipe), *_notes(built), *_wrong(variants)],
        limits=[
            limit
            for each, result in zip(built, variants, strict=True)
            if each.job.kind == "recipe"
            for limit in _limits(each.job.loaded, result)
        ],
    )


def machine() -> Machine:
    """This machine, as far as a figure needs it."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        python=platform.python_version(),
        packages=packages,
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [
                line.partition(":")[2].strip() for line in file if line.startswith("model name")
            ]
        return names[0] if names else platform.processor()
    except OSError:
        return platform.processor() or "unknown"


def _preset(loaded: Loaded) -> str:
    named = [name for name in loaded.recipe.baselines if name in PRESETS]
    defaults = loaded.recipe.defaults
    return named[0] if named else defaults if isinstance(defaults, str) else "tensorrt@11"


def _variant(
    each: Any,
    recipe: Any,
    baselines: Sequence[str],
    results: Mapping[tuple[str, str], Any],
    latencies: Mapping[tuple[str, str, int], Any],
) -> VariantResult:
    job = each.job
    against = [name for name in baselines if name != job.name]
    quantized = each.quantized
    return VariantResult(
        name=job.name,
        kind=job.kind,
        recipe=None if job.kind == "baseline" else str(job.loaded.path),
        onnx=f"variants/{job.name}/model.onnx",
        onnx_bytes=each.onnx.stat().st_size,
        precision=job.precision,
        float32_nodes=list(each.float32_nodes),
        quantized_sites=len(quantized),
        scales=sum(row.scales for row in quantized),
        folded=len(job.plan.folded),
        zero_sites=list(each.zero_sites),
        agreement=each.agreement,
        engines=[
            engine_result(
                job.name,
                engine,
                result,
                against,
                results,
                latencies,
                made=job.written[engine].made if engine in job.written else {},
            )
            for (name, engine), result in results.items()
            if name == job.name
        ],
    )


def engine_result(
    name: str,
    engine: str,
    result: Any,
    against: Sequence[str],
    results: Mapping[tuple[str, str], Any],
    latencies: Mapping[tuple[str, str, int], Any],
    made: Mapping[str, str],
) -> EngineResult:
    """One variant on one engine; `result` is a measure.Measured, and what it is compared with are
    the baselines `against` that have results and latencies of as many rounds."""
    batches = sorted(batch for variant, on, batch in latencies if (variant, on) == (name, engine))
    return EngineResult(
        engine=engine,
        version=result.engine.version,
        engine_bytes=result.engine.bytes,
        build_seconds=result.engine.build_seconds,
        metrics={
            metric: _metric(metric, value, {b: results[b, engine].values for b in against})
            for metric, value in result.values.items()
        },
        latency=[
            _latency(latencies[name, engine, batch], batch, {
                baseline: latencies[baseline, engine, batch]
                for baseline in against
                if (baseline, engine, batch) in latencies
            })
            for batch in batches
        ],
        layers=[
            LayerRan(layer=ran.layer, precision=ran.precision, kernel=ran.kernel)
            for ran in result.layers
        ],
        cannot_run=result.cannot_run,
        kernels=len(result.plan.kernels) if result.plan else None,
        traffic_bytes=result.plan.traffic if result.plan else None,
        verdicts=[
            SiteVerdict(
                site=v.site, where=v.where, promise=v.promise, verdict=v.kind, detail=v.detail
            )
            for v in result.verdicts
        ],
        made=dict(made),
        findings=[LintFinding(**vars(finding)) for finding in result.findings],
    )  # fmt: skip


def _metric(name: str, value: Any, baselines: Mapping[str, Mapping[str, Any]]) -> MetricValue:
    known = metrics.METRICS.get(name)
    unit = known.unit if known else ""
    low = high = None
    if value.per_sample is not None and value.per_sample.dtype == bool:
        hits = int(value.per_sample.sum())
        low, high = compare.proportion_interval(hits, value.per_sample.size)
    vs = {}
    for baseline, values in baselines.items():
        other = values.get(name)
        if other is None or value.per_sample is None or other.per_sample is None:
            continue
        found = compare.difference(value.per_sample, other.per_sample, unit, value.higher_is_better)
        vs[baseline] = Interval(**vars(found))
    return MetricValue(value=value.value, unit=unit, low=low, high=high, vs=vs)


def _latency(timed: Any, batch: int, baselines: Mapping[str, Any]) -> LatencyValue:
    latency = timed.latency
    against = {
        name: timing.ratio(latency, other.latency).beyond(timed.build_spread)
        for name, other in baselines.items()
        if other.latency.rounds == latency.rounds >= timing.MIN_ROUNDS
    }
    return LatencyValue(
        batch=batch,
        median_ms=latency.median_ms,
        p90_ms=latency.p90_ms,
        spread=latency.spread,
        rounds=latency.rounds,
        vs={name: Ratio(**vars(ratio)) for name, ratio in against.items()},
        graph_ms=timed.graph.median_ms if timed.graph else None,
        build_spread=timed.build_spread,
        clocks=[ClockValue(**vars(clocks)) for clocks in timed.clocks],
    )


def _overrides(job: Any, defaults: Plan, result: VariantResult) -> list[Override]:
    by_site = {row.site: row for row in defaults.rows}
    timed = next((engine for engine in result.engines if engine.layers), None)
    ran = {layer.layer: layer.precision for layer in timed.layers} if timed else {}
    return [
        Override(
            variant=job.name,
            layer=row.layer,
            role=row.role,
            default=said(by_site[row.site]),
            now=said(row),
            rule=row.rule,
            where=row.where,
            ran=ran.get(row.layer),
        )
        for row in job.plan.rows
        if said(row) != said(by_site[row.site])
    ]


def said(row: Row) -> str:
    """A row's decision in a few words."""
    if not row.quantized:
        return "float"
    words = [] if row.format == "int8" else [row.format]
    words.append(row.granularity)
    if row.calibrator.kind != "max":
        words.append(str(row.calibrator))
    if row.amax is not None:
        words.append(f"amax {row.amax:g}")
    if row.role == "weight" and row.bn:
        words.append(f"bn {row.bn}")
    return " ".join(words)


def _left_out(recipe: Recipe) -> list[str]:
    missing = {name: backends.load(name).unavailable() for name in recipe.optional_engines}
    return [f"engine {name} was left out: {reason}" for name, reason in missing.items() if reason]


def _not_for_all(recipe: Recipe) -> list[str]:
    """Build options that some engine of the run does not have."""
    notes = []
    named = dict.fromkeys([*recipe.engines, *recipe.optional_engines])
    for key, has in BUILDS_WITH.items():
        without = [name for name in named if name in BUILDERS and name not in has]
        if key in recipe.build.model_fields_set and without:
            notes.append(f"build.{key} is for {', '.join(has)}; {without[0]} does without")
    least = max((shapes.min[0] for shapes in recipe.build.shapes.values()), default=1)
    if least > 1:
        notes.append(f"build.shapes start at {least} samples, so nothing is timed at batch 1 there")
    return notes


def _wrong(variants: Sequence[VariantResult]) -> list[str]:
    return [
        f"{variant.name} on {engine.engine} is WRONG at {verdict.site}: {verdict.detail} "
        f"({verdict.where})"
        for variant in variants
        for engine in variant.engines
        for verdict in engine.verdicts
        if verdict.verdict == "wrong"
    ]


def _notes(built: Sequence[Any]) -> list[str]:
    notes: dict[str, None] = {}
    for each in built:
        name = each.job.name
        notes |= dict.fromkeys(each.job.plan.notes)
        if each.zero_sites:
            notes[f"{name}: only saw zeros and stay float: {_listed(each.zero_sites)}"] = None
        if each.float32_nodes:
            notes[
                f"{name}: nodes that stay float32, since float16 could overflow there: "
                f"{_listed(each.float32_nodes)}"
            ] = None
        for engine in each.own:
            if each.job.precision not in backends.load(engine).PRECISIONS:
                notes[
                    f"{name} on {engine} is its float32 graph: {engine} has no {each.job.precision}"
                ] = None
        if each.agreement and each.agreement.oracle_differs:
            notes[
                f"{name}: ONNX Runtime differs from the oracle in {each.agreement.oracle_differs} "
                "values"
            ] = None
    return list(notes)


def _listed(names: Sequence[str]) -> str:
    """The first of them, and how many more there are; report.json has them all."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _limits(loaded: Loaded, result: VariantResult) -> list[LimitResult]:
    limits = loaded.recipe.limits
    found = []
    main = main_engine(result)
    if limits.top1_drop is not None:
        interval = main.metrics["top1"].vs.get("fp32") if main else None
        drop = None if interval is None or interval.low is None else -interval.low
        verdict = "cannot tell" if drop is None else "met" if drop <= limits.top1_drop else "missed"
        why = (
            interval.method if drop is None and interval
            else f"drop of at most {drop:.2f} points (95 %) on {main.engine}" if drop is not None
            else "top1 was not measured"
        )  # fmt: skip
        found.append(
            LimitResult(
                limit="top1_drop", variant=result.name, bound=limits.top1_drop, measured=drop,
                verdict=verdict, why=why,
            )
        )  # fmt: skip
    timed = next((engine for engine in result.engines if engine.latency), None)
    for baseline, bound in limits.latency_vs.items():
        ratio = timed.latency[0].vs.get(baseline) if timed else None
        if ratio is None:
            verdict, why = "cannot tell", "no engine of this run measures latency"
        else:
            verdict = (
                "met" if ratio.high <= bound else "missed" if ratio.low > bound else "cannot tell"
            )
            why = (
                f"{ratio.value:.2f} (95 % {ratio.low:.2f} to {ratio.high:.2f}) on {timed.engine}, "
                f"batch {timed.latency[0].batch}"
            )
        found.append(
            LimitResult(
                limit=f"latency_vs {baseline}", variant=result.name, bound=bound,
                measured=ratio.value if ratio else None, verdict=verdict, why=why,
            )
        )  # fmt: skip
    if limits.unhonoured is not None:
        found += _unhonoured(limits.unhonoured, result)
    return found


def _unhonoured(bound: int, result: VariantResult) -> list[LimitResult]:
    """For each targeted engine that says what it did, or where there is none, each that does."""
    told = [engine for engine in result.engines if engine.verdicts]
    found = []
    for engine in [engine for engine in told if engine.engine in TARGETED] or told:
        bad = sum(v.verdict in ("degraded", "wrong") for v in engine.verdicts)
        unknown = sum(v.verdict == "unknown" for v in engine.verdicts)
        verdict = "missed" if bad > bound else "met" if bad + unknown <= bound else "cannot tell"
        why = f"{engine.honoured} of {len(engine.verdicts)} rows honoured on {engine.engine}"
        why += f", {unknown} not known" if unknown else ""
        found.append((verdict, float(bad), why))
    found = found or [("cannot tell", None, "no engine of this run says what it did with rows")]
    return [
        LimitResult(
            limit="unhonoured", variant=result.name, bound=bound, measured=bad, verdict=verdict,
            why=why,
        )
        for verdict, bad, why in found
    ]  # fmt: skip


def main_engine(result: VariantResult) -> EngineResult:
    """The engine of the table's accuracy: the first here that measures latency, else the first."""
    here = [engine for engine in result.engines if not engine.imported]
    ran = [engine for engine in here if engine.cannot_run is None]
    return next((engine for engine in ran if engine.latency), (ran or result.engines)[0])
