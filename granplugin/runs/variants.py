"""The variants of a run: what is planned for each, and its Q/DQ ONNX."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from granplugin import backends
from granplugin.measures import metrics
from granplugin.quant.calibrators import refusal
from granplugin.engines import ENGINES, REFERENCE
from granplugin.errors import ModelError, RecipeError, UserError
from granplugin.quant.granularity import reduce_blocks
from granplugin.graph.files import load_float, save
from granplugin.graph.edit.fold import weights_of
from granplugin.graph.edit.precision import convert, too_large
from granplugin.graph.edit.qdq import insert
from granplugin.graph.edit.unsigned import concatenates, unsigned
from granplugin.graph.read.agreement import agreement
from granplugin.graph.read.verify import read_back
from granplugin.quant.layers import Layer
from granplugin.capabilities.legality import Written, decide, engines_of, targets_of
from granplugin.planning.plan import make_plan, preset_plan
from granplugin.planning.rows import Plan, Row, as_float
from granplugin.recipe.presets import DEFAULT
from granplugin.recipe.load import RECIPE, load_variants
from granplugin.recipe.loaded import Loaded, located
from granplugin.results.agreed import Agreement
from granplugin.results.values import FP32, Built, Job, OnnxFile
from granplugin.store.keys import content_key, file_key
from granplugin.store.maker import made_by
from granplugin.runs.session import Session
from granplugin.calibration.statistics import (
    Statistics,
    find_amax,
    import_amax,
    needs_of,
    share_amax,
)

log = logging.getLogger(__name__)

EXPORTERS = ("nvidia-modelopt", "torch", "onnx", "onnx_ir", "onnxscript")
"""The libraries that have a part in the float model's file."""

SITE_SAMPLES = 4
"""Samples whose tensors are compared value by value at every site."""


def plan_jobs(
    recipes: Sequence[Loaded], layers: Sequence[Layer], engines: Sequence[str] | None = None
) -> list[Job]:
    """Every variant of the run with its plan: baselines, then each recipe and its variants;
    planned for `engines`, or for the recipe's own.

    Raises RecipeError where a rule cannot be honoured: by the model, or by an engine.
    """
    first = recipes[0]
    jobs = [Job(FP32, "baseline", first, Plan(()), FP32)]
    for name in dict.fromkeys(first.recipe.baselines):
        if name == "fp16":
            jobs.append(Job(name, "baseline", first, _floating(layers, first), name))
        elif name != FP32:
            plan, precision = preset_plan(name, layers, first), first.recipe.precision
            wanted, targets = engines or engines_of(first.recipe), targets_of(first.recipe)
            written = decide(plan, layers, wanted, None, precision, targets)
            jobs.append(Job(name, "baseline", first, plan, precision, written))
    for loaded in recipes:
        for name, variant in load_variants(loaded).items():
            plan = make_plan(variant, layers)
            wanted, recipe = engines or engines_of(variant.recipe), variant.recipe
            written = decide(
                plan, layers, wanted, recipe.on_unsupported, recipe.precision, targets_of(recipe)
            )
            own = name == RECIPE
            title = loaded.recipe.name if own else name
            if any(job.name == title for job in jobs):
                title = f"{loaded.recipe.name}-{name}"
            if any(job.name == title for job in jobs):
                raise RecipeError(f"{loaded.path}: two variants of this run are called {title!r}")
            kind = "recipe" if own else "variant"
            jobs.append(Job(title, kind, variant, plan, recipe.precision, written))
    return jobs


def _floating(layers: Sequence[Layer], loaded: Loaded) -> Plan:
    """Nothing quantized, batch norms folded: what TensorRT makes of the float network."""
    rows = preset_plan(DEFAULT, layers, loaded).rows
    return Plan(tuple(as_float(row) for row in rows))


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
        need for job in jobs for need in needs_of(job.calibrated) if need.site not in imported
    )
    key = session.statistics_key
    kept = run.cache / f"statistics-{key}.safetensors"
    run.used.add(kept)
    statistics = Statistics.load(kept, key) if kept.exists() else None
    shapes = {name: array.shape[1:] for name, array in session.example.items()}
    float_key = content_key(session.key, shapes, session.made_by(*EXPORTERS))
    missing = {need for need in needs if statistics is None or not statistics.covers([need])}
    if missing:
        seen = session.collect(missing)
        statistics = statistics.join(seen) if statistics else seen
        statistics.save(kept, key)

    def export(path: Path) -> None:
        log.info("exporting the float model with a marker at each site")
        with located(session.loaded, "model"):
            session.network.export(session.layers, session.example, path)

    return run.made("float", float_key, ".onnx", export), statistics


