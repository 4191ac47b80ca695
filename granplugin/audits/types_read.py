"""Tensors of a type that what reads them does not take, seen in a file before an engine is built.

Each was tried with TensorRT-RTX 1.7.1. What its compiler behind the parser refuses is told of it
alone: of TensorRT's it is not known.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping

import onnx
from onnx import TensorProto

from granplugin.backends.nvidia.libraries import LIBRARIES
from granplugin.graph.read.bodies import body_graphs
from granplugin.graph.read.graph import ReadGraph, dequantizes, quantizes
from granplugin.graph.read.quantized_graph import QuantizedGraph
from granplugin.results.audited import Finding

_UNREAD = {
    TensorProto.INT16: "int16",
    TensorProto.UINT16: "uint16",
    TensorProto.UINT32: "uint32",
    TensorProto.UINT64: "uint64",
    TensorProto.UINT4: "uint4",
    TensorProto.FLOAT8E5M2: "fp8 (E5M2)",
    TensorProto.STRING: "text",
    TensorProto.COMPLEX64: "complex numbers",
    TensorProto.COMPLEX128: "complex numbers",
}
"""Types that its parser takes of no tensor, read or not."""
_QUANTIZED = {
    TensorProto.INT8: "int8",
    TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.INT4: "int4",
}
"""Types of which only DequantizeLinear reads a constant."""
_MADE_BY_Q = {TensorProto.FLOAT8E4M3FN: "fp8", TensorProto.INT4: "int4"}
"""Types that no Cast makes."""
_INTEGERS = {
    TensorProto.BOOL: "booleans",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
}
_FLOATS = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}
_FLOAT_ONLY = frozenset(
    "BatchNormalization Ceil ConvTranspose Cos CumSum Einsum Elu Exp Floor Gelu Gemm "
    "GlobalAveragePool InstanceNormalization IsNaN LayerNormalization Log LogSoftmax "
    "LpNormalization MatMul Mish Not Pow PRelu ReduceL2 ReduceMean Round Selu Sigmoid Sin Softmax "
    "Softplus Sqrt Swish Tanh".split()
)
"""Operators that it does not compute in int8 without Q and DQ around them; it does Add, Mul, Relu,
MaxPool, and what moves numbers."""
_SHUFFLES = frozenset(
    "Concat DepthToSpace Flatten Identity If Loop Reshape Scan Shape Size SpaceToDepth Transpose".split()
)
"""What fp8 and int4 tensors are read by besides DequantizeLinear."""
_UINT8_READERS = frozenset({"Cast", "Identity", "If", "Loop", "Scan", "Shape", "Size"})
_OWN_WORDS = ("QLinear", "ConvInteger", "MatMulInteger", "DynamicQuantize")
"""Operators that another refusal tells of."""

Check = Callable[[QuantizedGraph, str], Iterator[Finding]]


def unread(quantized: QuantizedGraph) -> Iterator[Finding]:
    """Inputs, constants and casts of types that are not read, but for those of Q/DQ."""
    graph = quantized.graph
    for name, kind in _inputs(graph).items():
        if kind in _UNREAD:
            yield _finding(
                "unsupported-type", name,
                f"the input holds {_UNREAD[kind]}, which is not read",
                "give the model that tensor in int32 or float32, or leave what reads it out",
            )  # fmt: skip
    told = [
        node for pair in quantized.pairs for node in (pair.pair.dq, pair.pair.q) if node is not None
    ]
    scaled = {name for node in told for name in node.input}
    for name, tensor in graph.stored.items():
        if tensor.data_type in _UNREAD and name not in scaled:
            reader = next((node.name for node, _ in graph.uses.get(name, ())), name)
            yield _finding(
                "unsupported-type", reader,
                f"the constant {name!r} holds {_UNREAD[tensor.data_type]}, which is not read",
                "store it in int32 or float32",
            )  # fmt: skip
    for place, node in _nodes(graph):
        if node.op_type == "Cast":
            yield from _cast(graph, place, node)
    yield from _uint8_inputs(graph)


def _cast(graph: ReadGraph, place: str, node: onnx.NodeProto) -> Iterator[Finding]:
    to = next((attribute.i for attribute in node.attribute if attribute.name == "to"), 0)
    if to in _UNREAD:
        says, instead = f"casts to {_UNREAD[to]}, which is not read", "cast to int32 or float32"
    elif to in _MADE_BY_Q and node.input[0] not in graph.constant:
        says = f"casts to {_MADE_BY_Q[to]}, which QuantizeLinear alone makes"
        instead = "write QuantizeLinear with scale 1"
    elif to == TensorProto.UINT8 and _is_inside(graph, node):
        says = "casts to uint8, which is had at the network's inputs and outputs alone"
        instead = "cast to int32, or to int8 where the numbers are below 128"
    else:
        return
    yield _finding("unsupported-type", place, says, instead)


def _is_inside(graph: ReadGraph, node: onnx.NodeProto) -> bool:
    return node.output[0] not in graph.outputs and node.input[0] not in graph.constant


def _uint8_inputs(graph: ReadGraph) -> Iterator[Finding]:
    for name, kind in _inputs(graph).items():
        for node, _ in graph.uses.get(name, ()) if kind == TensorProto.UINT8 else ():
            passed = node.op_type != "Identity" or not graph.outputs.keys().isdisjoint(node.output)
            if _is_onnx(node) and not (node.op_type in _UINT8_READERS and passed):
                yield _finding(
                    "unsupported-type", node.name,
                    f"{node.op_type} reads the input {name!r} in uint8, which Cast alone reads",
                    "write a Cast to float32 directly behind the input (and multiply by the scale "
                    "where it is quantized), or give the model float32 or int8",
                )  # fmt: skip


def _constants(quantized: QuantizedGraph, library: str) -> Iterator[Finding]:
    graph = quantized.graph
    held = {name: _QUANTIZED.get(tensor.data_type) for name, tensor in graph.stored.items()}
    for place, node in _nodes(graph):
        own = not _is_onnx(node) or node.op_type.startswith(_OWN_WORDS)
        if dequantizes(node) and node.input[0] in held:
            yield from _scalar(graph, place, node, held[node.input[0]])
        for name in () if own or _of_pair(node) else dict.fromkeys(node.input):
            if held.get(name) and not _multiplies_integers(graph, node):
                yield _constant(place, f"{held[name]} constant {name!r}", f"{node.op_type}")
    for name in graph.outputs:
        if held.get(name):
            yield _constant(name, f"{held[name]} constant {name!r}", "the graph's outputs")


def _scalar(
    graph: ReadGraph, place: str, dq: onnx.NodeProto, format: str | None
) -> Iterator[Finding]:
    """The parser puts a Reshape between a number without axes and its DequantizeLinear."""
    name = dq.input[0]
    if format and not graph.stored[name].dims:
        reader, _ = next(iter(graph.uses.get(dq.output[0], ())), (None, 0))
        yield _finding(
            "int8-constant", place if reader is None else reader.name,
            f"the {format} constant {name!r} is one number without an axis, for which its "
            "DequantizeLinear is not read",
            "leave it float (onnxruntime's quantize_static: nodes_to_exclude), or store it with "
            "the shape [1]",
        )  # fmt: skip


def _constant(place: str, tensor: str, reader: str) -> Finding:
    return _finding(
        "int8-constant", place,
        f"the {tensor} is read by {reader}; only DequantizeLinear reads one",
        "write its DequantizeLinear directly behind it, and what moves its numbers (Reshape, "
        "Transpose) behind that; or store it in float32 or int32",
    )  # fmt: skip


def _multiplies_integers(graph: ReadGraph, node: onnx.NodeProto) -> bool:
    """A convolution of int8 by int8, which no ONNX allows, is built."""
    kinds = [graph.element_type(name) for name in node.input[:2]]
    return node.op_type == "Conv" and kinds == [TensorProto.INT8] * 2


def _of_integers(quantized: QuantizedGraph, library: str) -> Iterator[Finding]:
    graph = quantized.graph
    for node in filter(_of_pair, filter(_is_whole, graph.nodes)):
        kind = graph.element_type(node.input[0])
        if quantizes(node) and kind in _INTEGERS:
            yield _finding(
                "quantized-integers", node.name,
                f"{node.op_type} reads {_INTEGERS[kind]}; it quantizes floating-point numbers alone",
                "write a Cast to float32 in front of it, or leave it out",
            )  # fmt: skip
        elif dequantizes(node) and (
            kind in _FLOATS or (kind == TensorProto.INT32 and node.input[0] not in graph.constant)
        ):
            yield _finding(
                "quantized-integers", node.name,
                f"{node.op_type} reads {_FLOATS.get(kind, 'int32')}; it dequantizes 8-bit and 4-bit "
                "numbers alone",
                "write a Cast to float32 and a Mul by the scale in its place",
            )  # fmt: skip


def _in_8_bits(quantized: QuantizedGraph, library: str) -> Iterator[Finding]:
    graph = quantized.graph
    for node in graph.nodes:
        if not _is_onnx(node) or _of_pair(node) or node.op_type.startswith(_OWN_WORDS):
            continue
        for name in dict.fromkeys(node.input):
            format = _quantized_as(graph, name)
            only_float = format == "int8" and node.op_type in _FLOAT_ONLY
            if (only_float and LIBRARIES[library].compiler_tried) or (
                format in _MADE_BY_Q.values() and node.op_type not in _SHUFFLES
            ):
                yield _finding(
                    "int8-operator", node.name,
                    f"{node.op_type} reads the {format} tensor {name!r} as it is, in which it is "
                    "not computed",
                    "write DequantizeLinear in front of it, and Q and DQ behind",
                )  # fmt: skip


def _quantized_as(graph: ReadGraph, name: str) -> str | None:
    """The format of a tensor of 8 bits or less that is computed; uint8 is read as int8."""
    kind = graph.element_type(name) if name not in graph.constant else 0
    return "int8" if kind == TensorProto.UINT8 else _QUANTIZED.get(kind)


def _formats(quantized: QuantizedGraph, library: str) -> Iterator[Finding]:
    if not LIBRARIES[library].compiler_tried:
        return
    formats: dict[str, dict[str, str]] = defaultdict(dict)
    for operand in quantized.operands:
        if operand.product:
            format = operand.row.format
            formats[operand.node][operand.row.operand] = "int8" if format == "uint8" else format
    for node, of in formats.items():
        if "fp8" in of.values() and not {"int8", "int4"}.isdisjoint(of.values()):
            said = " and ".join(f"its {role} {format}" for role, format in of.items())
            yield _finding(
                "formats-differ", node, f"{said}: nothing multiplies the two",
                "write both in one format, or one of them float",
            )  # fmt: skip


def _at_run_time(quantized: QuantizedGraph, library: str) -> Iterator[Finding]:
    graph = quantized.graph
    for pair in quantized.pairs:
        zero = next(iter(pair.pair.dq.input[2:3]), "")
        if zero not in graph.fixed:
            yield _finding(
                "scale-at-run-time", pair.pair.dq.name,
                f"the zero point of {pair.format} tensor {pair.pair.source!r} is computed at run time",
                "quantize symmetric, with zero point 0 stored in the file",
            )  # fmt: skip
    held = Counter(o.node for o in quantized.operands if o.product)
    for operand in quantized.operands:
        if operand.op_type != "Conv" or operand.scale is not None or held[operand.node] < 2:
            continue
        for pair in operand.pairs:
            name = pair.pair.dq.input[1]
            if pair.format == "int8" and name not in graph.fixed and graph.shape(name) == ():
                yield _finding(
                    "scale-at-run-time", operand.node,
                    f"the scale of int8 tensor {pair.pair.source!r} is computed at run time",
                    "calibrate it and store the scale in the file, or leave the convolution float",
                )  # fmt: skip


def _inputs(graph: ReadGraph) -> dict[str, int]:
    return {
        value.name: value.type.tensor_type.elem_type
        for value in graph.model.graph.input
        if value.name not in graph.stored
    }


def _nodes(graph: ReadGraph) -> Iterator[tuple[str, onnx.NodeProto]]:
    """Every node that reads and gives something, with its name; those inside If, Loop and Scan with
    the names that lead there."""
    yield from ((node.name, node) for node in graph.nodes if _is_whole(node))
    for place, body in body_graphs(graph.nodes):
        yield from ((f"{place}/{node.name}", node) for node in body.node if _is_whole(node))


def _is_whole(node: onnx.NodeProto) -> bool:
    """What a body holds, or another library's operator, may lack both."""
    return bool(node.input and node.output)


def _is_onnx(node: onnx.NodeProto) -> bool:
    return node.domain in ("", "ai.onnx")


def _of_pair(node: onnx.NodeProto) -> bool:
    return quantizes(node) or dequantizes(node)


def _finding(code: str, node: str, says: str, instead: str) -> Finding:
    return Finding(code, node, None, says, instead, severity="refused")


TYPES: Mapping[str, Check] = {
    "int8-constant": _constants,
    "quantized-integers": _of_integers,
    "int8-operator": _in_8_bits,
    "formats-differ": _formats,
    "scale-at-run-time": _at_run_time,
}
"""Code -> what finds it."""
