"""audit: any Q/DQ ONNX, with no recipe: its sites by data flow, and what an engine made of them -
one that is built here, or one of which another machine sent the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from granplugin.audits.asked import Asked
from granplugin.audits.audit import audit as verdicts_of
from granplugin.audits.audit_file import FileAudit, FileSite, notes_of, promises_of
from granplugin.audits.engine_plans import (
    PlanUnread,
    batch_of,
    build_plan,
    installed,
    profile_of,
    read_plan_file,
)
from granplugin.audits.lint import lint
from granplugin.audits.ran import ran_of, time_ms_of
from granplugin.audits.refusals import REFUSED, not_had, refusals, told_by
from granplugin.audits.shapes import parse_shapes, shapes_for
from granplugin.backends.base import BuildFailed
from granplugin.backends.engine_plan import EnginePlan
from granplugin.backends.nvidia.kernels import Kernels
from granplugin.capabilities import Promise
from granplugin.engines import AUDITED
from granplugin.errors import EngineError
from granplugin.graph.read.loading import read_model
from granplugin.graph.read.quantized_graph import QuantizedGraph, read_quantized
from granplugin.planning.rows import FileRow
from granplugin.results.audited import Finding, Verdict

NOT_BUILT = "not built"
INSIDE = "it is inside an If, Loop or Scan, of which the kernels that run are not known before"


def audit(
    path: Path,
    backend: str,
    layers: Path | None = None,
    profile: Path | None = None,
    plan_json: Path | None = None,
    batch: int = 1,
    shapes: Sequence[str] = (),
) -> FileAudit:
    """Audit a Q/DQ ONNX on `backend`, one of AUDITED.

    Without `layers` the engine is built here for `batch` samples, or for these `shapes` (FORM of
    audits.shapes), in a process of its own; `layers`
    is the plan of one built elsewhere (trtexec's --exportLayerInfo, or our layers.txt) and
    `profile` its times (--exportProfile). `plan_json` is that of the run the file is of: it gives
    the recipe's lines, and what the file should have. A file that the engine does not build is told
    all the same, with everything that is in the way. Raises UserError.
    """
    if backend not in AUDITED:
        raise EngineError(f"engine {backend!r} cannot be audited; {' and '.join(AUDITED)} can")
    model = read_model(path)
    quantized = read_quantized(model, path)
    asked = Asked(plan_json, path, quantized) if plan_json is not None else None
    if layers is None:
        engine = _built_here(model, path, quantized, backend, batch, shapes)
    else:
        engine = _Engine(read_plan_file(layers), None, str(layers))
    plan = engine.plan
    if profile is not None and plan is not None:
        plan = plan.timed(profile_of(profile))
    kernels = Kernels(backend, plan or EnginePlan((), (), ""), quantized.products)
    promises = promises_of(quantized, backend, engine.version)
    stops = engine.stops
    if any(stop.code == REFUSED for stop in stops):
        stops += not_had(quantized, promises)
    sites = _sites(quantized, kernels, promises, built=plan is not None)
    if asked is not None:
        sites = asked.compared(sites)
    return FileAudit(
        path,
        backend,
        engine.version,
        engine.source,
        plan,
        tuple(sites),
        lint(backend, quantized, kernels, asked.where if asked else {}),
        (*engine.notes, *notes_of(quantized, engine.plan, layers)),
        stops,
    )


@dataclass(frozen=True)
class _Engine:
    """An engine's plan with the library's version, and where it is from; without a plan, what is in
    the way of the engine. A plan that cannot be read is an empty one, and a note."""

    plan: EnginePlan | None
    version: str | None
    source: str
    stops: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()


def _built_here(
    model: onnx.ModelProto,
    path: Path,
    quantized: QuantizedGraph,
    backend: str,
    batch: int,
    shapes: Sequence[str],
) -> _Engine:
    if stops := refusals(quantized, backend):
        return _Engine(None, installed(backend), NOT_BUILT, stops)
    sizes, chosen = shapes_for(model, parse_shapes(shapes), batch)
    try:
        plan, version = build_plan(model, path, backend, batch, sizes)
    except BuildFailed as err:
        stops = (told_by(quantized, err.nodes, str(err)),)
        return _Engine(None, installed(backend), NOT_BUILT, stops, tuple(chosen))
    except PlanUnread as err:
        unread = f"nothing can be told of the engine: {err}"
        empty = EnginePlan((), (), "")
        return _Engine(empty, installed(backend), "built here", notes=(*chosen, unread))
    return _Engine(plan, version, f"built here for {batch_of(plan)}", notes=tuple(chosen))


def _sites(
    quantized: QuantizedGraph, kernels: Kernels, promises: Mapping[str, Promise], built: bool
) -> list[FileSite]:
    """The file's sites, with verdicts where the engine was `built`."""
    verdicts: Sequence[Verdict | None] = [None] * len(quantized.rows)
    if built:
        ran = [ran_of(operand, kernels) for operand in quantized.operands]
        verdicts = verdicts_of(quantized.rows, ran, promises)
    sites = [
        FileSite(
            operand.row, promises.get(operand.row.site), verdict, time_ms_of(kernels, operand.node)
        )
        for operand, verdict in zip(quantized.operands, verdicts, strict=True)
    ]
    return [*sites, *(_hidden(operand.row, built) for operand in quantized.hidden)]


def _hidden(row: FileRow, built: bool) -> FileSite:
    """A site inside If, Loop or Scan."""
    verdict = Verdict(row.site, row.where, None, "unknown", INSIDE) if built else None
    return FileSite(row, None, verdict)
