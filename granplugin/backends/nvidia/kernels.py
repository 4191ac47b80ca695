"""What ran an ONNX node: the kernels of an engine's plan that have it, and their arithmetic."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from granplugin.backends.base import ROUNDED, LayerPrecision
from granplugin.backends.engine_plan import LOW, EngineLayer, EnginePlan, EngineTensor
from granplugin.backends.nvidia.libraries import LIBRARIES

_WORDS = {"fp4": "nvfp4"}
PairNames = tuple[str | None, str]
"""A QuantizeLinear, None where the file holds the numbers, and its DequantizeLinear."""
MOVED = "moved through"
"""The node only moves 8-bit values."""


class Kernels:
    """A plan's kernels by the ONNX nodes they have; `products` are the nodes that multiply, each
    with the number of its weight's values, None where it multiplies two inputs."""

    def __init__(self, library: str, plan: EnginePlan, products: Mapping[str, int | None]) -> None:
        self.library, self.plan = library, plan
        self.of_node: dict[str, list[EngineLayer]] = defaultdict(list)
        self.readers: dict[str, list[EngineLayer]] = defaultdict(list)
        for kernel in plan.kernels:
            for node in kernel.onnx_nodes:
                self.of_node[node].append(kernel)
            for tensor in kernel.inputs:
                self.readers[tensor.name].append(kernel)
        self.products = products

    def product(self, layer: str, node: str) -> LayerPrecision:
        """In what a node multiplies: int8 (or fp8) where every kernel that multiplies for it reads
        its input and its weight in that type; unknown where the plan has no such kernel or does not
        tell. One that multiplies for several nodes tells where it has the weights of them all (as
        where q, k and v are one product), or is an attention whose factors are all of one kind."""
        ran = self.multiplying(node)
        found = {self._precision(kernel) for kernel in ran}
        precision, detail = found.pop() if len(found) == 1 else ("unknown", "")
        kind = ran[0].kind if ran else ""
        misfit = next((told for kernel in ran if (told := self.misfit(kernel))), None)
        if misfit and precision != "float":
            precision, detail = "wrong", misfit
        return LayerPrecision(layer, precision, kind, detail)

    def multiplying(self, node: str) -> list[EngineLayer]:
        """Others that have the node prepare its operands or finish its output; a product of one row
        is done by a kernel like those."""
        fused = self.of_node.get(node, [])
        return [kernel for kernel in fused if kernel.multiplies] or fused

    def _precision(self, kernel: EngineLayer) -> tuple[str, str]:
        own = [self.products[node] for node in kernel.onnx_nodes if node in self.products]
        if kernel.multiplies and len(own) > 1 and not any(own):
            # A whole attention: of what is between its products nothing is told but what it reads,
            # which are one factor more than there are products, and a mask.
            low = sum(tensor.dtype in LOW for tensor in kernel.inputs)
            return precision(self.library, kernel) if not 0 < low <= len(own) else ("unknown", "")
        if kernel.multiplies and len(own) > 1:
            held = max((math.prod(t.shape) for t in kernel.constants if t.dtype in LOW), default=0)
            if None in own or held != sum(filter(None, own)):
                return "unknown", ""
        return precision(self.library, kernel)

    def operand(
        self, name: str, node: str, pairs: Sequence[PairNames], moves: bool = False
    ) -> LayerPrecision:
        """In what a node that does not multiply has one quantized operand, of which these are the
        pairs, by the way of its data; `moves` tells that the node only moves values.

        It is read in the format where a kernel of the node reads nothing else, or has the operand's
        DequantizeLinear without its QuantizeLinear. A node that moves values has it in the format
        also where its kernel writes that and the DequantizeLinear comes later. What is rounded in
        the kernel that computes with it is ROUNDED; in one before, it is stored in float.
        """
        own = self.of_node.get(node, [])
        for kernel in own:
            low = _low(kernel.inputs)
            alone = low and all(tensor.dtype in LOW for tensor in kernel.inputs)
            if len(low) == 1 and (alone or any(_fused(kernel, pair) for pair in pairs)):
                return LayerPrecision(name, _word(low), kernel.kind)
        behind = {id(k): k for _, dq in pairs for k in self.of_node.get(dq, [])}.values()
        if moves and (found := self._moved(own, list(behind), pairs)):
            low, kind = found
            return LayerPrecision(name, _word(low), kind, MOVED)
        for kernel in own or behind:
            if any(self._rounds(kernel, pair) for pair in pairs):
                return LayerPrecision(name, "float", kernel.kind, ROUNDED)
        if not own:
            return LayerPrecision(name, "unknown", "", "")
        if not behind and any(_low(kernel.inputs) for kernel in own):
            return LayerPrecision(name, "unknown", own[0].kind, "")
        return LayerPrecision(name, "float", own[0].kind, "float")

    def _rounds(self, kernel: EngineLayer, pair: PairNames) -> bool:
        """Whether a kernel has a pair in it; the name of its DequantizeLinear is lost where several
        scales become one constant."""
        quantize, dequantize = pair
        there = dequantize in kernel.onnx_nodes or dequantize not in self.of_node
        return quantize in kernel.onnx_nodes and there

    def _moved(
        self,
        own: Sequence[EngineLayer],
        behind: Sequence[EngineLayer],
        pairs: Sequence[PairNames],
    ) -> tuple[set[str], str] | None:
        """The type that moved values are in, and the kernel that shows it."""
        for kernel in own:
            written = _low(kernel.outputs)
            later = all(dq not in kernel.onnx_nodes for _, dq in pairs)
            rounded = any(q in kernel.onnx_nodes for q, _ in pairs)
            if len(written) == 1 and later and (rounded or _low(kernel.inputs)):
                return written, kernel.kind
        if own:
            return None
        for kernel in behind:
            if any(_fused(kernel, pair) for pair in pairs):
                return _low(kernel.inputs), kernel.kind
        # Neither the node nor the DequantizeLinear is left: what was written in 8 bits is read so.
        for kernel in (k for q, _ in pairs for k in self.of_node.get(q or "", [])):
            if not behind and len(written := _low(kernel.outputs)) == 1:
                return written, kernel.kind
        return None

    def written(self, name: str, quantize: str) -> LayerPrecision:
        """In what a QuantizeLinear is written whose numbers are an output of the graph."""
        for kernel in self.of_node.get(quantize, []):
            if len(low := _low(kernel.outputs)) == 1:
                return LayerPrecision(name, _word(low), kernel.kind)
        return LayerPrecision(name, "unknown", "", "")

    def misfit(self, kernel: EngineLayer) -> str | None:
        """What shows that a product is computed wrong: a kernel behind it multiplies by scales of a
        shape that fits neither what it reads nor what it writes (TensorRT-RTX 1.7 builds 8-bit
        products in blocks so)."""
        for behind in (k for tensor in kernel.outputs for k in self.readers.get(tensor.name, ())):
            if behind.multiplies:
                continue  # its constants are weights
            if "Gath" in behind.name:
                continue  # a table, of which it takes rows, has no shape of what it reads
            shapes = [tensor.shape for tensor in (*behind.inputs, *behind.outputs)]
            # A product of one row is done by a kernel like those that scale.
            weights = {self.products[node] for node in behind.onnx_nodes if node in self.products}
            scales = [
                tensor
                for tensor in behind.constants
                if tensor.dtype not in LOW and math.prod(tensor.shape) not in weights
            ]
            for constant in scales:
                out = list(behind.outputs[0].shape)
                if "Conc" in behind.name and _is_joined(constant.shape, behind):
                    continue  # zeros, which fill up the channels that the next kernel reads
                if not any(_fits(constant.shape, shape) for shape in shapes):
                    return f"scales of shape {list(constant.shape)} are multiplied to {out}"
        return None


