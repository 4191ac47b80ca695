"""audit: any Q/DQ ONNX, with no recipe: its sites by data flow, and what an engine made of them -
one that is built here, or one of which another machine sent the layers."""

from __future__ import annotations

from pathlib import Path

from granplugin.audits.asked import Asked
from granplugin.audits.audit import audit as verdicts_of
from granplugin.audits.audit_file import FileAudit, Site, notes_of, promises_of, ran_of, time_ms_of
from granplugin.audits.engine_plans import batch_of, build_plan, profile_of, read_plan_file
from granplugin.audits.lint import lint
from granplugin.backends.nvidia.kernels import Kernels
from granplugin.engines import AUDITED
from granplugin.errors import EngineError
from granplugin.graph.read.found import find
from granplugin.graph.read.loading import load
from granplugin.words import first


def audit(
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
    asked = Asked(plan_json, path, found) if plan_json is not None else None
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
        source = f"built here for {batch_of(plan)}"
    else:
        plan, source = read_plan_file(layers), str(layers)
    notes = list(notes_of(found, plan, layers))
    if profile is not None:
        plan = plan.timed(profile_of(profile))
    kernels = Kernels(backend, plan, found.products)
    promises = promises_of(found, backend, version)
    ran = [ran_of(operand, kernels) for operand in found.operands]
    verdicts = verdicts_of(found.rows, ran, promises)
    sites = [
        Site(
            operand.row, promises.get(operand.row.site), verdict, time_ms_of(kernels, operand.node)
        )
        for operand, verdict in zip(found.operands, verdicts, strict=True)
    ]
    if asked is not None:
        sites = asked.compared(sites)
    findings = lint(backend, found, kernels, asked.where if asked else {})
    return FileAudit(path, backend, version, source, plan, tuple(sites), findings, tuple(notes))
