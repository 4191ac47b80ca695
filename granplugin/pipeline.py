"""apply: from recipes to a report, the stages in order.

recipe -> model, layers -> plans -> statistics and float ONNX -> Q/DQ ONNX -> engines -> outputs and
latencies -> report. What a stage makes is kept by the content it depends on (run_folder), so a run
with one rule changed does only what that rule changes.
"""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import granplugin
from granplugin import backends, metrics
from granplugin.backends.base import Engine
from granplugin.data import Batches, open_data
from granplugin.errors import DataError, ModelError, RecipeError, UserError
from granplugin.graph.files import load_float, save
from granplugin.graph.fold import weights_of
from granplugin.graph.qdq import insert
from granplugin.graph.verify import agreement, read_back
from granplugin.layers import Layer, layer_from_json, layer_to_json
from granplugin.plan import Plan, Row, make_plan, preset_plan
from granplugin.progress import track
from granplugin.recipe.load import RECIPE, Loaded, load_variants
from granplugin.report import build
from granplugin.report.model import Agreement, Report
from granplugin.run_folder import RunFolder, content_key, file_key, text_key
from granplugin.statistics import (
    Need,
    Statistics,
    export_amax,
    find_amax,
    import_amax,
    needs_of,
)
from granplugin.timing import Latency, measure_interleaved

log = logging.getLogger(__name__)

FP32 = "fp32"
SITE_SAMPLES = 4
"""Samples whose tensors are compared value by value at every site."""


@dataclass(frozen=True)
class Job:
    """One variant to build: a baseline, a recipe, or a recipe's variant."""

    name: str
    kind: str
    loaded: Loaded
    plan: Plan

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows the graph is edited by: quantized, or of a layer whose batch norm is folded."""
        return tuple(row for row in self.plan.rows if row.quantized or row.bn == "fold")


@dataclass(frozen=True)
class Built:
    """A variant's ONNX file, with what is in it."""

    job: Job
    onnx: Path
    amax: Mapping[str, np.ndarray]
    zero_sites: tuple[str, ...]
    agreement: Agreement | None


@dataclass(frozen=True)
class Measured:
    """A variant on one engine: outputs of all evaluation samples, and what the engine is."""

    engine: Engine
    outputs: Mapping[str, np.ndarray]
    values: Mapping[str, metrics.Measured]
    layers: tuple


