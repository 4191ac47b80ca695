"""Lint: what a graph's Q/DQ costs on an engine and what to write instead, finding by finding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from granplugin.backends.engine_plan import EngineLayer, EngineTensor
from granplugin.backends.nvidia.kernels import LOW, Kernels, multiplies
from granplugin.backends.nvidia.libraries import LIBRARIES
from granplugin.graph.read.found import Found, QuantizedOperand
from granplugin.graph.read.graph import quantizes
from granplugin.results.audited import Finding

_WIDE = ("float", "half", "bf16")


def lint(
    library: str, found: Found, kernels: Kernels, where: Mapping[str, str] = {}
) -> tuple[Finding, ...]:
    """Every finding on an engine of `library`, by code; `where` gives a site or node -> its rule's
    line."""
    case = _Case(library, found, kernels, dict(where))
    return tuple(finding for check in CODES.values() for finding in check(case))


class _Case:
    """A graph and its plan, with what several checks look up."""

    def __init__(self, library: str, found: Found, kernels: Kernels, where: dict[str, str]) -> None:
        self.library, self.where = LIBRARIES[library], where
        self.found, self.kernels = found, kernels
        self.graph = found.graph
        self.by_node: dict[str, dict[str, QuantizedOperand]] = defaultdict(dict)
        for operand in found.operands:
            self.by_node[operand.node][operand.row.at.word] = operand
        self.dequantizes = {operand.dequantize: operand for operand in found.operands}
        self.sixteen = found.precision != "fp32"

    def find(
        self, code: str, layer: str, says: str, instead: str, bytes: int | None = None,
        role: str = "weight",
    ) -> Finding:  # fmt: skip
        line = self.where.get(f"{layer}.{role}") or self.where.get(layer)
        return Finding(code, layer, line, says, instead, bytes)

    def products(self) -> Iterator[tuple[str, dict[str, QuantizedOperand], list[EngineLayer]]]:
        """Each quantized product, its operands by role, and the kernels that multiply for it."""
        for node, operands in self.by_node.items():
            if next(iter(operands.values())).product:
                ran = [k for k in self.kernels.multiplying(node) if multiplies(k)]
                yield node, operands, ran


def _broadcast(case: _Case) -> Iterator[Finding]:
    for node, _, ran in case.products():
        for told in filter(None, map(case.kernels.misfit, ran)):
            yield case.find(
                "scale-broadcast", node, f"its numbers are wrong: {told}",
                "write weight: per_channel, input: per_tensor",
            )  # fmt: skip


def _uint8(case: _Case) -> Iterator[Finding]:
    for operand in case.found.operands:
        if operand.row.format.startswith("uint"):
            yield case.find(
                "uint8-zero-point", operand.node,
                f"{operand.row.format} is read as int8: what lies above 127 scales saturates",
                "quantize to int8 with zero point 0, as granplugin does",
                role=operand.row.at.word,
            )  # fmt: skip


def _run_time_weights(case: _Case) -> Iterator[Finding]:
    for kernel in case.kernels.plan.kernels:
        low = [tensor for tensor in kernel.constants if tensor.dtype in LOW]
        owners = [case.dequantizes[n] for n in kernel.onnx_nodes if n in case.dequantizes]
        if kernel.inputs or not low or not owners or kernel.outputs[0].dtype not in _WIDE:
            continue
        operand = owners[0]
        operands = case.by_node[operand.node]
        given = next((o for role, o in operands.items() if role.startswith("input")), None)
        instead = "write format: float for the layer"
        if operand.row.format == "int4":
            instead = "write weight: {per_block: {size: 64}}, which is dequantized in the product"
        elif given is not None and given.one_d:
            instead = "write the scale of its input as a scalar, of shape []"
        elif operand.row.granularity not in ("per_tensor", "per_channel"):
            instead = f"write weight: per_channel or per_tensor, or {instead[6:]}"
        elif given is None:
            instead = f"quantize its input too, or {instead}"
        elif given.row.granularity != "per_tensor":
            instead = f"write input: per_tensor, or {instead[6:]}"
        yield case.find(
            "weight-dequantized-at-run-time", operand.node,
            "its weight is dequantized by a kernel of its own at every inference",
            instead, _moved(kernel.outputs, twice=True),
        )  # fmt: skip


def _fp32_output(case: _Case) -> Iterator[Finding]:
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
                    else "write format: float for the layer",
                    None if held is None else held // 2,
                )  # fmt: skip


def _padded(case: _Case) -> Iterator[Finding]:
    layers = {layer.name: layer for layer in case.found.layers}
    for node, _, ran in case.products():
        layer = layers.get(node)
        if layer is None or "depthwise" not in layer.traits:
            continue
        for kernel in ran:
            given = next((t for t in kernel.inputs if len(t.shape) == 4), None)
            channels = layer.shape("weight")[0]
            if given is not None and given.shape[1] > channels:
                held = _moved([given], twice=True)
                yield case.find(
                    "padded-depthwise", node,
                    f"its input is padded from {channels} to {given.shape[1]} channels, which are "
                    "written and read",
                    "write format: float for the layer",
                    None if held is None else held - held * channels // given.shape[1],
                )  # fmt: skip


def _reformat(case: _Case) -> Iterator[Finding]:
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


def _two_scales(case: _Case) -> Iterator[Finding]:
    by_source: dict[str, dict[tuple, QuantizedOperand]] = defaultdict(dict)
    for operand in case.found.operands:
        if operand.quantize is not None and operand.row.operand != "weight":
            if operand.scale is not None:
                held = (operand.row.format, operand.scale.shape, operand.scale.tobytes())
                by_source[operand.source].setdefault(held, operand)
    for operands in by_source.values():
        first, *others = operands.values()
        for other in others:
            writing = case.kernels.of_node.get(other.quantize, [])
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


def _cut_add(case: _Case) -> Iterator[Finding]:
    for node in case.graph.nodes:
        roles = case.by_node.get(node.name, {})
        if node.op_type != "Add" or not roles:
            continue
        for operand in roles.values():
            others = [name for name in node.input if name != operand.result]
            from_product = case.graph.of_product.get(operand.source)
            if from_product and not any(case.graph.of_product.get(name) for name in others):
                yield case.find(
                    "qdq-cuts-add", node.name,
                    f"its Q/DQ stands between {from_product} and the sum, which are not fused then",
                    "quantize the other branch, the skip, instead",
                    role="skip",
                )  # fmt: skip


def _float_skip(case: _Case) -> Iterator[Finding]:
    for node in case.graph.nodes:
        if node.op_type != "Add" or node.name in case.by_node or len(node.input) != 2:
            continue
        if any(name in case.graph.constant for name in node.input):
            continue
        branch = [name for name in node.input if case.graph.of_product.get(name) in case.by_node]
        skip = [name for name in node.input if name not in branch]
        if len(branch) != 1 or len(skip) != 1:
            continue
        pays = case.library.reads_any_skip or _is_read(case, branch[0], skip[0])
        if pays and _next_is_quantized(case, node.output[0]):
            yield case.find(
                "float-residual", node.name,
                "its skip input is float, so the convolution before it and the sum write float",
                "write skip: per_tensor",
                role="skip",
            )  # fmt: skip


def _is_read(case: _Case, branch: str, skip: str) -> bool:
    """TensorRT-RTX reads a skip in 8 bits where a layer reads it through the same Q/DQ, and only in
    the kernel behind a weight with several scales (bench/rtx.py: ResNet-50 moves 115 MB with and
    127 without; with per_tensor weights 89 with and 75 without)."""
    weight = case.by_node[case.graph.of_product[branch]].get("weight")
    several = weight is not None and weight.row.granularity != "per_tensor"
    return several and any(map(quantizes, case.graph.readers(skip)))


def _scalar(case: _Case) -> Iterator[Finding]:
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


def _fp32_scales(case: _Case) -> Iterator[Finding]:
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


CODES: dict[str, Callable[[_Case], Iterator[Finding]]] = {
    "scale-broadcast": _broadcast,
    "uint8-zero-point": _uint8,
    "weight-dequantized-at-run-time": _run_time_weights,
    "scale-shape-1": _scalar,
    "fp32-scale": _fp32_scales,
    "fp32-output": _fp32_output,
    "padded-depthwise": _padded,
    "qdq-cuts-add": _cut_add,
    "float-residual": _float_skip,
    "two-scales": _two_scales,
    "reformat": _reformat,
}
"""Code -> its check, in the order they are told: what is wrong first."""


def _moved(tensors: Iterable[EngineTensor], twice: bool = False) -> int | None:
    """Bytes of these tensors; `twice` where they are written and read again. None where one's are
    not told."""
    total = 0
    for tensor in tensors:
        if tensor.bytes is None:
            return None
        total += tensor.bytes
    return total * (2 if twice else 1)


def _next_is_quantized(case: _Case, name: str) -> bool:
    """Whether a tensor, but for an activation, is quantized next."""
    waiting = [name]
    while waiting:
        for node in case.graph.readers(waiting.pop()):
            if quantizes(node):
                return True
            if node.op_type in ("Relu", "Clip"):
                waiting.append(node.output[0])
    return False