def refuse_calibrators(session: Session, jobs: Sequence[Job]) -> None:
    """RecipeError for a calibrator that these data cannot serve, before the pass over them."""
    samples = session.calibration.samples
    for job in jobs:
        for row in job.calibrated:
            if row.operand != "weight" and row.amax is None:
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
    session: Session,
    job: Job,
    float_onnx: Path,
    statistics: Statistics | None,
    engines: Sequence[str] | None = None,
    agree: bool = True,
) -> Built:
    """Write a variant's ONNX files - its own, and those of `engines` (None: the recipe's) that need
    another - read each back against what is to be in it, and measure the agreement; not where only
    what engines make of the file is asked (`agree` false)."""
    floats, imported = load_float(float_onnx), _imported(job)
    weights = weights_of(floats, _edited(job.plan.rows, None))
    ranges = {
        row: _range(row, imported.get(row.site), statistics, weights.get(row.layer))
        for row in job.calibrated
    }
    zero_sites = tuple(
        row.site for row in job.plan.quantized if not row.dynamic and ranges[row] is None
    )

    kept: list[str] = []

    def file(of: Written, precision: str, signed: bool = True) -> OnnxFile:
        """The file in float32, or with its float part in this precision; unless `signed`, what it
        concatenates is stored as uint8."""
        amax = _amax(of.rows, ranges)
        rows = _edited(of.rows, amax)
        how = {site: way for site, way in of.how.items() if site in amax}
        digest = [
            [site, value.shape, value.tobytes().hex()] for site, value in sorted(amax.items())
        ]
        plain = [[row.site, row.bn, *row.form] for row in rows]
        key = content_key(file_key(float_onnx), plain, digest, how, _writer())

        def write(path: Path) -> None:
            with located_at(rows):
                save(insert(floats, rows, amax, how), path)
            read_back(path, rows, amax, weights, how)
            if of.made:
                agreement(path, rows, amax, _few(session), how=how, weights=weights)

        path = session.run.made("variant", key, ".onnx", write)
        keep: list[str] = []

        def check(low: Path) -> None:
            read_back(low, rows, amax, weights, how, precision, keep)
            if amax and precision in ENGINES[REFERENCE].precisions:
                agreement(low, rows, amax, _few(session), how=how, weights=weights)

        if precision != FP32:
            keep = _float32_nodes(session, path) if precision == "fp16" else []
            kept.extend(keep)

            def write_low(low: Path) -> None:
                save(convert(path, precision, {row.site for row in rows}, keep), low)
                check(low)

            key = content_key(file_key(path), keep, how, _writer())
            path = session.run.made(precision, key, ".onnx", write_low)
        if not signed and concatenates(model := load_float(path)):

            def write_unsigned(low: Path) -> None:
                save(unsigned(model), low)
                check(low)

            key = content_key(file_key(path), _writer())
            path = session.run.made("unsigned", key, ".onnx", write_unsigned)
        return OnnxFile(path, key)

    planned = Written(job.plan.rows)
    amax, float32 = _amax(planned.rows, ranges), file(planned, FP32)
    quantized = any(row.quantized for row in _edited(job.plan.rows, amax))
    found = _agreement(session, job, float32.path, amax) if quantized and agree else None
    onnx, own = file(planned, job.precision), {}
    for engine in engines or engines_of(job.loaded.recipe):
        written = job.written.get(engine, planned)
        facts = ENGINES[engine]
        has = job.precision in facts.precisions
        each = file(written, job.precision if has else FP32, facts.concatenates_int8)
        if written.made or each != onnx:
            own[engine] = each
    float32_nodes = tuple(dict.fromkeys(kept))
    return Built(job, float_onnx, ranges, onnx, amax, zero_sites, found, own, float32_nodes)


