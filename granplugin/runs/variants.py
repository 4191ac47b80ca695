"""A variant's Q/DQ ONNX files: written, read back against what is to be in them, kept by content."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from granplugin.calibration.statistics import Statistics, find_amax, ranged, share_amax, usable
from granplugin.capabilities.legality import Written, engines_of, forms_of
from granplugin.data.batches import Batch, Batches
from granplugin.engines import ENGINES, REFERENCE, EngineFacts
from granplugin.errors import ModelError, UserError
from granplugin.graph.edit.fold import weights_of
from granplugin.graph.edit.forms import asked_forms, in_forms
from granplugin.graph.edit.own_operators import own_operators
from granplugin.graph.edit.precision import convert, too_large
from granplugin.graph.edit.qdq import insert
from granplugin.graph.files import load_float, save
from granplugin.graph.mapped import let_go
from granplugin.graph.methods import How
from granplugin.graph.read.agreement import agreement
from granplugin.graph.read.verify import read_back
from granplugin.planning.rows import QuantizedRow, Row, as_float
from granplugin.quant.granularity import reduce_blocks
from granplugin.recipe.schema import Recipe
from granplugin.results.values import FP32, Built, Job, OnnxFile
from granplugin.runs.calibrated import Calibrated
from granplugin.runs.session import Session
from granplugin.store.cache import Cache
from granplugin.store.keys import content_key, file_key
from granplugin.store.maker import made_by

SITE_SAMPLES = 4
"""Samples whose tensors are compared value by value at every site."""

Ranges = Mapping[QuantizedRow, np.ndarray | None]
"""The amax of rows whose ranges are constants; None where only zeros were seen."""


@dataclass(frozen=True, eq=False)
class BuildVariant:
    """The task to write a variant's own files and those of `engines` that need another. `imported`
    has amax grids by site; `calibration` and `evaluation` are looked at by their first samples,
    `samples` of them where sites are compared."""

    job: Job
    floats: Path
    statistics: Statistics | None
    imported: Mapping[str, np.ndarray]
    engines: tuple[str, ...]
    calibration: Batches
    evaluation: Batches
    samples: int

    def run(self, cache: Cache) -> Built:
        """Raises UserError, and Unhonoured where a file, read back, is not what the plan says."""
        job, model = self.job, load_float(self.floats)
        weights = weights_of(model, edited(job.plan.rows, None))
        floats = _Floats(model, file_key(self.floats), weights)
        ranges = {
            row: _range(row, self.imported.get(row.site), self.statistics, weights.get(row.layer))
            for row in job.calibrated
        }
        planned = Written(job.plan.rows)
        own = _write(self, floats, _content(planned, ranges), cache, job.precision)
        files, float32_nodes = {}, list(own.float32_nodes)
        for engine in self.engines:
            written = job.written.get(engine, planned)
            facts, content = ENGINES[engine], _content(written, ranges)
            precision = job.precision if job.precision in facts.precisions else FP32
            each = _write(self, floats, content, cache, precision, facts)
            float32_nodes += each.float32_nodes
            if written.made or each.onnx != own.onnx:
                files[engine] = each.onnx
        return Built(
            job=job,
            floats=self.floats,
            ranges=ranges,
            onnx=own.onnx,
            float32=own.float32,
            amax=_amax(planned.rows, ranges),
            zero_sites=tuple(
                row.site for row in job.plan.quantized if not row.dynamic and ranges[row] is None
            ),
            agreement=None,
            own=files,
            float32_nodes=tuple(dict.fromkeys(float32_nodes)),
        )


def variant_task(
    session: Session,
    job: Job,
    calibrated: Calibrated,
    engines: Sequence[str] | None = None,
) -> BuildVariant:
    """The task for a variant of a session: for `engines`, or for its recipe's own."""
    return BuildVariant(
        job=job,
        floats=calibrated.floats,
        statistics=calibrated.statistics,
        imported=calibrated.imported.get(job.name, {}),
        engines=tuple(engines or engines_of(job.loaded.recipe)),
        calibration=session.calibration,
        evaluation=session.evaluation,
        samples=site_samples(session.recipe),
    )


