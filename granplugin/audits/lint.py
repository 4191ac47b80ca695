"""Lint: what is wrong with a file's Q/DQ or costs on an engine, and what to write instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from granplugin.audits import faults, placement, waste
from granplugin.audits.case import Case
from granplugin.audits.refusals import REFUSALS, REFUSED
from granplugin.backends.nvidia.kernels import Kernels
from granplugin.graph.read.quantized_graph import QuantizedGraph
from granplugin.results.audited import Finding


def lint(
    library: str,
    quantized: QuantizedGraph,
    kernels: Kernels,
    where: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Finding, ...]:
    """Every finding on an engine of `library`, by code; `where` gives a site or node -> its rule's
    line. What is in the file itself is found without a plan too, of kernels that know of none."""
    case = Case(library, quantized, kernels, where)
    return tuple(finding for check in CHECKS.values() for finding in check(case))


CHECKS: Mapping[str, Callable[[Case], Iterator[Finding]]] = {
    "scale-broadcast": faults.scale_broadcast,
    "uint8-zero-point": faults.uint8,
    "scale-infinite": faults.infinite,
    "scale-denormal": faults.denormal,
    "scale-absurd": faults.absurd,
    "q-dq-differ": faults.differing,
    "block-size-opset": faults.early_blocks,
    "blocks-do-not-divide": faults.uneven_blocks,
    "axis-missing": faults.no_axis,
    "weight-dequantized-at-run-time": waste.run_time_weights,
    "scale-shape-1": waste.vector_scale,
    "fp32-scale": waste.fp32_scales,
    "fp32-output": waste.fp32_output,
    "padded-depthwise": waste.padded,
    "qdq-cuts-add": placement.cut_add,
    "float-residual": placement.float_skip,
    "qdq-before-batch-norm": placement.before_batch_norm,
    "qdq-before-activation": placement.before_activation,
    "qdq-before-resize": placement.unmoved,
    "qdq-twice": placement.twice,
    "qdq-unread": placement.unread,
    "two-scales": waste.two_scales,
    "reformat": waste.reformat,
}
"""Code -> its check, in the order they are told: what is wrong first."""
CODES = (*REFUSALS, REFUSED, *CHECKS)
"""Every code that a finding can have, each with a page (audits.explain)."""
