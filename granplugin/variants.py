"""The variants of a run: what is planned for each, and its Q/DQ ONNX."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

import granplugin
from granplugin import backends, metrics
from granplugin.calibrators import refusal
from granplugin.errors import ModelError, RecipeError, UserError
from granplugin.graph.export import export_float
from granplugin.graph.files import load_float, save
from granplugin.graph.fold import weights_of
from granplugin.graph.lowering.methods import How
from granplugin.graph.precision import convert, too_large
from granplugin.graph.qdq import insert
from granplugin.graph.verify import agreement, read_back
from granplugin.layers import Layer
from granplugin.legality import decide, engines_of, promised
from granplugin.plan import Plan, Row, make_plan, preset_plan
from granplugin.recipe.load import RECIPE, Loaded, load_variants
from granplugin.recipe.schema import FLOAT
from granplugin.report.model import Agreement
from granplugin.run_folder import content_key, file_key
from granplugin.session import Session, located
from granplugin.statistics import Statistics, find_amax, import_amax, needs_of
from granplugin.trace import call, flatten_outputs

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
    precision: str
    """Of all that is not quantized."""
    ways: Mapping[str, Mapping[str, How]] = field(default_factory=dict)
    """Engine -> site -> how it is written for that engine, where not as it is."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows the graph is edited by: quantized, or of a layer whose batch norm is folded."""
        return tuple(row for row in self.plan.rows if row.quantized or row.bn == "fold")


@dataclass(frozen=True)
class Built:
    """A variant's ONNX file, with what is in it; `lowered` has the file of each engine that needs
    another. `float32_nodes` are computed in float32 in a file of float16: they could overflow."""

    job: Job
    onnx: Path
    amax: Mapping[str, np.ndarray]
    zero_sites: tuple[str, ...]
    agreement: Agreement | None
    lowered: Mapping[str, Path]
    float32_nodes: tuple[str, ...]

    def file(self, engine: str) -> Path:
        """What this engine is built of."""
        return self.lowered.get(engine, self.onnx)


def plan_jobs(recipes: Sequence[Loaded], layers: Sequence[Layer]) -> list[Job]:
    """Every variant of the run with its plan: baselines, then each recipe and its variants.

    Raises RecipeError where a rule cannot be honoured: by the model, or by an engine.
    """
    first = recipes[0]
    jobs = [Job(FP32, "baseline", first, Plan(()), FP32)]
    for name in dict.fromkeys(first.recipe.baselines):
        if name == "fp16":
            jobs.append(Job(name, "baseline", first, _floating(layers, first), name))
        elif name != FP32:
            plan = preset_plan(name, layers, first)
            jobs.append(Job(name, "baseline", first, plan, first.recipe.precision))
    for loaded in recipes:
        for name, variant in load_variants(loaded).items():
            plan = make_plan(variant, layers)
            precision = variant.recipe.precision
            promises = promised(plan, layers, engines_of(variant.recipe), precision)
            ways = decide(plan, promises, variant.recipe.on_unsupported)
            own = name == RECIPE
            title = loaded.recipe.name if own else name
            if any(job.name == title for job in jobs):
                title = f"{loaded.recipe.name}-{name}"
            if any(job.name == title for job in jobs):
                raise RecipeError(f"{loaded.path}: two variants of this run are called {title!r}")
            kind = "recipe" if own else "variant"
            jobs.append(Job(title, kind, variant, plan, precision, ways))
    return jobs


def _floating(layers: Sequence[Layer], loaded: Loaded) -> Plan:
    """Nothing quantized, batch norms folded: what TensorRT makes of the float network."""
    nothing = dict(format=FLOAT, granularity=None, block=None, calibrator=None, amax=None)
    rows = preset_plan("tensorrt@11", layers, loaded).rows
    return Plan(tuple(replace(row, **nothing) for row in rows))


def calibrate(session: Session, jobs: Sequence[Job]) -> tuple[Path, Statistics | None]:
    """The float ONNX with markers, and statistics that serve every row of the run.

    One pass over the calibration data collects what is not kept from earlier runs; modelopt is
    imported only if there is such a thing.
    """
    refuse_calibrators(session, jobs)
    run = session.run
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
    key = content_key(session.key, session.calibration.key(), version)
    kept = run.cache / f"statistics-{key}.safetensors"
    run.used.add(kept)
    statistics = Statistics.load(kept, key) if kept.exists() else None
    shapes = {name: tuple(tensor.shape[1:]) for name, tensor in session.example.items()}
    float_key = content_key(session.key, shapes, version)
    missing = {need for need in needs if statistics is None or not statistics.covers([need])}
    if missing:
        seen = session.convert(missing)
        statistics = statistics.join(seen) if statistics else seen
        statistics.save(kept, key)

    def export(path: Path) -> None:
        from granplugin import modelopt_bridge

        if session.converted is None:
            session.convert(())
        log.info("exporting the float model with a marker at each site")
        with located(session.loaded, "model"), modelopt_bridge.markers(session.converted):
            export_float(session.converted, session.example, path)

    return run.made("float", float_key, ".onnx", export), statistics


def refuse_calibrators(session: Session, jobs: Sequence[Job]) -> None:
    """RecipeError for a calibrator that these data cannot serve, before the pass over them."""
    samples = session.calibration.samples
    for job in jobs:
        for row in job.plan.quantized:
            if row.role != "weight" and row.amax is None:
                refused = refusal(row.calibrator, row.shape, row.block, samples)
                if refused:
                    raise RecipeError(f"{row.where}: {row.site}: {refused}")


