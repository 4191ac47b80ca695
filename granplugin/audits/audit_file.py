"""The audit of any Q/DQ ONNX, with no recipe: its sites by data flow, and what an engine made of
them - one that is built here, or one of which another machine sent the layers."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from granplugin import backends, capabilities
from granplugin.planning.row_json import row_from_json
from granplugin.quant.site import MULTIPLIED
from granplugin.audits.audit import audit
from granplugin.audits.lint import lint
from granplugin.backends.base import LayerPrecision
from granplugin.backends.engine_plan import EnginePlan
from granplugin.backends.nvidia.kernels import Kernels
from granplugin.backends.nvidia.plan_reader import read_plan, read_profile_json
from granplugin.capabilities import Promise
from granplugin.engines import AUDITED
from granplugin.errors import EngineError, ModelError, UserError
from granplugin.graph.read.found import Found, Operand, find
from granplugin.graph.read.loading import load
from granplugin.planning.rows import Row, ScaledRow
from granplugin.report.words import first
from granplugin.report.build.verbs import audit_output
from granplugin.report.result import Result
from granplugin.results.audited import Finding, Verdict
from granplugin.report.schema.verbs import AuditOutput

_EMBEDDED = 2**31 - 2**20
"""What one ONNX file holds; protobuf's limit, less what stands around the weights."""


@dataclass(frozen=True)
class Site:
    """One quantized operand of the file with what was promised and what came of it; `time_ms` is
    that of its node's kernels in a profile, `where` the recipe's line where there is one."""

    row: ScaledRow
    promise: Promise | None
    verdict: Verdict
    time_ms: float | None = None
    where: str | None = None


