"""Verdicts held to what the built engine's layers show, pattern by pattern and style by style."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx
from qdq_styles import STYLES, styled

from granplugin.audits.audit_file import FileAudit
from granplugin.backends.engine_plan import EnginePlan
from granplugin.backends.nvidia.builder import Builder
from granplugin.backends.nvidia.plan_reader import inspector_json
from granplugin.graph.read.loading import read_model
from granplugin.pipelines.audit import audit

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
LOW = {"int8", "fp8"}


@dataclass(frozen=True)
class Case:
    """One pattern in one style: what was audited, and what is wrong with its verdicts."""

    pattern: str
    style: str
    found: FileAudit
    faults: tuple[str, ...]

    @property
    def verdicts(self) -> dict[str, str]:
        """Site -> verdict and promise."""
        return {
            site.row.site: f"{site.verdict.kind} {site.promise.kind if site.promise else '-'}"
            for site in self.found.sites
            if site.verdict is not None
        }


def cases(patterns: Iterable[str]) -> Iterable[list[Case]]:
    """Each pattern in every style, built in one process."""
    with tempfile.TemporaryDirectory() as name, Builder("tensorrt_rtx", Path(name)) as builder:
        for pattern in patterns:
            found = [_case(Path(name), builder, pattern, style) for style in STYLES]
            yield found


def _case(folder: Path, builder: Builder, pattern: str, style: str) -> Case:
    path, layers = folder / "model.onnx", folder / "layers.json"
    onnx.save(styled(pattern, style), path)
    model = read_model(path)
    plan = builder.build(model)
    layers.write_text(inspector_json(plan), encoding="utf-8")
    found = audit(path, "tensorrt_rtx", layers=layers)
    return Case(pattern, style, found, tuple(_faults(model, plan, found)))


def _faults(model: onnx.ModelProto, plan: EnginePlan, found: FileAudit) -> Iterable[str]:
    """Verdicts other than the layers show, read from them in another way than the audit does: a
    product is in 8 bits where the kernel with its name that multiplies has two operands in them;
    and what is said to be kept in 8 bits is written or read so by a kernel."""
    for site in found.sites:
        node, verdict = site.row.layer, site.verdict
        kernels = [kernel for kernel in plan.kernels if node in kernel.onnx_nodes]
        if verdict is None:
            yield f"{site.row.site} has no verdict"
        elif node.partition("_")[0] in PRODUCTS and site.row.operand != "output":
            computing = [k for k in kernels if k.kind in ("correlation", "gemm", "deconv")]
            operands = [t.dtype for k in computing for t in (*k.inputs, *k.constants)]
            low = sum(dtype in LOW for dtype in operands) >= 2
            if low != (verdict.kind == "honoured"):
                yield f"{site.row.site} is {verdict.kind}, its kernel has {operands[:2]}"
        elif verdict.detail.startswith("moved through"):
            held = [t.dtype for k in plan.kernels for t in (*k.inputs, *k.outputs)]
            if not LOW.intersection(held):
                yield f"{site.row.site} is {verdict.detail}, and nothing is in 8 bits"
        elif verdict.kind == "degraded" and site.promise is None:
            yield f"{site.row.site} is degraded, and nothing was promised"


def differing(of_pattern: list[Case]) -> list[str]:
    """Styles in which a pattern gets other verdicts than in the first."""
    first, *others = of_pattern
    return [case.style for case in others if case.verdicts != first.verdicts]