def _imported(job: Job) -> dict[str, np.ndarray]:
    path = job.loaded.recipe.statistics.import_
    if not path:
        return {}
    try:
        return import_amax(path, job.plan.quantized)
    except UserError as err:
        mark = job.loaded.mark("statistics", "import")
        raise type(err)(f"{mark}: variant {job.name}: {err}") from err


def build_variant(
    session: Session, job: Job, float_onnx: Path, statistics: Statistics | None
) -> Built:
    """Write a variant's ONNX, read it back against its plan, and measure the agreement."""
    run = session.run
    amax = dict(_imported(job))
    floats = load_float(float_onnx)
    weights = weights_of(floats, job.rows)
    for row in job.plan.quantized:
        if row.site not in amax:
            try:
                amax[row.site] = find_amax(row, statistics, weights.get(row.layer))
            except UserError as err:
                raise type(err)(f"{row.where}: {err}") from err
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
    found = _agreement(session, job, path, amax) if amax else None
    kept: list[str] = []

    def in_precision(path: Path, how: Mapping[str, How] = MappingProxyType({})) -> Path:
        """The file, or one with its float part in the job's precision."""
        if job.precision == FP32:
            return path
        keep = _float32_nodes(session, path) if job.precision == "fp16" else []
        kept.extend(keep)
        sites = {row.site for row in rows}

        def write_low(low: Path) -> None:
            save(convert(path, job.precision, sites, keep), low)
            read_back(low, rows, amax, weights, how, job.precision, keep)
            if amax and job.precision in backends.load("onnxruntime").PRECISIONS:
                agreement(low, rows, amax, _few(session), how=how, weights=weights)

        key = content_key(file_key(path), keep, how, granplugin.__version__)
        return run.made(job.precision, key, ".onnx", write_low)

    def lower(how: Mapping[str, How]) -> Path:
        def write_lowered(path: Path) -> None:
            save(insert(floats, rows, amax, how), path)
            read_back(path, rows, amax, weights, how)
            agreement(path, rows, amax, _few(session), how=how, weights=weights)

        path = run.made("lowered", content_key(key, how), ".onnx", write_lowered)
        return in_precision(path, how)

    own = in_precision(path)
    lowered = {
        engine: path
        for engine in engines_of(job.loaded.recipe)
        if own != path and job.precision not in backends.load(engine).PRECISIONS
    }
    for engine, how in job.ways.items():
        with located_at(job.plan, how):
            how = {site: way for site, way in how.items() if site in amax}
            lowered[engine] = lower(how) if how else own
    float32_nodes = tuple(dict.fromkeys(kept))
    return Built(job, own, amax, zero_sites, found, lowered, float32_nodes)


def _float32_nodes(session: Session, path: Path) -> list[str]:
    """Those of a file that the first calibration batch shows to be too large for float16."""
    batch = next(iter(session.calibration))
    key = content_key(file_key(path), session.calibration.key(), granplugin.__version__)
    return session.run.made_json("float32", key, lambda: too_large(path, batch))


def _few(session: Session) -> dict[str, np.ndarray]:
    batch = next(iter(session.evaluation))
    return {name: array[:SITE_SAMPLES] for name, array in batch.items()}


@contextmanager
def located_at(plan: Plan, how: Mapping[str, How]) -> Iterator[None]:
    """A refusal to lower a site is said at its rule's line."""
    try:
        yield
    except ModelError as err:
        for row in plan.quantized:
            if row.site in how and str(err).startswith(f"{row.site}:"):
                raise ModelError(f"{row.where}: {err}") from err
        raise


def _agreement(session: Session, job: Job, onnx: Path, amax: Mapping[str, np.ndarray]) -> Agreement:
    """Site by site on ONNX Runtime's tensors, and the whole network against modelopt's."""

    def check() -> dict[str, Any]:
        from granplugin.modelopt_bridge import fake_quantize

        batch = next(iter(session.evaluation))
        rows = [row for row in job.plan.quantized if row.site in amax]
        sites = agreement(onnx, rows, amax, _few(session), fake_quantize)
        told = flatten_outputs(call(session.quantized(job.plan, amax), session.tensors(batch)))
        theirs = {name: tensor.cpu().numpy() for name, tensor in told.items()}
        reference = backends.load("onnxruntime")
        with reference.open(reference.build(onnx, onnx.parent)) as runner:
            ours = runner.run(batch)
        return {
            **{field: getattr(sites, field) for field in sites.__dataclass_fields__},
            "network_samples": len(next(iter(batch.values()))),
            "network_agreement": _same_decisions(ours, theirs),
            "network_sqnr_db": _number(
                metrics.METRICS["sqnr_db"].measure(ours, theirs, None).value
            ),
        }

    key = content_key(
        file_key(onnx), session.evaluation.key(), session.recipe.data.batch_size, session.key,
        granplugin.__version__,
    )  # fmt: skip
    return Agreement(**session.run.made_json("agreement", key, check))


def _same_decisions(ours: Mapping, theirs: Mapping) -> float | None:
    """Percent, None where no output has classes to decide between."""
    try:
        return metrics.METRICS["agreement"].measure(ours, theirs, None).value
    except ModelError:
        return None


def _number(value: float) -> float | str:
    """As JSON has it: infinity is a word."""
    return value if math.isfinite(value) else str(value)
