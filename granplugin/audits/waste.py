"""Advice from an engine's plan: what its kernels move that they need not."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from granplugin.audits.case import CHOICES, FLOAT, Case
from granplugin.backends.engine_plan import LOW, EngineLayer, EngineTensor
from granplugin.graph.read.quantized_graph import QuantizedOperand
from granplugin.quant.layers import Layer
from granplugin.results.audited import Finding
from granplugin.words import first

_WIDE = ("float", "half", "bf16")


def run_time_weights(case: Case) -> Iterator[Finding]:
    for kernel in case.kernels.plan.kernels:
        low = [tensor for tensor in kernel.constants if tensor.dtype in LOW]
        owners = [case.dequantizes[n] for n in kernel.onnx_nodes if n in case.dequantizes]
        if kernel.inputs or not low or not owners or kernel.outputs[0].dtype not in _WIDE:
            continue
        operand = owners[0]
        operands = case.by_node[operand.node]
        given = next((o for role, o in operands.items() if role.startswith("input")), None)
        instead = _read_in_8_bits(case, operand, given)
        yield case.find(
            "weight-dequantized-at-run-time", operand.node,
            "its weight is dequantized by a kernel of its own at every inference",
            instead, _moved(kernel.outputs, twice=True),
        )  # fmt: skip


def _read_in_8_bits(case: Case, weight: QuantizedOperand, given: QuantizedOperand | None) -> str:
    """What makes a kernel read the weight in its format; nothing that the engine does not have."""
    row = weight.row
    if row.format == "int4":
        layer = case.layers.get(weight.node)
        matrix = layer is not None and layer.kind is not None and layer.kind.operation == "linear"
        blocks = "write weight: {per_block: {size: 64}}, which is dequantized in the product"
        return blocks if matrix else FLOAT
    instead = case.native(weight.node, row.format, row.granularity)
    if instead == FLOAT:
        return FLOAT
    if given is None:
        alone = case.native(weight.node, row.format, row.granularity, "float")
        quantized = f"quantize its input too, or {FLOAT.removeprefix('write ')}"
        return quantized if alone == FLOAT else alone
    if given.one_d:
        return "write the scale of its input as a scalar, of shape []"
    if stops := case.library.moves_not.intersection(given.moved):
        return f"quantize behind the {first(sorted(stops))}, not in front of it"
    if row.granularity not in CHOICES:
        return instead
    return f"write input: per_tensor, or {FLOAT.removeprefix('write ')}"


def fp32_output(case: Case) -> Iterator[Finding]:
    for node, operands, ran in case.products():
        for kernel in ran if case.sixteen else ():
            low = kernel.inputs and kernel.inputs[0].dtype in LOW
            if low and any(tensor.dtype == "float" for tensor in kernel.outputs):
                weight = operands.get("weight")
                fine = weight is not None and weight.row.granularity == "per_channel"
                held = _moved(kernel.outputs, twice=True)
                yield case.find(
                    "fp32-output", node,
                    f"it writes FP32 in an {case.found.precision.upper()} graph, for a second kernel "
                    "to scale",
                    "write weight: per_tensor, with bn: keep where its batch norm is folded"
                    if fine and case.library.scales_in_second_kernel
                    else FLOAT,
                    None if held is None else held // 2,
                )  # fmt: skip


def padded(case: Case) -> Iterator[Finding]:
    for node, _, ran in case.products():
        layer = case.layers.get(node)
        if layer is None or "depthwise" not in layer.traits:
            continue
        for kernel in ran:
            given = next((t for t in kernel.inputs if len(t.shape) == 4), None)
            weight = layer.shape("weight")
            channels = weight[0] if weight else 0
            if given is not None and given.shape[1] > channels:
                yield case.find(
                    "padded-depthwise", node,
                    f"its input is padded from {channels} to {given.shape[1]} channels, which are "
                    "written and read",
                    FLOAT,
                    _padding(case, layer, kernel, given, channels),
                )  # fmt: skip


def _padding(
    case: Case, layer: Layer, kernel: EngineLayer, given: EngineTensor, channels: int
) -> int | None:
    """Bytes of what a depthwise convolution is padded with: channels of its input, written and
    read, the zeros that the kernel before it takes them from, and the weights behind them."""
    held = _moved([given], twice=True)
    if held is None:
        return None
    values = sum(math.prod(tensor.shape) for tensor in kernel.weights)
    more = (_moved(kernel.weights) or 0) * (values - layer.size) // max(values, 1)
    plan = case.kernels.plan
    zeros = sum(
        moved.other or 0
        for before, moved in zip(plan.kernels, plan.moved_by, strict=True)
        if any(tensor.name == given.name for tensor in before.outputs)
    )
    return held - held * channels // given.shape[1] + more + zeros


def reformat(case: Case) -> Iterator[Finding]:
    own = {tensor.name for tensor in case.kernels.plan.io}
    for kernel in case.kernels.plan.kernels:
        if own & {tensor.name for tensor in (*kernel.inputs, *kernel.outputs)}:
            continue  # the layout of an engine's own inputs and outputs is given
        same = {t.dtype for t in kernel.inputs} == {t.dtype for t in kernel.outputs}
        moves = kernel.kind == "Reformat" or (not kernel.onnx_nodes and kernel.kind == "kgen")
        if not (same and moves and kernel.inputs):
            continue
        readers = [k for t in kernel.outputs for k in case.kernels.readers.get(t.name, ())]
        near = [node for reader in readers for node in reader.onnx_nodes if node in case.by_node]
        yield case.find(
            "reformat", near[0] if near else kernel.name,
            "a kernel only changes the layout of a tensor in memory",
            "quantize neighbours alike, both or neither",
            _moved((*kernel.inputs, *kernel.outputs)),
        )  # fmt: skip


def two_scales(case: Case) -> Iterator[Finding]:
    by_source: dict[str, dict[tuple[Any, ...], QuantizedOperand]] = defaultdict(dict)
    for operand in case.found.operands:
        if operand.quantize is not None and operand.row.operand != "weight":
            if operand.scale is not None:
                held = (operand.row.format, operand.scale.shape, operand.scale.tobytes())
                by_source[operand.source].setdefault(held, operand)
    for operands in by_source.values():
        first, *others = operands.values()
        for other in others:
            writing = case.kernels.of_node.get(other.quantize or "", [])
            if any(other.dequantize in kernel.onnx_nodes for kernel in writing):
                continue  # rounded inside the kernel that reads it: nothing more is written
            written = [t for k in writing[:1] for t in k.outputs if t.dtype in LOW]
            yield case.find(
                "two-scales", other.node,
                f"the tensor it reads is quantized a second time: {first.node} has another scale",
                "give both inputs one range (amax:), or take the same calibrator for both",
                _moved(written[:1], twice=True) if written else None,
                role=other.row.at.word,
            )  # fmt: skip


def vector_scale(case: Case) -> Iterator[Finding]:
    for operand in case.found.operands:
        wide = operand.one_d and case.library.vector_scale_is_float
        if wide and operand.op_type == "Conv" and operand.row.operand == "input":
            yield case.find(
                "scale-shape-1", operand.node,
                f"the scale of its input has shape [1], and {case.library.title} then runs it in "
                "float",
                "write the scale as a scalar, of shape [], as granplugin does",
                role="input",
            )  # fmt: skip


def fp32_scales(case: Case) -> Iterator[Finding]:
    for operand in case.found.operands if case.sixteen else ():
        if operand.float32_scale:
            kind = case.found.precision.upper()
            yield case.find(
                "fp32-scale", operand.node,
                f"the FP32 scale of its {operand.row.at.word} makes its operand FP32 in an {kind} "
                "graph",
                f"write the scale in {kind}, or give DequantizeLinear output_dtype",
                role=operand.row.at.word,
            )  # fmt: skip


def _moved(tensors: Iterable[EngineTensor], twice: bool = False) -> int | None:
    """Bytes of these tensors; `twice` where they are written and read again. None where one's are
    not told."""
    total = 0
    for tensor in tensors:
        if tensor.bytes is None:
            return None
        total += tensor.bytes
    return total * (2 if twice else 1)