def layer_precisions(
    library: str, nodes: Sequence[tuple[str, str, int | None]], plan: EnginePlan
) -> tuple[LayerPrecision, ...]:
    """What products ran in; `nodes` are (layer, node, values of its weight)."""
    kernels = Kernels(library, plan, {node: count for _, node, count in nodes})
    return tuple(kernels.product(layer, node) for layer, node, _ in nodes)


def precision(library: str, kernel: EngineLayer) -> tuple[str, str]:
    """In what a kernel multiplies, and where that is float, what it reads in fewer bits: both
    operands or its input alone (fused-dequant), its weight alone (weight-only), or neither."""
    inputs = [tensor.dtype for tensor in kernel.inputs]
    constants = [tensor.dtype for tensor in kernel.constants]
    if len(inputs) + len(constants) < 2:
        return "unknown", ""  # its weights are not told
    for dtype in ("int8", "fp8", "fp4"):
        if (inputs + constants).count(dtype) < 2:
            continue
        if kernel.kind == "runtime_fusion":
            known = LIBRARIES[library].runtime_fusion
            return (known, "fused-dequant") if known else ("unknown", "")
        return (_WORDS.get(dtype, dtype), "") if kernel.multiplies else ("unknown", "")
    if LOW.intersection(inputs):
        return "float", "fused-dequant"
    return "float", "weight-only" if LOW.intersection(constants) else "float"


def _low(tensors: Sequence[EngineTensor]) -> set[str]:
    return {tensor.dtype for tensor in tensors} & LOW


def _word(low: set[str]) -> str:
    (dtype,) = low
    return _WORDS.get(dtype, dtype)


def _fused(kernel: EngineLayer, pair: PairNames) -> bool:
    """Whether a kernel reads the 8 bits of a pair."""
    quantize, dequantize = pair
    has = dequantize in kernel.onnx_nodes and quantize not in kernel.onnx_nodes
    return has and len(_low(kernel.inputs)) == 1


def _is_joined(constant: tuple[int, ...], kernel: EngineLayer) -> bool:
    """Whether the kernel writes what it reads with a tensor of this shape put to its end."""
    whole = kernel.outputs[0].shape
    for part in (tensor.shape for tensor in kernel.inputs):
        if len(part) == len(constant) == len(whole):
            apart = [axis for axis in range(len(whole)) if constant[axis] != whole[axis]]
            rest = [a + b == c for a, b, c in zip(part, constant, whole, strict=True)]
            if len(apart) == 1 and rest[apart[0]]:
                return True
    return False


def _fits(constant: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    if len(constant) != len(shape) or -1 in shape or -1 in constant:
        return True  # of a tensor inside the kernel
    try:
        return np.broadcast_shapes(constant, shape) == shape
    except ValueError:
        return False
