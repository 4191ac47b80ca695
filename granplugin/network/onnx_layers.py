"""The layers of an ONNX graph: its products and other places with sites, as a plan sees them.

A layer is a node and called as the node is; its type is the node's operator. Weights of Gemm and
MatMul are told as a Linear's are, [out, in], whichever way the file holds them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from granplugin.graph.read.bodies import body_graphs
from granplugin.graph.read.graph import ReadGraph, reads
from granplugin.network.onnx_file import is_float
from granplugin.network.onnx_flow import GraphFlow, OpenShape, flow_of, is_lookup, known
from granplugin.network.role_traits import Product
from granplugin.network.standing import CallValues, find_standings
from granplugin.quant.folding import Norm, channel_ranges, fold, spread
from granplugin.quant.layers import LOOKUP, ONNX_PRODUCTS, PASSIVE, PRODUCTS, Layer, sites_of
from granplugin.quant.site import Operand, Shape


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A layer with its node: `output` is the tensor it puts out - of a MatMul with a bias behind
    it, the sum's -, `bn` the node of the batch norm that can be folded into it, and `skip` the add
    that its result goes into, with the number of that node's other input."""

    layer: Layer
    node: onnx.NodeProto
    output: str
    bias: onnx.NodeProto | None
    bn: onnx.NodeProto | None
    skip: tuple[onnx.NodeProto, int] | None = None

    @property
    def nodes(self) -> tuple[onnx.NodeProto, ...]:
        """Those that are computed for the layer."""
        return (self.node,) if self.bias is None else (self.node, self.bias)


def place_layers(graph: ReadGraph) -> tuple[Placed, ...]:
    """The layers in an order of computation; nodes that read no data are none."""
    flow, needed = flow_of(graph), _needed(graph)
    placed = [
        _placed(graph, flow, node, needed)
        for node in graph.nodes
        if node.output[0] not in graph.fixed
        and (node.op_type in (*ONNX_PRODUCTS, *PASSIVE) or _is_embedding(graph, node))
    ]
    found = [(graph.at[each.node.name], each) for each in _joined(graph, flow, placed)]
    return tuple(each for _, each in sorted([*found, *_inside(graph)], key=itemgetter(0)))


def _needed(graph: ReadGraph) -> set[str]:
    """The tensors that outputs depend on."""
    needed = set(graph.outputs)
    for node in reversed(graph.nodes):
        if not needed.isdisjoint(node.output):
            needed.update(reads(node))
    return needed


def _is_embedding(graph: ReadGraph, node: onnx.NodeProto) -> bool:
    """Whether it looks rows of numbers up: indices and lengths are looked up too."""
    return is_lookup(graph, node) and is_float(graph.element_type(node.input[0]))


def _inside(graph: ReadGraph) -> Iterator[tuple[int, Placed]]:
    """Products in bodies, each with the position of the node whose body it is in."""
    for at, node in enumerate(graph.nodes):
        for within, body in body_graphs([node]):
            for inner in body.node:
                if inner.op_type in ONNX_PRODUCTS:
                    why = (
                        f"it is inside the body of a node ({node.op_type}), and bodies stay as they "
                        "are; docs/onnx-files.md tells how to keep one branch"
                    )
                    layer = Layer(f"{within}/{inner.name}", inner.op_type, unusable=why)
                    yield at, Placed(layer, inner, inner.output[0], None, None)


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """What an attribute of a node holds."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def weight_input(node: onnx.NodeProto) -> int:
    """Which of the inputs of a product with a weight that is."""
    return 0 if node.op_type == LOOKUP else 1


def data_input(node: onnx.NodeProto) -> int:
    """Which of the inputs of a layer its input is, or of a lookup the indices."""
    return 1 if node.op_type == LOOKUP else 0


def weight_of(graph: ReadGraph, node: onnx.NodeProto) -> np.ndarray | None:
    """The weight of a product as its layer has it, float32; None where it cannot be computed."""
    held = _array(graph, node.input[weight_input(node)])
    if held is None:
        return None
    held = held.astype(np.float32, copy=False)
    return held.T if _reversed(node) and held.ndim == 2 else held


def folded_weight(graph: ReadGraph, placed: Placed) -> np.ndarray | None:
    """The same with the layer's batch norm folded in; None without one that can be folded."""
    weight = weight_of(graph, placed.node)
    if placed.bn is None or weight is None:
        return None
    gamma, beta, mean, var = (graph.value(name) for name in placed.bn.input[1:5])
    if gamma is None or beta is None or mean is None or var is None:
        return None
    norm = Norm(gamma, beta, mean, var, attribute(placed.bn, "epsilon", 1e-5))
    return fold(weight, None, norm, weight_axis(placed.node), placed.layer.groups)[0]