@dataclass(frozen=True, eq=False)
class _Floats:
    """The float model with markers, the key of its file's bytes, and the layers' weights."""

    model: ir.Model
    key: str
    weights: Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class _Content:
    """What is in a file: `rows` by their `amax`, `how` what is not written plainly; `changed` where
    something was made of rows that an engine does not have."""

    rows: tuple[Row, ...]
    amax: Mapping[str, np.ndarray]
    how: Mapping[str, How]
    changed: bool


def _content(written: Written, ranges: Ranges) -> _Content:
    amax = _amax(written.rows, ranges)
    how = {site: way for site, way in written.how.items() if site in amax}
    return _Content(edited(written.rows, amax), amax, how, bool(written.made))


@dataclass(frozen=True)
class _Files:
    """The file that was asked for, the same content in float32, and the nodes that are float32 all
    the same."""

    onnx: OnnxFile
    float32: OnnxFile
    float32_nodes: tuple[str, ...] = ()


def _write(
    task: BuildVariant,
    floats: _Floats,
    content: _Content,
    cache: Cache,
    precision: str,
    engine: EngineFacts | None = None,
) -> _Files:
    """The file of this content with its float part in this precision; of an engine, as that takes
    it."""
    onnx = float32 = _float32(task, floats, content, cache)
    keep: list[str] = []

    def checked(save_it: Callable[[Path], None], path: Path) -> None:
        save_it(path)
        read_back(path, content.rows, content.amax, floats.weights, content.how, precision, keep)
        if content.amax and precision in ENGINES[REFERENCE].precisions:
            _agrees(task, floats, content, path)

    if precision != FP32:
        keep = _float32_nodes(task, float32.path, cache) if precision == "fp16" else []
        sites = {row.site for row in content.rows}

        def lower(path: Path) -> None:
            save(convert(float32.path, precision, sites, keep), path)

        key = content_key(file_key(float32.path), keep, content.how, writer())
        onnx = OnnxFile(cache.made(precision, key, ".onnx", partial(checked, lower)), key)
    if engine is None:
        return _Files(onnx, float32, tuple(keep))
    known = forms_of(engine.name)
    if known and (forms := asked_forms(model := load_float(onnx.path), known)):

        def write_forms(path: Path) -> None:
            save(in_forms(model, forms), path)

        key = content_key(file_key(onnx.path), forms, writer())
        onnx = OnnxFile(cache.made("equal", key, ".onnx", partial(checked, write_forms)), key)
    if rows := _by_own_operators(engine, content.rows, content.amax, content.how):
        plain = onnx.path

        def write_own(path: Path) -> None:
            own_operators(model := load_float(plain), rows, engine.operators)
            save(model, path)
            read_back(
                path, content.rows, content.amax, floats.weights, content.how, precision, keep
            )

        key = content_key(file_key(plain), sorted(engine.operators.items()), writer())
        onnx = OnnxFile(cache.made("own", key, ".onnx", write_own), key, plain)
    return _Files(onnx, float32, tuple(keep))


def _float32(task: BuildVariant, floats: _Floats, content: _Content, cache: Cache) -> OnnxFile:
    rows, amax, how = content.rows, content.amax, content.how
    digest = [[site, value.shape, value.tobytes().hex()] for site, value in sorted(amax.items())]
    plain = [[row.site, row.bn, *row.form] for row in rows]
    key = content_key(floats.key, plain, digest, how, writer())

    def write(path: Path) -> None:
        with located_at(rows):
            save(insert(floats.model, rows, amax, how), path)
        read_back(path, rows, amax, floats.weights, how)
        if content.changed:
            _agrees(task, floats, content, path)

    return OnnxFile(cache.made("variant", key, ".onnx", write), key)


def _by_own_operators(
    engine: EngineFacts, rows: Sequence[Row], amax: Mapping[str, np.ndarray], how: Mapping[str, How]
) -> list[QuantizedRow]:
    """The rows whose weights this engine reads by operators of its own."""
    return [
        row
        for row in rows
        if row.quantized
        and row.format in engine.operators
        and row.site in amax
        and row.site not in how
    ]