def write_quantized(built: Built, engine: str, layers: Collection[str], path: Path) -> None:
    """What this engine is built of, with only these layers quantized."""
    written = built.job.written.get(engine, Written(built.job.plan.rows))
    rows = [row if row.layer in layers else as_float(row) for row in written.rows]
    amax = _amax(rows, built.ranges)
    how = {site: way for site, way in written.how.items() if site in amax}
    edited = _edited(rows, amax)
    save(insert(load_float(built.floats), edited, amax, how), path)
    precision = built.job.precision
    if precision != FP32 and precision in ENGINES[engine].precisions:
        sites = {row.site for row in edited}
        save(convert(path, precision, sites, built.float32_nodes), path)
    if not ENGINES[engine].concatenates_int8 and concatenates(model := load_float(path)):
        save(unsigned(model), path)


def _float32_nodes(session: Session, path: Path) -> list[str]:
    """Those of a file that the first calibration batch shows to be too large for float16."""
    batch = next(iter(session.calibration))
    key = content_key(file_key(path), session.calibration.key(), _writer())
    return session.run.made_json("float32", key, lambda: too_large(path, batch))


def _writer() -> str:
    """What writes a variant's files and reads them back."""
    return made_by(
        "granplugin.graph.edit.qdq",
        "granplugin.graph.edit.precision",
        "granplugin.graph.edit.unsigned",
        "granplugin.graph.read.verify",
        "granplugin.graph.read.agreement",
        libraries=("onnx", "onnx_ir", "onnxruntime"),
    )


def _edited(rows: Sequence[Row], amax: Mapping[str, np.ndarray] | None) -> tuple[Row, ...]:
    """The rows a graph is edited by: quantized with a range, or with a batch norm to fold."""
    return tuple(
        row
        for row in rows
        if (row.quantized and (row.dynamic or amax is None or row.site in amax))
        or (row.bn == "fold" and not row.quantized)
    )


def _amax(rows: Sequence[Row], ranges: Mapping[Row, np.ndarray | None]) -> dict[str, np.ndarray]:
    """Site -> amax of the rows that have a range, that of its group where a scale is shared."""
    found = {row.site: ranges[row] for row in rows if ranges.get(row) is not None}
    return share_amax(rows, found)


def _range(
    row: Row,
    imported: np.ndarray | None,
    statistics: Statistics | None,
    weight: np.ndarray | None,
) -> np.ndarray | None:
    """The row's amax; from an imported one, which is as fine as the plan's row or finer, where
    there is one."""
    if imported is not None:
        parts = tuple(n // k for n, k in zip(imported.shape, row.grid, strict=True))
        return reduce_blocks(imported, parts)
    try:
        return find_amax(row, statistics, weight)
    except UserError as err:
        raise type(err)(f"{row.where}: {err}") from err


def _few(session: Session) -> dict[str, np.ndarray]:
    batch = next(iter(session.evaluation))
    return {name: array[:SITE_SAMPLES] for name, array in batch.items()}


@contextmanager
def located_at(rows: Sequence[Row]) -> Iterator[None]:
    """A refusal to lower a site is said at its rule's line."""
    try:
        yield
    except ModelError as err:
        for row in rows:
            if str(err).startswith(f"{row.site}:"):
                raise ModelError(f"{row.where}: {err}") from err
        raise


def _agreement(session: Session, job: Job, onnx: Path, amax: Mapping[str, np.ndarray]) -> Agreement:
    """Site by site on ONNX Runtime's tensors, and the whole network against modelopt's."""

    def check() -> dict[str, Any]:
        from granplugin.modelopt_bridge import fake_quantize

        batch = next(iter(session.evaluation))
        rows = _edited(job.plan.rows, amax)
        sites = agreement(onnx, rows, amax, _few(session), fake_quantize)
        with located(session.loaded, "model"):
            quantized = session.network.quantized(job.plan, amax, session.layers, session.example)
        theirs = quantized(batch)
        reference = backends.load(REFERENCE)
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
        _writer(), session.made_by("nvidia-modelopt", "torch"),
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
