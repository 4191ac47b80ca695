"""The float model's ONNX, and the ranges that all variants of a run take theirs from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from granplugin.calibration.statistics import Statistics, import_amax, needs_of
from granplugin.errors import RecipeError, UserError
from granplugin.progress import stage
from granplugin.quant.calibrators import refusal
from granplugin.recipe.loaded import located
from granplugin.results.values import Job
from granplugin.runs.session import Session
from granplugin.store.keys import content_key

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Calibrated:
    """`floats` is the float ONNX with a marker at each site; `statistics` are of the calibration
    data, None where nothing needs them; `imported` has by variant the amax grids, by site, that the
    network came with, and those of a file that its recipe names."""

    floats: Path
    statistics: Statistics | None
    imported: Mapping[str, Mapping[str, np.ndarray]]


def calibrate(session: Session, jobs: Sequence[Job]) -> Calibrated:
    """What serves every row of the run.

    One pass over the calibration data collects what is not kept from earlier runs.
    """
    refuse_calibrators(session, jobs)
    run = session.run
    imported = {job.name: _kept(session, job) | _imported(job) for job in jobs}
    needs = frozenset(
        need
        for job in jobs
        for need in needs_of(row for row in job.calibrated if row.site not in imported[job.name])
    )
    key = session.statistics_key
    kept = run.kept.path(f"statistics-{key}.safetensors")
    statistics = Statistics.load(kept, key) if kept.exists() else None
    shapes = {name: array.shape[1:] for name, array in session.example.items()}
    form = session.recipe.model.form
    batch = session.recipe.data.batch_size if form.static_batch else None
    written = (form.dynamic, form.custom_ops, batch)
    float_key = content_key(session.key, shapes, written, session.made_by())
    missing = {need for need in needs if statistics is None or not statistics.covers([need])}
    if missing:
        seen = session.collect(missing)
        statistics = statistics.join(seen) if statistics else seen
        statistics.save(kept, key)

    def export(path: Path) -> None:
        log.info("exporting the float model with a marker at each site")
        with located(session.loaded, "model"), stage("exporting the float model"):
            session.network.export(session.layers, session.example, path)

    return Calibrated(run.kept.made("float", float_key, ".onnx", export), statistics, imported)


def refuse_calibrators(session: Session, jobs: Sequence[Job]) -> None:
    """RecipeError for a calibrator that these data cannot serve, before the pass over them."""
    samples = session.calibration.samples
    for job in jobs:
        for row in job.calibrated:
            if row.operand != "weight" and row.amax is None:
                refused = refusal(row.calibrator, row.shape, row.block, samples)
                if refused:
                    raise RecipeError(f"{row.where}: {row.site}: {refused}")


def _kept(session: Session, job: Job) -> dict[str, np.ndarray]:
    """The ranges that the network came with, of the rows that keep them."""
    kept = [row.site for row in job.plan.quantized if row.given is not None]
    ranges = session.network.ranges(session.layers) if kept else {}
    return {site: ranges[site] for site in kept}


def _imported(job: Job) -> dict[str, np.ndarray]:
    path = job.loaded.recipe.statistics.import_
    if not path:
        return {}
    try:
        return import_amax(path, job.plan.quantized)
    except UserError as err:
        mark = job.loaded.mark("statistics", "import")
        raise type(err)(f"{mark}: variant {job.name}: {err}") from err