def _agrees(task: BuildVariant, floats: _Floats, content: _Content, path: Path) -> None:
    """Raises Unhonoured where the file's numbers are not the oracle's at some site."""
    few = first_samples(task.evaluation, task.samples)
    agreement(path, content.rows, content.amax, few, how=content.how, weights=floats.weights)


def _float32_nodes(task: BuildVariant, path: Path, cache: Cache) -> list[str]:
    """Those of a file that the first calibration batch shows to be too large for float16."""

    def find() -> list[str]:
        return too_large(path, next(iter(task.calibration)))

    key = content_key(file_key(path), task.calibration.key(), writer())
    return cache.made_json("float32", key, find)


def write_quantized(built: Built, engine: str, parts: Collection[str], path: Path) -> Path:
    """What this engine is built of, with only these layers or sites quantized; and the file of it
    whose numbers the reference computes."""
    written = built.job.written.get(engine, Written(built.job.plan.rows))
    kept = [
        row if row.layer in parts or row.site in parts else as_float(row) for row in written.rows
    ]
    amax = _amax(kept, built.ranges)
    how = {site: way for site, way in written.how.items() if site in amax}
    rows = edited(kept, amax)
    save(insert(load_float(built.floats), rows, amax, how), path)
    precision = built.job.precision
    if precision != FP32 and precision in ENGINES[engine].precisions:
        sites = {row.site for row in rows}
        save(convert(path, precision, sites, built.float32_nodes), path)
    if forms := asked_forms(model := load_float(path), forms_of(engine)):
        save(in_forms(model, forms), path)
    plain = path
    if own := _by_own_operators(ENGINES[engine], rows, amax, how):
        plain = path.rename(path.with_name(f"plain-{path.name}"))
        own_operators(model := load_float(plain), own, ENGINES[engine].operators)
        save(model, path)
    return plain


def writer() -> str:
    """What writes a variant's files and reads them back."""
    return made_by(
        "granplugin.graph.edit.qdq",
        "granplugin.graph.edit.precision",
        "granplugin.graph.edit.forms",
        "granplugin.graph.edit.own_operators",
        "granplugin.graph.read.verify",
        "granplugin.graph.read.agreement",
        libraries=("onnx", "onnx_ir", "onnxruntime"),
    )


def edited(rows: Sequence[Row], amax: Mapping[str, np.ndarray] | None) -> tuple[Row, ...]:
    """The rows a graph is edited by: quantized with a range, or with a batch norm to fold."""
    kept = {r.site for r in (ranged(rows, amax) if amax is not None else rows) if r.quantized}
    return tuple(
        row if row.site in kept or not row.quantized else as_float(row)
        for row in rows
        if row.site in kept or row.bn == "fold"
    )


def _amax(rows: Sequence[Row], ranges: Ranges) -> dict[str, np.ndarray]:
    """Site -> amax of the rows that have a range, that of its group where a scale is shared."""
    found = {
        row.site: amax for row in rows if row.quantized and (amax := ranges.get(row)) is not None
    }
    kept = {row.site for row in ranged(rows, found)}
    return share_amax(rows, {site: amax for site, amax in found.items() if site in kept})


def _range(
    row: QuantizedRow,
    imported: np.ndarray | None,
    statistics: Statistics | None,
    weight: np.ndarray | None,
) -> np.ndarray | None:
    """The row's amax; from an imported one, which is as fine as the plan's row or finer, where
    there is one."""
    if imported is not None:
        parts = tuple(n // k for n, k in zip(imported.shape, row.grid, strict=True))
        return usable(reduce_blocks(imported, parts))
    try:
        return find_amax(row, statistics, weight)
    except UserError as err:
        raise type(err)(f"{row.where}: {err}") from err
    finally:
        let_go(weight)


def site_samples(recipe: Recipe) -> int:
    """How many samples are compared at every site; a file with a static batch takes no other."""
    return recipe.data.batch_size if recipe.model.form.static_batch else SITE_SAMPLES


def first_samples(data: Batches, most: int) -> Batch:
    """Those that are compared at every site."""
    return {name: array[:most] for name, array in next(iter(data)).items()}


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
