"""The flow of values through an ONNX graph: what each node is to it, as a torch call is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from granplugin.graph.read.graph import ReadGraph, reads
from granplugin.network.flow import Flow, Kind
from granplugin.quant.layers import ONNX_PRODUCTS
from granplugin.quant.site import Shape

OpenShape = tuple[int | None, ...]
"""Lengths of which some are open."""
_MOVES = ("Flatten", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
_OTHER_PRODUCTS = ("LSTM", "GRU", "RNN", "Einsum", "Attention", "MultiHeadAttention")
"""What multiplies by weights or by another activation, and is none of the plan's products."""
_COPIES = ("Identity", "Dropout")


@dataclass(frozen=True, slots=True, eq=False)
class GraphFlow:
    """`number` has each tensor's value; `bias` maps a product to the Add of its bias."""

    flow: Flow
    number: Mapping[str, int]
    bias: Mapping[str, onnx.NodeProto]


def flow_of(graph: ReadGraph) -> GraphFlow:
    """The nodes in an order of computation. What depends on an input's shape alone is no data."""
    flow, number = Flow(), {}

    def value(name: str) -> int:
        if name not in number:
            number[name] = flow.value(name not in graph.fixed)
        return number[name]

    bias = {}
    for node in graph.nodes:
        read = [value(name) for name in _read(node)]
        written = [value(name) for name in filter(None, node.output)]
        kind = _kind(graph, node)
        if kind == "add" and (product := _biased(graph, node)):
            kind, bias[product.name] = "other", node
        shape = _sum(graph, node) if kind == "add" else None
        flow.record(kind, read, written, shape)
    return GraphFlow(flow, number, bias)


def known(shape: OpenShape | None) -> Shape | None:
    """A shape with 1 on axis 0, the batch, and for every length that is open."""
    return None if shape is None else (1, *(length or 1 for length in shape[1:]))[: len(shape)]


def _read(node: onnx.NodeProto) -> list[str]:
    if node.op_type == "CastLike":  # takes a type from its second input
        return [node.input[0]]
    return [name for name in dict.fromkeys([*node.input, *sorted(reads(node))]) if name]


def _kind(graph: ReadGraph, node: onnx.NodeProto) -> Kind:
    op = node.op_type
    if op in (*ONNX_PRODUCTS, *_OTHER_PRODUCTS):
        return "product"
    if is_lookup(graph, node):
        return "product"
    if op == "Add" or (op == "Sum" and len(node.input) == 2):
        return "add"
    if op == "Concat":
        return "concat"
    if op == "Softmax":
        return "softmax"
    if op in ("TopK", "ArgMax"):
        return "choice"
    if op in _MOVES:
        return "move"
    if op == "Pad" and len(node.input) > 1:
        pads = graph.value(node.input[1])
        return "copy" if pads is not None and not pads.any() else "other"
    return "copy" if op in _COPIES else "other"


def is_lookup(graph: ReadGraph, node: onnx.NodeProto) -> bool:
    """Whether it gathers what data choose from a constant: an embedding."""
    rows = node.op_type == "Gather" and node.input[0] in graph.constant
    return rows and any(name not in graph.fixed for name in node.input)


def _biased(graph: ReadGraph, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """The product whose bias this Add adds: one number for each of its channels. A position
    embedding, which has rows too, is none."""
    for product_output, added in (tuple(node.input), tuple(node.input)[::-1]):
        product = graph.producer.get(product_output)
        if product is None or product.op_type not in ONNX_PRODUCTS or added not in graph.constant:
            continue
        if len(graph.readers(product_output)) != 1 or product_output in graph.outputs:
            continue
        shape, whole = graph.shape(added), graph.shape(product_output)
        if shape is None or whole is None or len(shape) > len(whole):
            continue
        channels = 1 if product.op_type.startswith("Conv") else len(whole) - 1
        padded = (1,) * (len(whole) - len(shape)) + shape
        if all(length == 1 for axis, length in enumerate(padded) if axis != channels):
            return product
    return None


def _sum(graph: ReadGraph, node: onnx.NodeProto) -> Shape | None:
    """The shape of two tensors of one shape that are added."""
    shapes = {graph.shape(name) for name in node.input}
    return known(shapes.pop()) if len(shapes) == 1 else None
