"""audit: any Q/DQ ONNX, with no recipe: its sites by data flow, and what an engine made of them -
one that is built here, or one of which another machine sent the layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from granplugin.audits.asked import Asked
from granplugin.audits.audit import audit as verdicts_of
from granplugin.audits.audit_file import FileAudit, Site, notes_of, promises_of
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
from granplugin.engines import AUDITED
from granplugin.errors import EngineError
from granplugin.graph.read.loading import read_model
from granplugin.graph.read.quantized_graph import read_quantized
from granplugin.planning.rows import FileRow
from granplugin.results.audited import Verdict

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
    found = read_quantized(model, path)
    asked = Asked(plan_json, path, found) if plan_json is not None else None
    version, plan = None, None
    notes: list[str] = []
    stops = refusals(found, backend) if layers is None else ()
    if layers is not None:
        plan, source = read_plan_file(layers), str(layers)
    elif stops:
        version, source = installed(backend), NOT_BUILT
    else:
        try:
            sizes, chosen = shapes_for(model, parse_shapes(shapes), batch)
            notes.extend(chosen)
            plan, version = build_plan(model, path, backend, batch, sizes)
            source = f"built here for {batch_of(plan)}"
        except BuildFailed as err:
            stops = (told_by(found, err.nodes, str(err)),)
            version, source = installed(backend), NOT_BUILT
        except PlanUnread as err:
            plan, version, source = EnginePlan((), (), ""), installed(backend), "built here"
            notes.append(f"nothing can be told of the engine: {err}")
    notes += notes_of(found, plan, layers)
    if profile is not None and plan is not None:
        plan = plan.timed(profile_of(profile))
    kernels = Kernels(backend, plan or EnginePlan((), (), ""), found.products)
    promises = promises_of(found, backend, version)
    if any(stop.code == REFUSED for stop in stops):
        stops += not_had(found, promises)
    verdicts: Sequence[Verdict | None] = [None] * len(found.rows)
    if plan is not None:
        ran = [ran_of(operand, kernels) for operand in found.operands]
        verdicts = verdicts_of(found.rows, ran, promises)
    sites = [
        Site(
            operand.row, promises.get(operand.row.site), verdict, time_ms_of(kernels, operand.node)
        )
        for operand, verdict in zip(found.operands, verdicts, strict=True)
    ]
    sites += (_hidden(operand.row, plan is not None) for operand in found.hidden)
    if asked is not None:
        sites = asked.compared(sites)
    findings = lint(backend, found, kernels, asked.where if asked else {})
    return FileAudit(
        path, backend, version, source, plan, tuple(sites), findings, tuple(notes), stops
    )  # fmt: skip


def _hidden(row: FileRow, built: bool) -> Site:
    """A site inside If, Loop or Scan."""
    verdict = Verdict(row.site, row.where, None, "unknown", INSIDE) if built else None
    return Site(row, None, verdict)