def weight_axis(node: onnx.NodeProto) -> int:
    """The output-channel axis of a layer's weight, as granplugin.quant.folding takes it."""
    return 1 if node.op_type == "ConvTranspose" else 0


def _array(graph: ReadGraph, name: str) -> np.ndarray | None:
    """A constant's numbers, of which none are kept: a model may be larger than the memory."""
    if name in graph.stored:
        return graph.array(name)
    node = graph.producer[name]
    if node.op_type not in ("Transpose", "Identity"):
        return graph.value(name)
    held = _array(graph, node.input[0])
    if held is None or node.op_type == "Identity":
        return held
    return held.transpose(attribute(node, "perm", None))


def _reversed(node: onnx.NodeProto) -> bool:
    """Whether the file holds the weight as [in, out]."""
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0))


def _placed(
    graph: ReadGraph, flow: GraphFlow, node: onnx.NodeProto, needed: Collection[str]
) -> Placed:
    """A node by itself, with what stands behind it."""
    bias = flow.bias.get(node.name)
    output = node.output[0] if bias is None else bias.output[0]
    groups = attribute(node, "group", 1)
    unusable = _unusable(graph, node)
    if unusable is None and not any(name in needed for name in node.output):
        unusable = "no output of the model depends on it"
    layer = Layer(node.name, node.op_type, unusable=unusable)
    given: dict[Operand, OpenShape | None] = {
        "input": None if node.op_type == LOOKUP else graph.shape(node.input[0]),
        "output": graph.shape(output),
    }
    weight = bn = None
    if node.op_type == LOOKUP and not layer.unusable:
        weight = _weight_shape(graph, node)
    elif node.op_type in ONNX_PRODUCTS and not layer.unusable:
        if node.input[1] not in graph.constant:
            given["other"] = graph.shape(node.input[1])
        elif weight := _weight_shape(graph, node):
            given["input"] = _with_channels(node, given["input"], weight, groups)
            bn = _foldable(graph, node, output, len(weight))
    is_open = any(None in (shape or ())[1:] for shape in given.values())
    shapes: dict[Operand, Shape | None] = {at: known(shape) for at, shape in given.items()}
    shapes["weight"] = weight
    layer = replace(
        layer,
        sites=sites_of(node.name, node.op_type, shapes, groups),
        groups=groups,
        traits=_traits(node, weight, groups),
        bn=None if bn is None else bn.name,
        varying=is_open,
    )
    placed = Placed(layer, node, output, bias, bn)
    if weight is None:
        return placed
    return replace(placed, layer=replace(layer, spread=_spread(graph, placed)))


def _convolves(node: onnx.NodeProto) -> bool:
    """Whether it is a convolution, transposed or not."""
    kind = PRODUCTS.get(node.op_type)
    return kind is not None and kind.operation in ("convolution", "transposed")


def _weight_shape(graph: ReadGraph, node: onnx.NodeProto) -> Shape | None:
    held = graph.shape(node.input[weight_input(node)])
    if held is None or None in held:
        return None
    shape = tuple(length or 0 for length in held)
    return shape[::-1] if _reversed(node) else shape


def _with_channels(
    node: onnx.NodeProto, given: OpenShape | None, weight: Shape, groups: int
) -> OpenShape | None:
    """An input's shape with the channels that its weight has, which inference may not know."""
    if given is None:
        return None
    if not _convolves(node):
        return (*given[:-1], weight[1])
    channels = weight[0] if node.op_type == "ConvTranspose" else weight[1] * groups
    return (given[0], channels, *given[2:])


def _unusable(graph: ReadGraph, node: onnx.NodeProto) -> str | None:
    """Why quantizers at this node would have no effect, or None."""
    if node.op_type == LOOKUP:
        rows = _weight_shape(graph, node)
        if rows is None or len(rows) != 2 or attribute(node, "axis", 0):
            return "it looks up something else than rows of a table of 2 axes"
        return None if known(graph.shape(node.output[0])) else UNSHAPED
    if node.op_type not in ONNX_PRODUCTS:
        return None if known(graph.shape(node.input[0])) else UNSHAPED
    first, second = node.input[:2]
    if first in graph.constant:
        return "its weight is its first operand, and engines quantize a weight that is the second"
    if attribute(node, "transA", 0):
        return "it transposes its input, which granplugin does not plan for"
    # Operands are of one type; of what another's operator puts out, it is not known.
    kind = graph.element_type(first) or graph.element_type(second)
    if kind and not is_float(kind):
        return "it multiplies integers"
    if kind not in (0, TensorProto.FLOAT):
        return f"it multiplies in {TensorProto.DataType.Name(kind).lower()}, and not in float32"
    if second in graph.constant:
        shape = _weight_shape(graph, node)
        if shape is None:
            return "the shape of its weight is not known"
        if not _convolves(node) and len(shape) != 2:
            return f"its weight has {len(shape)} axes, and a linear layer's has 2"
    elif node.op_type == "Gemm":
        return "it multiplies two activations, which granplugin plans for of a MatMul alone"
    elif _convolves(node):
        return "its filter is computed from the data"
    if not all(known(graph.shape(name)) for name in (first, second)):
        return UNSHAPED
    return None