@dataclass(frozen=True)
class FileAudit(Result):
    """What an engine made of a file. `source` says where its plan is from."""

    onnx: Path
    engine: str
    version: str | None
    source: str
    plan: EnginePlan
    sites: tuple[Site, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    def output(self) -> AuditOutput:
        """Every site, and lint."""
        return audit_output(self)

    @property
    def exit_code(self) -> int:
        """0 all honoured, 3 not, 4 cannot tell."""
        kinds = {site.verdict.kind for site in self.sites}
        if kinds & {"degraded", "wrong"} or any(found.wrong for found in self.findings):
            return 3
        return 4 if "unknown" in kinds or not kinds else 0


def audit_file(
    path: Path,
    backend: str,
    layers: Path | None = None,
    profile: Path | None = None,
    plan_json: Path | None = None,
    batch: int = 1,
) -> FileAudit:
    """Audit a Q/DQ ONNX on `backend`, one of AUDITED.

    Without `layers` the engine is built here for `batch` samples, in a process of its own; `layers`
    is the plan of one built elsewhere (trtexec's --exportLayerInfo, or our layers.txt) and
    `profile` its times (--exportProfile). `plan_json` is that of the run the file is of: it gives
    the recipe's lines, and what the file should have. Raises UserError.
    """
    if backend not in AUDITED:
        raise EngineError(f"engine {backend!r} cannot be audited; {' and '.join(AUDITED)} can")
    model = load(path)
    found = find(model, path)
    asked = _Asked(plan_json, path, found) if plan_json is not None else None
    version = None
    if layers is None:
        try:
            plan, version = build_plan(model, path, backend, batch)
        except EngineError as err:
            if not found.biases:
                raise
            raise EngineError(
                f"{path}: {backend} takes no bias in 32-bit integers, as {first(found.biases)} "
                "has it; write the file without (onnxruntime's quantize_static: extra_options="
                "{'QuantizeBias': False})"
            ) from err
        source = f"built here for {_batch(plan)}"
    else:
        plan, source = read_plan_file(layers), str(layers)
    notes = list(_notes(found, plan, layers))
    if profile is not None:
        plan = plan.timed(profile_of(profile))
    kernels = Kernels(backend, plan, found.products)
    promises = _promises(found, backend, version)
    ran = [_ran(operand, kernels) for operand in found.operands]
    verdicts = audit(found.rows, ran, promises)
    sites = [
        Site(operand.row, promises.get(operand.row.site), verdict, _time(kernels, operand.node))
        for operand, verdict in zip(found.operands, verdicts, strict=True)
    ]
    if asked is not None:
        sites = asked.compared(sites)
    findings = lint(backend, found, kernels, asked.where if asked else {})
    return FileAudit(path, backend, version, source, plan, tuple(sites), findings, tuple(notes))


def examine(
    library: str, path: Path, plan: EnginePlan, rows: Sequence[Row]
) -> tuple[tuple[LayerPrecision, ...], tuple[Finding, ...]]:
    """What an engine made of the sites that no product reads (skip inputs, pools), under the names
    of their sites, and lint; of one of our own files, whose plan has these rows."""
    found = find(load(path), path)
    kernels = Kernels(library, plan, found.products)
    lines = {row.site: row.where for row in rows}
    named = {operand.row.site: found.site(operand) for operand in found.operands}
    passive = (operand for operand in found.operands if not operand.product)
    sites = [
        replace(_ran(operand, kernels), layer=named[operand.row.site])
        for operand in passive
        if named[operand.row.site] in lines
    ]
    where = {site: lines[name] for site, name in named.items() if name in lines}
    findings = lint(library, found, kernels, where)
    layers = {row.layer for row in rows}
    return tuple(sites), tuple(
        replace(each, layer=scope) if (scope := each.layer.rpartition("/")[0]) in layers else each
        for each in findings
    )


def read_plan_file(path: Path) -> EnginePlan:
    """An engine's plan from a file: a build log's text or the inspector's JSON. Raises EngineError,
    which names the file."""
    try:
        return read_plan(_text(path))
    except EngineError as err:
        raise EngineError(f"{path}: {err}") from err


def profile_of(path: Path) -> dict[str, float]:
    """Layer -> ms, of trtexec's --exportProfile. Raises EngineError, which names the file."""
    try:
        return read_profile_json(_text(path))
    except EngineError as err:
        raise EngineError(f"{path}: {err}") from err


def build_plan(
    model: onnx.ModelProto, path: Path, backend: str, batch: int = 1
) -> tuple[EnginePlan, str]:
    """The plan of an engine that is built here and thrown away, and the library's version."""
    if backend not in AUDITED:
        raise EngineError(f"engine {backend!r} tells no plan; {' and '.join(AUDITED)} do")
    module = backends.load(backend)
    if reason := module.unavailable():
        raise EngineError(f"{reason}; or give the layers of an engine that was built elsewhere")
    with (
        tempfile.TemporaryDirectory(prefix="granplugin-") as folder,
        _written(model, path, Path(folder)) as onnx_path,
    ):
        engine = module.build(onnx_path, Path(folder) / "engine", module.options(batch=batch))
        return module.plan(engine), engine.version


@contextmanager
def _written(model: onnx.ModelProto, path: Path, folder: Path) -> Iterator[Path]:
    """The model under its file's name in `folder`, with its weights: TensorRT refuses nodes that
    share a name, and calls those without one as it likes."""
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as err:
        raise ModelError(f"{path}: its weights cannot be read: {err}") from err
    copy = folder / path.name
    held = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    onnx.save(model, copy, save_as_external_data=held > _EMBEDDED)
    yield copy


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        why = err.strerror if isinstance(err, OSError) else "it is not text"
        raise UserError(f"{path}: cannot be read: {why}") from err


def _batch(plan: EnginePlan) -> str:
    sizes = {tensor.shape[0] for tensor in plan.io[:1] if tensor.shape}
    return f"batch {sizes.pop()}" if sizes else "its fixed shapes"


def _notes(found: Found, plan: EnginePlan, layers: Path | None) -> Iterator[str]:
    if found.hidden:
        yield (
            f"{found.hidden} DequantizeLinear inside If, Loop or Scan are not audited: engines "
            "do not name what runs there"
        )
    if not found.operands:
        yield "nothing in this file is quantized, so there is nothing to honour"
    named = {node for kernel in plan.kernels for node in kernel.onnx_nodes}
    if layers is not None and found.operands and not any(o.node in named for o in found.operands):
        yield (
            f"no node of the file is in {layers.name}: it is of another model, or was built "
            "without --profilingVerbosity=detailed"
        )


def _promises(found: Found, backend: str, version: str | None) -> dict[str, Promise]:
    module = backends.load(backend)
    if version is None and module.unavailable() is None:
        version = module.version()
    table = capabilities.load(backend, version)
    known = {layer.name for layer in found.layers}
    rows = [row for row in found.rows if row.layer in known]
    return capabilities.plan_promises(table, found.layers, rows, found.precision)


def _ran(operand: Operand, kernels: Kernels) -> LayerPrecision:
    site = operand.row.site
    if operand.row.format.startswith("uint"):
        return LayerPrecision(
            site, "wrong", "", f"{operand.row.format} is read as int8: what lies above 127 scales "
            "saturates",
        )  # fmt: skip
    if operand.product:
        return kernels.product(site, operand.node)
    return kernels.operand(site, operand.node, operand.quantize, operand.dequantize)


class _Asked:
    """What a run's plan says of the variant that a file is."""

    def __init__(self, plan: Path, onnx_path: Path, found: Found) -> None:
        try:
            variants = json.loads(_text(plan))["variants"]
            named = {name: rows for name, rows in variants.items() if rows}
            name = onnx_path.resolve().parent.name
            rows = named[name] if name in named else next(iter(named.values()))
            decided = map(row_from_json, rows)
            self.rows = {row.site: row for row in decided if row.quantized}
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as err:
            raise UserError(f"{plan}: is no plan.json of a run: {err!r:.80}") from err
        if name not in named and len(named) > 1:
            raise UserError(
                f"{plan}: it has the variants {', '.join(named)}; audit the file in one's folder"
            )
        self.names = {operand.row.site: found.site(operand) for operand in found.operands}

    @property
    def where(self) -> dict[str, str]:
        return {
            site: self.rows[name].where for site, name in self.names.items() if name in self.rows
        }

    def compared(self, sites: Sequence[Site]) -> list[Site]:
        """The sites with the recipe's lines; what the file has otherwise is wrong, and what it does
        not quantize is float."""
        told = [self._told(site) for site in sites]
        for name, row in self.rows.items():
            if name not in self.names.values() and row.operand in MULTIPLIED:
                verdict = Verdict(name, row.where, None, "degraded", "float")
                told.append(Site(row, None, verdict, where=row.where))
        return told

    def _told(self, site: Site) -> Site:
        row = self.rows.get(self.names[site.row.site])
        if row is None:
            return site
        kind, detail = site.verdict.kind, site.verdict.detail
        if (row.format, _cells(row)) != (site.row.format, _cells(site.row)):
            kind, detail = "wrong", f"the plan says {row.format} {row.granularity}"
        verdict = replace(site.verdict, where=row.where, kind=kind, detail=detail)
        return replace(site, verdict=verdict, where=row.where)


def _row(row: dict[str, Any]) -> Row:
    return Row(
        row["layer"], row["type"], row["role"], tuple(row["shape"]), row["format"],
        row["granularity"], tuple(row["block"] or row["shape"]), None, None, None, None,
        row["rule"], row["where"],
    )  # fmt: skip


def _cells(row: ScaledRow) -> tuple[tuple[int, int], ...]:
    """Along which axes a row's scales differ, and how many there are."""
    return tuple((axis, count) for axis, count in enumerate(row.grid) if count > 1)


def _time(kernels: Kernels, node: str) -> float | None:
    times = [kernel.time_ms for kernel in kernels.multiplying(node)]
    known = [time for time in times if time is not None]
    return math.fsum(known) if known else None