class Source:
    """The model of a run: built at once, traced and converted only where that is not kept."""

    def __init__(self, loaded: Loaded, run: RunFolder) -> None:
        from granplugin import models

        self.run, self.loaded = run, loaded
        self.recipe = recipe = loaded.recipe
        with located(loaded, "model"):
            self.model = models.build_model(recipe.model, models.device(recipe.device))
        self.converted: Any = None
        self.key = models.model_key(recipe.model, self.model)
        self.text_key = text_key(recipe)

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        from granplugin.models import input_names

        return input_names(self.model)

    @cached_property
    def calibration(self) -> Batches:
        return self._data("calibration")

    @cached_property
    def evaluation(self) -> Batches:
        return self._data("evaluation" if self.recipe.data.evaluation else "calibration")

    def _data(self, role: str) -> Batches:
        data = self.recipe.data
        with located(self.loaded, "data", role):
            return open_data(
                getattr(data, role), data.batch_size, data.seed, role, self.input_names
            )

    @cached_property
    def example(self) -> dict[str, Any]:
        """Two samples: torch.export takes a batch of one for a constant."""
        return self.tensors(
            {name: array[:2] for name, array in next(iter(self.calibration)).items()}
        )

    def tensors(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        import torch

        device = next(self.model.parameters(), torch.empty(0)).device
        return {name: torch.as_tensor(array).to(device) for name, array in batch.items()}

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        def traced() -> list[dict]:
            from granplugin.trace import trace

            with located(self.loaded, "model"):
                return [layer_to_json(layer) for layer in trace(self.model, self.example).layers]

        shapes = {name: tuple(tensor.shape) for name, tensor in self.example.items()}
        key = content_key(self.key, shapes, granplugin.__version__)
        return tuple(map(layer_from_json, self.run.made_json("layers", key, traced)))

    def convert(self, needs: Collection[Need]) -> Statistics:
        """Convert the model with modelopt, collecting `needs` in one pass over the data."""
        from granplugin import modelopt_bridge

        loop = self.forward_loop if needs else lambda model: None
        with located(self.loaded, "data", "calibration"):
            self.converted, seen = modelopt_bridge.collect(self.model, needs, loop)
        return seen

    def quantized(self, job: Job, amax: Mapping[str, np.ndarray]) -> Any:
        """A variant as modelopt computes it: a copy of the converted model, batch norms folded
        with the proof that outputs did not change, then its quantizers set."""
        from granplugin import modelopt_bridge
        from granplugin.prepare import fold_batch_norms
        from granplugin.trace import Traced

        if self.converted is None:
            self.convert(())
        model = copy.deepcopy(self.converted)
        norms = {layer.name: layer.bn for layer in self.layers if layer.bn}
        with located(self.loaded, "model"):
            fold_batch_norms(
                model, Traced(self.layers, norms, {}, {}), job.plan.folded, self.example
            )
        rows = [replace(row, bn=None) for row in job.plan.quantized if row.site in amax]
        modelopt_bridge.load_amax(model, rows, amax)
        return model

    def forward_loop(self, model: Any) -> None:
        import torch

        batches = track(
            self.calibration,
            "calibrating",
            -(-self.calibration.samples // self.recipe.data.batch_size),
        )
        with torch.no_grad():
            for batch in batches:
                model(**self.tensors(batch))


@contextmanager
def located(loaded: Loaded, *location: str) -> Iterator[None]:
    """What goes wrong with a section of the recipe is said at its line."""
    try:
        yield
    except (ModelError, DataError) as err:
        raise type(err)(f"{loaded.mark(*location)}: {err}") from err


def apply(recipes: Sequence[Loaded], run: RunFolder) -> Report:
    """Build and measure the baselines, the recipes and their variants; leave a report.

    Raises UserError where something must change, Unhonoured where a written graph, read back, is
    not what its plan says.
    """
    check_common(recipes)
    engines = open_backends(recipes[0])
    source = Source(recipes[0], run)
    jobs = plan_jobs(recipes, source.layers)
    check_data(source)
    float_onnx, statistics = calibrate(source, jobs)
    built = [
        build_variant(source, job, float_onnx, statistics) for job in track(jobs, "writing Q/DQ")
    ]
    results = measure(source, built, engines)
    latencies = measure_latency(source, results, engines)
    report = build.make_report(recipes, source, built, results, latencies)
    publish(run, recipes, source, built, results, report, float_onnx)
    run.forget_unused()
    return report


def check_common(recipes: Sequence[Loaded]) -> None:
    """RecipeError where recipes of one run differ in more than rules, defaults and limits."""
    first = recipes[0].recipe
    common = ("model", "device", "data", "metrics", "evaluate", "engines", "baselines", "latency")
    for other in recipes[1:]:
        for key in common:
            if getattr(other.recipe, key) != getattr(first, key):
                raise other.error(
                    (key,), f"{key} differs from {recipes[0].path}; recipes of one run share it"
                )


def open_backends(loaded: Loaded) -> dict[str, ModuleType]:
    """The backends of the recipe's engines; RecipeError for one that is not installed."""
    found = {}
    for index, name in enumerate(loaded.recipe.engines):
        module = backends.load(name)
        reason = module.unavailable()
        if reason:
            raise loaded.error(("engines", index), f"engine {name} cannot be used: {reason}")
        found[name] = module
    return found


def plan_jobs(recipes: Sequence[Loaded], layers: Sequence[Layer]) -> list[Job]:
    """Every variant of the run with its plan: baselines, then each recipe and its variants."""
    first = recipes[0]
    jobs = [Job(FP32, "baseline", first, Plan(()))]
    for name in dict.fromkeys(first.recipe.baselines):
        if name != FP32:
            jobs.append(Job(name, "baseline", first, preset_plan(name, layers, first)))
    for loaded in recipes:
        for name, variant in load_variants(loaded).items():
            plan = make_plan(variant, layers)
            own = name == RECIPE
            title = loaded.recipe.name if own else name
            if any(job.name == title for job in jobs):
                title = f"{loaded.recipe.name}-{name}"
            if any(job.name == title for job in jobs):
                raise RecipeError(f"{loaded.path}: two variants of this run are called {title!r}")
            jobs.append(Job(title, "recipe" if own else "variant", variant, plan))
    return jobs


def check_data(source: Source) -> None:
    """Refuse metrics that need labels where there are none, before anything is computed."""
    labelled = source.evaluation.labels() is not None
    for index, name in enumerate(source.recipe.metrics):
        if metrics.METRICS[name].needs_labels and not labelled:
            raise source.loaded.error(
                ("metrics", index),
                f"{name} needs labels and the evaluation data has none; name them in "
                "data.evaluation.labels, or measure agreement and sqnr_db",
            )


def calibrate(source: Source, jobs: Sequence[Job]) -> tuple[Path, Statistics | None]:
    """The float ONNX with markers, and statistics that serve every row of the run.

    One pass over the calibration data collects what is not kept from earlier runs; modelopt is
    imported only if there is such a thing.
    """
    run = source.run
    imported = {
        row.observed
        for job in jobs
        if job.loaded.recipe.statistics.import_
        for row in job.plan.quantized
        if row.site in _imported(job)
    }
    needs = frozenset(
        need for job in jobs for need in needs_of(job.plan.quantized) if need.site not in imported
    )
    version = granplugin.__version__
    key = content_key(source.key, source.calibration.key(), version)
    kept = run.cache / f"statistics-{key}.safetensors"
    run.used.add(kept)
    statistics = Statistics.load(kept, key) if kept.exists() else None
    shapes = {name: tuple(tensor.shape[1:]) for name, tensor in source.example.items()}
    float_key = content_key(source.key, shapes, version)
    missing = {need for need in needs if statistics is None or not statistics.covers([need])}
    if missing:
        seen = source.convert(missing)
        statistics = statistics.join(seen) if statistics else seen
        statistics.save(kept, key)

    def export(path: Path) -> None:
        from granplugin import modelopt_bridge
        from granplugin.graph.export import export_float

        if source.converted is None:
            source.convert(())
        log.info("exporting the float model with a marker at each site")
        with located(source.loaded, "model"), modelopt_bridge.markers(source.converted):
            export_float(source.converted, source.example, path)

    return run.made("float", float_key, ".onnx", export), statistics


def _imported(job: Job) -> dict[str, np.ndarray]:
    path = job.loaded.recipe.statistics.import_
    return import_amax(path, job.plan.quantized) if path else {}


def build_variant(
    source: Source, job: Job, float_onnx: Path, statistics: Statistics | None
) -> Built:
    """Write a variant's ONNX, read it back against its plan, and measure the agreement."""
    run = source.run
    amax = dict(_imported(job))
    floats = load_float(float_onnx)
    weights = weights_of(floats, job.rows)
    for row in job.plan.quantized:
        if row.site not in amax:
            amax[row.site] = find_amax(row, statistics, weights.get(row.layer))
    zero_sites = tuple(site for site, value in amax.items() if value is None)
    amax = {site: value for site, value in amax.items() if value is not None}
    rows = tuple(row for row in job.rows if not row.quantized or row.site in amax)
    digest = [[site, value.shape, value.tobytes().hex()] for site, value in sorted(amax.items())]
    plain = [[row.site, row.format, row.block, row.bn] for row in rows]
    key = content_key(file_key(float_onnx), plain, digest, granplugin.__version__)

    def write(path: Path) -> None:
        save(insert(floats, rows, amax), path)
        read_back(path, rows, amax, weights)

    path = run.made("variant", key, ".onnx", write)
    found = _agreement(source, job, path, amax) if amax else None
    return Built(job, path, amax, zero_sites, found)


def _agreement(source: Source, job: Job, onnx: Path, amax: Mapping[str, np.ndarray]) -> Agreement:
    """Site by site on ONNX Runtime's tensors, and the whole network against modelopt's."""

    def check() -> dict[str, Any]:
        import torch

        from granplugin.modelopt_bridge import fake_quantize
        from granplugin.trace import call, flatten_outputs

        batch = next(iter(source.evaluation))
        rows = [row for row in job.plan.quantized if row.site in amax]
        few = {name: array[:SITE_SAMPLES] for name, array in batch.items()}
        sites = agreement(onnx, rows, amax, few, fake_quantize)
        with torch.no_grad():
            told = flatten_outputs(call(source.quantized(job, amax), source.tensors(batch)))
        theirs = {name: tensor.cpu().numpy() for name, tensor in told.items()}
        reference = backends.load("onnxruntime")
        with reference.open(reference.build(onnx, onnx.parent)) as runner:
            ours = runner.run(batch)
        return {
            **{field: getattr(sites, field) for field in sites.__dataclass_fields__},
            "network_samples": len(next(iter(batch.values()))),
            "network_agreement": metrics.METRICS["agreement"].measure(ours, theirs, None).value,
            "network_sqnr_db": _number(
                metrics.METRICS["sqnr_db"].measure(ours, theirs, None).value
            ),
        }

    key = content_key(
        file_key(onnx), source.evaluation.key(), source.recipe.data.batch_size, source.key,
        granplugin.__version__,
    )  # fmt: skip
    return Agreement(**source.run.made_json("agreement", key, check))


def _number(value: float) -> float | str:
    """As JSON has it: infinity is a word."""
    return value if math.isfinite(value) else str(value)


def measure(
    source: Source, built: Sequence[Built], engines: Mapping[str, ModuleType]
) -> dict[tuple[str, str], Measured]:
    """(variant, engine) -> what came out on all evaluation samples."""
    work = [(name, module, each) for name, module in engines.items() for each in built]
    results: dict[tuple[str, str], Measured] = {}
    for name, module, each in track(work, "measuring accuracy"):
        engine = build_engine(source, each, module)
        outputs = _outputs(source, each, engine, module)
        reference = outputs if each.job.name == FP32 else results[FP32, name].outputs
        values = _values(source, each, engine, module, outputs, reference)
        results[each.job.name, name] = Measured(engine, outputs, values, module.layers(engine))
    return results


def build_engine(source: Source, built: Built, module: ModuleType) -> Engine:
    """The backend's engine of a variant, kept by the ONNX file's content."""
    folder = source.run.cache / f"engine-{built.onnx.stem}-{module.name}"
    source.run.used.add(folder)
    return module.build(built.onnx, folder)


def _outputs(
    source: Source, built: Built, engine: Engine, module: ModuleType
) -> dict[str, np.ndarray]:
    def run_all(path: Path) -> None:
        with module.open(engine) as runner:
            batches = [runner.run(batch) for batch in source.evaluation]
        outputs = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
        metrics.check_finite(outputs, f"{built.job.name} on {engine.backend}: output")
        np.savez(path, **outputs)

    key = content_key(
        built.onnx.name, module.name, engine.version, source.evaluation.key(),
        source.recipe.data.batch_size,
    )  # fmt: skip
    with np.load(source.run.made("outputs", key, ".npz", run_all)) as arrays:
        return dict(arrays)


def _values(
    source: Source,
    built: Built,
    engine: Engine,
    module: ModuleType,
    outputs: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
) -> dict[str, metrics.Measured]:
    labels = source.evaluation.labels()
    values = {}
    for name in source.recipe.metrics:
        if built.job.name == FP32 and metrics.METRICS[name].needs_reference:
            continue
        with located(source.loaded, "data", "evaluation"):
            values[name] = metrics.METRICS[name].measure(outputs, reference, labels)
    if source.recipe.evaluate:
        with located(source.loaded, "evaluate"), module.open(engine) as runner:
            values |= user_metrics(source.recipe.evaluate, runner.run, source.evaluation)
    return values


def user_metrics(target: Any, predict: Any, data: Batches) -> dict[str, metrics.Measured]:
    """What the user's `evaluate` says: metric -> value, and its per-sample values where given."""
    from granplugin.models import blame, resolve

    fn = resolve(target)
    try:
        said = fn(predict, data)
    except UserError:
        raise
    except (Exception, SystemExit) as err:
        raise blame(target, "evaluating", err, ModelError) from err
    if not isinstance(said, dict):
        raise ModelError(f"{target}: it must return a dict of metrics, not a {type(said).__name__}")
    per_sample = said.get("per_sample", {})
    names = [name for name in said if name != "per_sample"]
    if not names:
        raise ModelError(f"{target}: it returned no metric")
    if not isinstance(per_sample, dict) or (stray := [n for n in per_sample if n not in names]):
        wrong = f"has {stray[0]!r}" if isinstance(per_sample, dict) else f"is {per_sample!r:.40}"
        raise ModelError(f"{target}: per_sample {wrong}; it maps {', '.join(map(str, names))}")
    values = {}
    for name in names:
        if name in metrics.METRICS or not isinstance(name, str):
            raise ModelError(f"{target}: a metric of one's own cannot be called {name!r}")
        try:
            samples = np.asarray(per_sample[name], float) if name in per_sample else None
            values[name] = metrics.Measured(float(said[name]), samples)
        except (TypeError, ValueError):
            raise ModelError(
                f"{target}: metric {name!r} is not a number: {said[name]!r:.40}"
            ) from None
        if math.isnan(values[name].value) or (samples is not None and np.isnan(samples).any()):
            raise ModelError(f"{target}: metric {name!r} is NaN")
        if samples is not None and samples.shape != (data.samples,):
            raise ModelError(
                f"{target}: per_sample {name!r} has shape {list(samples.shape)}, "
                f"not [{data.samples}]"
            )
    return values


def measure_latency(
    source: Source,
    results: Mapping[tuple[str, str], Measured],
    engines: Mapping[str, ModuleType],
) -> dict[tuple[str, str, int], Latency]:
    """(variant, engine, batch size) -> latency, all variants of an engine interleaved."""
    latencies: dict[tuple[str, str, int], Latency] = {}
    spec = source.recipe.latency
    first = next(iter(source.evaluation))
    for name, module in engines.items():
        if not module.measures_latency:
            continue
        for batch in sorted({1, source.recipe.data.batch_size}):
            feeds = {key: _filled(array, batch) for key, array in first.items()}
            with ExitStack() as stack:
                runners = {
                    variant: stack.enter_context(module.open(result.engine, batch=batch))
                    for (variant, engine), result in results.items()
                    if engine == name
                }
                log.info(
                    "measuring latency of %d variants on %s, batch %d", len(runners), name, batch
                )
                found = measure_interleaved(
                    {variant: _call(runner, feeds) for variant, runner in runners.items()},
                    warmup=3,
                    rounds=spec.rounds,
                    seconds=spec.seconds,
                )
            latencies |= {(variant, name, batch): latency for variant, latency in found.items()}
    return latencies


def _call(runner: Any, feeds: dict[str, np.ndarray]) -> Any:
    return lambda: runner.run(feeds)


def _filled(array: np.ndarray, batch: int) -> np.ndarray:
    """The first `batch` samples, starting over where there are fewer."""
    return np.ascontiguousarray(np.take(array, np.arange(batch) % len(array), axis=0))


def publish(
    run: RunFolder,
    recipes: Sequence[Loaded],
    source: Source,
    built: Sequence[Built],
    results: Mapping[tuple[str, str], Measured],
    report: Report,
    float_onnx: Path,
) -> None:
    """Put every result in place, now that all exist; the report last."""
    from granplugin.report.markdown import to_markdown

    for each in built:
        run.publish(f"variants/{each.job.name}/model.onnx", each.onnx)
    run.publish("float.onnx", float_onnx)
    run.publish("plan.json", json.dumps(plan_json(source, [each.job for each in built]), indent=1))
    run.publish("measurements.json", json.dumps(_measurements(results), indent=1))
    for loaded in recipes:
        path = loaded.recipe.statistics.export
        own = next(b for b in built if b.job.loaded.path == loaded.path and b.job.kind == "recipe")
        if path:
            export_amax(path, own.job.plan.quantized, own.amax)
    run.publish("report.md", to_markdown(report))
    run.publish("report.json", report.model_dump_json(indent=1))


def _measurements(results: Mapping[tuple[str, str], Measured]) -> dict[str, Any]:
    return {
        f"{variant}/{engine}": {
            name: {
                "value": value.value if math.isfinite(value.value) else str(value.value),
                "per_sample": None
                if value.per_sample is None
                else value.per_sample.astype(float).tolist(),
            }
            for name, value in result.values.items()
            if value.per_sample is None or np.isfinite(value.per_sample).all()
        }
        for (variant, engine), result in results.items()
    }


def plan_json(source: Source, jobs: Sequence[Job]) -> dict[str, Any]:
    """plan.json: the layers, and every variant's rows."""
    return {
        "version": 1,
        "model_key": source.key,
        "text_key": source.text_key,
        "layers": [layer_to_json(layer) for layer in source.layers],
        "variants": {job.name: [row_json(row) for row in job.plan.rows] for job in jobs},
    }


def row_json(row: Row) -> dict[str, Any]:
    """A row as JSON."""
    return {
        "layer": row.layer, "type": row.type, "role": row.role, "shape": list(row.shape),
        "format": row.format, "granularity": row.granularity,
        "block": list(row.block) if row.block else None, "scales": row.scales,
        "calibrator": str(row.calibrator) if row.calibrator else None, "amax": row.amax,
        "bn": row.bn, "rule": row.rule, "where": row.where, "note": row.note,
    }  # fmt: skip