UNSHAPED = "the shape of what it reads cannot be inferred"
"""Why a layer is unusable of which a pass would show more."""


def _traits(node: onnx.NodeProto, weight: Shape | None, groups: int) -> frozenset[str]:
    traits = set()
    if weight is not None and _convolves(node):
        if groups > 1:
            per_filter = weight[1] == 1 if node.op_type == "Conv" else weight[0] == groups
            traits.add("depthwise" if per_filter else "grouped")
        if math.prod(weight[2:]) == 1:
            traits.add("pointwise")
    return frozenset(traits)


def _spread(graph: ReadGraph, placed: Placed) -> float | None:
    weight = weight_of(graph, placed.node) if placed.bn is None else folded_weight(graph, placed)
    if weight is None:
        return None
    return spread(channel_ranges(weight, weight_axis(placed.node), placed.layer.groups))


def _foldable(
    graph: ReadGraph, node: onnx.NodeProto, output: str, rank: int
) -> onnx.NodeProto | None:
    """The batch norm that is the one reader of a layer's output, where folding is exact."""
    shape = graph.shape(output)
    # Looking at a shape is not reading.
    readers = [each for each in graph.readers(output) if each.op_type not in ("Shape", "Size")]
    shared = [each for each in graph.readers(node.input[1]) if each.op_type in ONNX_PRODUCTS]
    if len(readers) != 1 or output in graph.outputs or len(shared) != 1:
        return None
    bn = readers[0]
    if (
        bn.op_type == "BatchNormalization"
        and bn.input[0] == output
        and graph.constant.issuperset(node.input[1:])
        and graph.constant.issuperset(bn.input[1:])
        and not attribute(bn, "training_mode", 0)
        # fold's result is float32.
        and graph.element_type(node.input[1]) == TensorProto.FLOAT
        # Else axis 1, which batch norm scales, is not the layer's channels.
        and shape is not None
        and len(shape) == rank
    ):
        return bn
    return None


def _products(
    graph: ReadGraph, flow: GraphFlow, placed: Sequence[Placed]
) -> Iterator[tuple[str, Product]]:
    """The layers with a weight and the lookups, as far as roles depend on them."""
    for each in placed:
        weight, kind = each.layer.shape("weight"), each.layer.kind
        if weight is not None and kind is not None and kind.operation != "lookup":
            reads, results = flow.number[each.node.input[0]], flow.number[each.output]
            behind = {node.op_type for node in graph.readers(each.output)}
            bare = "BatchNormalization" not in behind
            yield (
                each.layer.name,
                Product(kind.operation, (reads,), (results,), weight[0], bare),
            )
    for node in graph.nodes:
        rows = graph.shape(node.input[0]) if is_lookup(graph, node) else None
        if rows and rows[0] and node.output[0] not in graph.fixed:
            reads, results = flow.number[node.input[1]], flow.number[node.output[0]]
            yield node.name, Product("lookup", (reads,), (results,), rows[0], True)


def _joined(graph: ReadGraph, flow: GraphFlow, placed: list[Placed]) -> tuple[Placed, ...]:
    """The same layers with what the flow of values says of them."""
    number, values = flow.number, flow.flow
    starts = {number[v.name] for v in graph.model.graph.input if v.name in number}
    starts = {start for start in starts if values.data[start]}
    ends = {number[name] for name in graph.outputs if name in number}
    passed = {
        each.layer.name: [
            CallValues(
                number[each.node.input[data_input(each.node)]],
                number[each.output],
                number[each.node.input[1]] if each.layer.shape("other") else None,
            )
        ]
        for each in placed
    }
    products = dict(_products(graph, flow, placed))
    standings = find_standings(values, passed, products, starts, ends)

    def joined(each: Placed) -> Placed:
        standing, met = standings[each.layer.name], None
        if standing.skip:
            add = graph.nodes[standing.skip.at]
            met = add, [number[name] for name in add.input].index(standing.skip.value)
        shapes = {site.operand: site.shape for site in each.layer.sites}
        return replace(each, skip=met, layer=standing.of(each.layer, shapes))

    return tuple(map(joined, placed))
