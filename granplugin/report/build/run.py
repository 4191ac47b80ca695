"""A run's measurements -> report.json: intervals, differences from the baselines, overrides."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import cast

import numpy as np

import granplugin
from granplugin.capabilities.legality import targets_of
from granplugin.data.doubts import Doubt
from granplugin.measures import intervals, metrics, timing
from granplugin.planning.coverage import coverage
from granplugin.planning.plan import preset_plan
from granplugin.planning.row_json import plan_key
from granplugin.planning.rows import Plan, Row
from granplugin.quant.layers import Layer
from granplugin.quant.multiplications import Multiplication
from granplugin.recipe.loaded import Loaded
from granplugin.recipe.presets import DEFAULT, PRESETS
from granplugin.report.build.baseline import broken_baseline
from granplugin.report.build.covered import covered
from granplugin.report.build.decided import decided
from granplugin.report.build.limits import limits
from granplugin.report.build.machine import machine
from granplugin.report.build.moved import moved_bytes
from granplugin.report.build.notes import notes
from granplugin.report.build.provable import provable
from granplugin.report.schema.run import (
    ClockValue,
    ComputedWrongly,
    EngineResult,
    Held,
    Interval,
    LatencyValue,
    LayerRan,
    LintFinding,
    MetricValue,
    Override,
    Precision,
    Ratio,
    Report,
    SiteVerdict,
    VariantKind,
    VariantResult,
    WrongFile,
)
from granplugin.results.values import (
    FP32,
    Built,
    Job,
    Measured,
    Ran,
    Results,
    Timing,
    Timings,
    Traced,
    WrongPart,
)
from granplugin.store.companions import whole_bytes


@dataclass(frozen=True, eq=False)
class RunInputs:
    """What a run is of: its recipes, the network by its key, and the samples it was calibrated and
    measured on; `doubts` are of the data that ranges are found on, `told` is said of all of it."""

    recipes: Sequence[Loaded]
    network: str
    layers: Sequence[Layer]
    products: Sequence[Multiplication]
    calibration_samples: int
    evaluation_samples: int
    evaluation_key: str
    labels: np.ndarray | None
    doubts: Sequence[Doubt]
    told: Sequence[str] = ()


def make_report(of: RunInputs, ran: Ran, seconds: float) -> Report:
    """The report of a run, which took `seconds`."""
    first, recipe = of.recipes[0], of.recipes[0].recipe
    variants = [_variant(each, of, ran) for each in ran.built]
    preset = _preset(first)
    defaults = preset_plan(preset, of.layers, first)
    overrides = [
        override
        for each, result in zip(ran.built, variants, strict=True)
        if each.job.kind != "baseline"
        for override in _overrides(each.job, defaults, result)
    ]
    broken = broken_baseline(
        recipe, (r for (name, _), r in ran.results.items() if name == FP32), of.labels
    )
    broken = "; ".join(filter(None, [*(d.said for d in of.doubts if d.breaks), broken])) or None
    # Of outputs that decide at many places a sample has a share, and a count of samples proves none.
    shares = any(
        metric in metrics.METRICS
        and metrics.METRICS[metric].kind == "proportion"
        and value.low is not None
        for variant in variants
        if variant.name != FP32
        for engine in variant.engines
        for metric, value in engine.metrics.items()
    )
    return Report(
        granplugin=granplugin.__version__,
        name=recipe.name,
        recipes=[str(loaded.path) for loaded in of.recipes],
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
        machine=machine(),
        defaults=preset,
        calibration_samples=of.calibration_samples,
        evaluation_samples=of.evaluation_samples,
        evaluated_on="evaluation" if recipe.data.evaluation else "calibration",
        evaluation_key=of.evaluation_key,
        batch_size=recipe.data.batch_size,
        provable=provable(of.evaluation_samples, variants) if shares else None,
        variants=variants,
        overrides=overrides,
        broken_baseline=broken,
        notes=[
            *(doubt.said for doubt in of.doubts if not doubt.breaks),
            *decided(recipe, ran.results.values()),
            *of.told,
            *notes(recipe, ran.built, variants, of.calibration_samples),
        ],
        limits=[
            limit.model_copy(update={"where": _line(each.job.loaded, limit.limit)})
            for each, result in zip(ran.built, variants, strict=True)
            if each.job.kind == "recipe"
            for limit in limits(each.job.loaded.recipe.limits, result, variants, broken)
        ],
    )


def _line(loaded: Loaded, limit: str) -> str:
    return str(loaded.document.mark(("limits", *limit.split(".", 1))))


def _preset(loaded: Loaded) -> str:
    named = [name for name in loaded.recipe.baselines if name in PRESETS]
    defaults = loaded.recipe.defaults
    return named[0] if named else defaults if isinstance(defaults, str) else DEFAULT


def _variant(each: Built, of: RunInputs, ran: Ran) -> VariantResult:
    job, recipe = each.job, of.recipes[0].recipe
    baselines = [other.job.name for other in ran.built if other.job.kind == "baseline"]
    optional = set(recipe.optional_engines).difference(recipe.engines)
    files = {engine: each.file(engine).path for _, engine in ran.results}
    same = (
        other.job.name
        for other in takewhile(lambda other: other is not each, ran.built)
        if other.onnx.path == each.onnx.path
        and all(other.file(engine).path == path for engine, path in files.items())
    )
    quantized = each.quantized
    return VariantResult(
        name=job.name,
        kind=cast(VariantKind, job.kind),
        recipe=None if job.kind == "baseline" else str(job.loaded.path),
        plan_key=plan_key(of.network, job.plan),
        onnx=f"variants/{job.name}/model.onnx",
        onnx_bytes=whole_bytes(each.onnx.path),
        precision=cast(Precision, job.precision),
        float32_nodes=list(each.float32_nodes),
        quantized_sites=len(quantized),
        scales=sum(row.scales for row in quantized),
        folded=len(job.plan.folded),
        zero_sites=list(each.zero_sites),
        agreement=each.agreement,
        same_as=next(same, None),
        coverage=covered(coverage(of.products, of.layers, job.plan, each.zero_sites)),
        engines=[
            engine_result(
                (job.name, engine),
                [name for name in baselines if name != job.name],
                ran.results,
                ran.latencies,
                job.written[engine].made if engine in job.written else {},
            ).model_copy(
                update={
                    "optional": engine in optional,
                    "targets": list(targets_of(job.loaded.recipe).get(engine, ())),
                }
            )
            for name, engine in ran.results
            if name == job.name
        ],
    )


def engine_result(
    of: tuple[str, str],
    against: Sequence[str],
    results: Results,
    latencies: Timings,
    made: Mapping[str, str],
) -> EngineResult:
    """One variant on one engine, compared with the baselines `against` that have latencies of as
    many rounds; `made` says what was made of its sites for that engine."""
    name, engine = of
    result = results[of]
    batches = sorted(batch for variant, on, batch in latencies if (variant, on) == of)
    plan, native = result.audited.plan, _native(result)
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
            LayerRan(**vars(ran))
            for ran in result.audited.layers
        ],
        held=Held(**vars(result.held)) if result.held else None,
        traced=_traced(result.traced) if result.traced else None,
        cannot_run=result.cannot_run,
        refused=result.refused,
        untimed=result.untimed,
        kernels=len(plan.kernels) if plan else None,
        moved=moved_bytes(plan.moved) if plan else None,
        batch=plan.batch if plan else None,
        verdicts=[
            SiteVerdict(
                site=v.site, where=v.where, promise=v.promise, verdict=v.kind, detail=v.detail
            )
            for v in result.audited.verdicts
        ],
        native_layers=len(native),
        native_in_float=sum(native.values()),
        made=dict(made),
        findings=[LintFinding(**vars(finding)) for finding in result.audited.findings],
    )  # fmt: skip


def _native(result: Measured) -> dict[str, bool]:
    """The layers with a row that was promised to be native, of which it is known what it ran in:
    whether that promise is broken."""
    native: dict[str, bool] = {}
    for verdict in result.audited.verdicts:
        if verdict.promise == "native" and verdict.kind != "unknown":
            layer = verdict.site.rpartition(".")[0]
            native[layer] = native.get(layer, False) or verdict.kind != "honoured"
    return native


def _traced(traced: Traced) -> WrongFile:
    sets = [[_part(part) for part in parts] for parts in traced.sets]
    return WrongFile(
        held=Held(**vars(traced.held)),
        sets=sets,
        left_float=list(map(_part, traced.floats)),
        note=traced.note,
        builds=traced.builds,
    )


def _part(part: WrongPart) -> ComputedWrongly:
    return ComputedWrongly(
        name=part.name, where=part.where, write=part.write, sites=list(part.sites)
    )


def _metric(
    name: str, value: metrics.Score, baselines: Mapping[str, Mapping[str, metrics.Score]]
) -> MetricValue:
    known = metrics.METRICS.get(name)
    unit = known.unit if known else ""
    low = high = None
    if value.per_sample is not None and value.per_sample.dtype == bool:
        hits = int(value.per_sample.sum())
        low, high = intervals.proportion_interval(hits, value.per_sample.size)
    vs = {}
    for baseline, values in baselines.items():
        other = values.get(name)
        if other is None or value.per_sample is None or other.per_sample is None:
            continue
        if value.pooled is not None and other.pooled is not None:
            found = intervals.pooled_difference(value.pooled, other.pooled)
        else:
            found = intervals.difference(
                value.per_sample, other.per_sample, unit, value.higher_is_better
            )
        vs[baseline] = Interval(**vars(found))
    return MetricValue(
        value=value.value,
        unit=unit,
        low=low,
        high=high,
        lower_is_better=not value.higher_is_better,
        vs=vs,
        outputs=dict(value.of_outputs),
    )


def _latency(timed: Timing, batch: int, baselines: Mapping[str, Timing]) -> LatencyValue:
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
        iqr=latency.iqr,
        rounds=latency.rounds,
        vs={name: Ratio(**vars(ratio)) for name, ratio in against.items()},
        graph_ms=timed.graph.median_ms if timed.graph else None,
        build_spread=timed.build_spread,
        clocks=[ClockValue(**vars(clocks)) for clocks in timed.clocks],
    )


def _overrides(job: Job, defaults: Plan, result: VariantResult) -> list[Override]:
    by_site = {row.site: row for row in defaults.rows}
    timed = next((engine for engine in result.engines if engine.layers), None)
    ran = {layer.layer: layer.precision for layer in timed.layers} if timed else {}
    return [
        Override(
            variant=job.name,
            layer=row.layer,
            role=row.operand,
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
    words.append(str(row.granularity))
    if row.calibrator.kind != "max":
        words.append(str(row.calibrator))
    if row.amax is not None:
        words.append(f"amax {row.amax:g}")
    if row.operand == "weight" and row.bn:
        words.append(f"bn {row.bn}")
    return " ".join(words)
