"""Everything an ONNX file multiplies, counted node by node: also what is no layer, or in a body."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import onnx
from onnx import helper

from granplugin.graph.read.bodies import body_graphs
from granplugin.graph.read.graph import ReadGraph, closed
from granplugin.network.onnx_file import is_float
from granplugin.quant.multiplications import Multiplication
from granplugin.quant.site import Shape

Shapes = Callable[[str], Shape | None]
"""The shape of a tensor, where it is known."""


def products_of(graph: ReadGraph, samples: int) -> tuple[Multiplication, ...]:
    """In an order of computation, those in bodies behind the node that they are in; for one sample
    of the shapes of the graph, which are of so many. Nothing is asked of the graph's layers."""
    return tuple(_found(graph, samples))


def multiplies(node: onnx.NodeProto) -> bool:
    """Whether a node multiplies tensors, by itself: a body's nodes are not its own."""
    if node.domain in ("", "ai.onnx"):
        return node.op_type in _MACS
    return node.op_type.endswith(_FUSED)


def _found(graph: ReadGraph, samples: int) -> Iterator[Multiplication]:
    def shape(name: str) -> Shape | None:
        return closed(graph.shape(name))

    for node in graph.nodes:
        if graph.fixed.issuperset(node.output):  # it is computed once
            continue
        if multiplies(node):
            count = _MACS.get(node.op_type, _unknown)(node, shape)
            macs = None if count is None else count // samples
            yield _product(graph, node, node.name, macs)
        for within, body in body_graphs([node]):
            for inner in filter(multiplies, body.node):
                yield _product(graph, inner, f"{within}/{inner.name}", None)


def _product(
    graph: ReadGraph, node: onnx.NodeProto, place: str, macs: int | None
) -> Multiplication:
    factors = node.input[: 3 if node.op_type in _THREE else 2]
    stored = {name: graph.count(name) or 0 for name in sources(graph, factors)}
    kept = {name: count for name, count in stored.items() if len(graph.shape(name) or ()) > 1}
    return Multiplication(place, node.op_type, node.op_type, macs, tuple(kept.items()))


def sources(graph: ReadGraph, names: Iterable[str]) -> dict[str, None]:
    """The stored tensors of floats, of more than one value, that these tensors are made of as far as
    no data changes them."""
    found: dict[str, None] = {}
    seen: set[str] = set()
    waiting = [*names]
    while waiting:
        name = waiting.pop()
        if not name or name in seen or name not in graph.fixed:
            continue
        seen.add(name)
        if name not in graph.stored:
            waiting += graph.producer[name].input
        elif is_float(graph.stored[name].data_type) and math.prod(graph.stored[name].dims) > 1:
            found[name] = None
    return found


def _convolution(node: onnx.NodeProto, shape: Shapes) -> int | None:
    """Each of the weight's values is used once for each position of the output."""
    weight, made = shape(node.input[1]), shape(node.output[0])
    if weight is None or made is None:
        return None
    return math.prod(weight) * made[0] * math.prod(made[2:])


def _transposed(node: onnx.NodeProto, shape: Shapes) -> int | None:
    """Each of the weight's values is used once for each position of the input."""
    weight, given = shape(node.input[1]), shape(node.input[0])
    if weight is None or given is None:
        return None
    return math.prod(weight) * given[0] * math.prod(given[2:])


def _matrix(node: onnx.NodeProto, shape: Shapes) -> int | None:
    given, made = shape(node.input[0]), shape(node.output[0])
    return None if given is None or made is None else math.prod(made) * given[-1]


def _gemm(node: onnx.NodeProto, shape: Shapes) -> int | None:
    given, made = shape(node.input[0]), shape(node.output[0])
    if given is None or made is None:
        return None
    turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(made) * given[0 if turned else -1]


def _recurrence(node: onnx.NodeProto, shape: Shapes) -> int | None:
    """Each of the values of W and R is used once for each step of each sample."""
    given, weights = shape(node.input[0]), [shape(name) for name in node.input[1:3]]
    if given is None or None in weights:
        return None
    return given[0] * given[1] * sum(math.prod(weight or ()) for weight in weights)


def _einsum(node: onnx.NodeProto, shape: Shapes) -> int | None:
    """As many as there are values in the product of all axes, where two are multiplied."""
    (text,) = (
        helper.get_attribute_value(attribute).decode()
        for attribute in node.attribute
        if attribute.name == "equation"
    )
    terms = text.replace(" ", "").partition("->")[0].split(",")
    lengths: dict[str, int] = {}
    for term, name in zip(terms, node.input, strict=False):
        held = shape(name)
        if held is None or "." in term or len(term) != len(held):
            return None
        lengths |= dict(zip(term, held, strict=True))
    return math.prod(lengths.values()) if len(terms) > 1 else 0


def _attention(node: onnx.NodeProto, shape: Shapes) -> int | None:
    """Scores and their products with the values, of heads laid out (batch, heads, length, size)."""
    given = [shape(name) for name in node.input[:3]]
    if any(each is None or len(each) != 4 for each in given):
        return None
    query, key, value = (each or () for each in given)
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _unknown(node: onnx.NodeProto, shape: Shapes) -> int | None:
    return None


_MACS: dict[str, Callable[[onnx.NodeProto, Shapes], int | None]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "DeformConv": _convolution,
    "MatMul": _matrix,
    "Gemm": _gemm,
    "LSTM": _recurrence,
    "GRU": _recurrence,
    "RNN": _recurrence,
    "Einsum": _einsum,
    "Attention": _attention,
    "ConvInteger": _convolution,
    "MatMulInteger": _matrix,
    "QLinearConv": _unknown,
    "QLinearMatMul": _unknown,
}
"""Operator -> its multiply-accumulates in one pass."""
_THREE = ("LSTM", "GRU", "RNN", "Attention")
"""Operators that multiply three operands; what others read behind the second is added."""
_FUSED = ("Attention", "Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits")
"""What the names of others' operators end with that multiply: ONNX Runtime's FusedMatMul."""
