"""A Q/DQ ONNX of any origin, read as layers and rows: what is quantized, by the data flow alone.

Every DequantizeLinear is followed to the nodes that compute with it (graph.read.flow). The scales'
layout is carried along, so that modelopt's Reshape around Q/DQ, a weight behind a Transpose, and
float weights with Q and DQ all come out as the granularity they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from granplugin.graph.read.bodies import bodies
from granplugin.graph.read.flow import Carried, Reading, follow
from granplugin.graph.read.graph import BIAS, ReadGraph, closed, read_graph
from granplugin.graph.read.loading import reading
from granplugin.graph.read.pairs import BLOCKS, Scaled, qdq
from granplugin.planning.rows import FileRow
from granplugin.quant.granularity import grid
from granplugin.quant.layers import ONNX_PRODUCTS, Layer, sites_of
from granplugin.quant.site import Operand, Shape, Site

# What the capability tables know of layers without weights.
_WITH_BODIES = ("If", "Loop", "Scan")
_PASSIVE = ("MaxPool", "AveragePool", "GlobalAveragePool", "LayerNormalization")


@dataclass(frozen=True)
class QuantizedOperand:
    """One quantized operand of one node, or an output of the graph: its row, and the `pairs` in
    front of it, several behind a concatenation; `moved` are the operators between that move its
    values, and `moves` tells that the node itself only moves them; `constant` that they depend on no
    input.

    `result` is what the node reads. `scale` is None where it is computed at run time; `one_d` tells
    a lone scale that is a vector.
    """

    row: FileRow
    op_type: str
    pairs: tuple[Scaled, ...]
    result: str
    scale: np.ndarray | None
    moved: tuple[str, ...] = ()
    moves: bool = False
    constant: bool = False
    one_d: bool = False
    float32_scale: bool = False

    @property
    def node(self) -> str:
        return self.row.layer

    @property
    def product(self) -> bool:
        return self.op_type in ONNX_PRODUCTS

    @property
    def source(self) -> str:
        """The float tensor that is quantized, or that holds the numbers."""
        return self.pairs[0].pair.source

    @property
    def quantize(self) -> str | None:
        """The QuantizeLinear; None where the file holds the numbers."""
        q = self.pairs[0].pair.q
        return None if q is None else q.name

    @property
    def dequantize(self) -> str:
        return self.pairs[0].pair.dq.name


@dataclass(frozen=True)
class QuantizedGraph:
    """What a file quantizes. `precision` is that of the rest: fp32, fp16 or bf16; `layers` are
    those that a capability table knows; `pairs` are all Q/DQ, read or not; `biases` the nodes that
    read a bias in 32-bit integers; `hidden` are the operands of If, Loop and Scan, and those inside
    them, whose nodes are none of the graph."""

    graph: ReadGraph
    operands: tuple[QuantizedOperand, ...]
    layers: tuple[Layer, ...]
    pairs: tuple[Scaled, ...]
    biases: tuple[str, ...]
    precision: str
    hidden: tuple[QuantizedOperand, ...]

    @property
    def products(self) -> dict[str, int | None]:
        """Each node that multiplies, with the number of its weight's values, None without one."""
        return {product.node.name: product.values for product in self.graph.products}

    def added_to(self, operand: QuantizedOperand) -> str | None:
        """The product whose result a skip input is added to; None where there is none."""
        other = [name for name in self.graph.named[operand.node].input if name != operand.result]
        return next(filter(None, map(self.graph.of_product.get, other)), None)

    def site(self, operand: QuantizedOperand) -> str:
        """What the operand's site is called in a plan of ours, whose nodes are named after modules:
        a sum's skip input is a site of the layer whose output it is added to."""
        node, word = operand.node, operand.row.at.word
        if operand.row.operand == "skip":
            node, word = self.added_to(operand) or node, "skip"
        return f"{node.rpartition('/')[0]}.{word}"

    @property
    def rows(self) -> tuple[FileRow, ...]:
        return tuple(operand.row for operand in self.operands)


def read_quantized(model: onnx.ModelProto, path: Path) -> QuantizedGraph:
    """What `model`, as from `load`, quantizes. Raises ModelError."""
    graph = read_graph(model, path)
    with reading(path):
        seen, layers, pairs, biases = _within(graph)
        operands = [operand for operand in seen if operand.op_type not in _WITH_BODIES]
        hidden = [operand for operand in seen if operand.op_type in _WITH_BODIES]
        for place, body in bodies(model, path):
            for operand in _within(body)[0]:
                at = replace(operand.row.at, place=f"{place}/{operand.node}")
                where = f"{path.name}: {at.place}"
                hidden.append(replace(operand, row=replace(operand.row, at=at, where=where)))
        return QuantizedGraph(
            graph,
            tuple(operands),
            tuple(layers),
            tuple(pairs),
            tuple(biases),
            graph.precision,
            tuple(hidden),
        )


def _within(
    graph: ReadGraph,
) -> tuple[list[QuantizedOperand], Iterable[Layer], Iterable[Scaled], Iterable[str]]:
    """The operands of one graph in its order, the layers of which a table knows, all pairs, and
    the nodes that read a bias in 32-bit integers."""
    operands: list[QuantizedOperand] = []
    layers: dict[str, Layer] = {}
    biases: dict[str, None] = {}
    flow = follow(graph, qdq(graph))
    for read in flow.readings:
        with reading(graph.path, read.node):
            if _is_bias(graph, read):
                if read.carried.format == "int32":
                    biases[read.node.name] = None
                continue
            operand, layer = _operand(graph, read)
        operands.append(operand)
        if layer is not None:
            layers.setdefault(layer.name, layer)
    operands.extend(_output(graph, name, held) for name, held in flow.outputs.items())
    last = len(graph.nodes)
    operands.sort(key=lambda o: (graph.at.get(o.node, last), not o.row.at.constant, o.row.site))
    return _told_apart(operands), layers.values(), flow.pairs, biases


def _told_apart(operands: list[QuantizedOperand]) -> list[QuantizedOperand]:
    """Two quantized sides of one sum are two sites."""
    taken: set[str] = set()
    found = []
    for operand in operands:
        row = operand.row
        if row.site in taken:
            row = replace(row, at=replace(row.at, index=1))
        taken.add(row.site)
        found.append(replace(operand, row=row))
    return found


def _is_bias(graph: ReadGraph, read: Reading) -> bool:
    """ONNX Runtime's tools write biases as 32-bit integers with a DequantizeLinear; they are added
    to a product and are no operand of it."""
    if read.carried.format == "int32" and read.carried.first.pair.source in graph.constant:
        return True
    return read.node.op_type in ONNX_PRODUCTS and read.index == BIAS


def _operand(graph: ReadGraph, read: Reading) -> tuple[QuantizedOperand, Layer | None]:
    node, carried = read.node, read.carried
    given, shape, block = carried.first, carried.shape, carried.block
    weight = node.op_type in ONNX_PRODUCTS and read.name in graph.constant
    summed = node.op_type == "Add" and graph.constant.isdisjoint(node.input)
    role: Operand = "weight" if weight else "skip" if summed else "input"
    if node.op_type in ONNX_PRODUCTS and read.index == 1 and not weight:
        role = "other"
    type_, groups = _type(node, given.shape)
    if weight and type_ == "Linear" and len(shape) == 2 and not _transposed(node):
        shape, block = shape[::-1], block and block[::-1]
    of_two = node.op_type in ONNX_PRODUCTS and node.input[1] not in graph.constant
    if type_ == "Linear" and (len(shape) != 2 if weight else of_two):
        type_ = "MatMul"
    layer = _layer(graph, node, type_, groups, shape if weight else None)
    known_site = layer.site(role) if layer else None
    channel = known_site.channel_axis if known_site else None
    index = read.index if role == "input" else 0
    at = Site(node.name, role, shape, channel, index=index)
    operand = QuantizedOperand(
        _row(graph, at, type_, carried, block),
        node.op_type,
        carried.pairs,
        read.name,
        carried.scale,
        tuple(each.op_type for each in carried.moved),
        read.moves,
        read.name in graph.constant,
        one_d=given.scale is not None and given.scale.shape == (1,),
        float32_scale=_is_float32(given),
    )
    known = layer is not None and carried.scale is not None and given.misfit is None
    return operand, layer if known or given.format in BLOCKS else None


def _output(graph: ReadGraph, name: str, carried: Carried) -> QuantizedOperand:
    """What the graph gives of Q/DQ: a site of the node whose result it is."""
    source = carried.first.pair.source
    made = graph.producer.get(source)
    at = Site(source if made is None else made.name, "output", carried.shape)
    row = _row(graph, at, "output" if made is None else made.op_type, carried, carried.block)
    return QuantizedOperand(row, "", carried.pairs, name, carried.scale)


def _row(graph: ReadGraph, at: Site, type_: str, carried: Carried, block: Shape | None) -> FileRow:
    format, scale, shape = carried.format, carried.scale, at.shape
    if scale is None:
        run_time = format not in BLOCKS
        said = "run-time scales" if run_time else _said(at.operand, shape, block, 0)
    elif scale.size == 1:
        said, block = "per_tensor", shape
    elif block is None:
        said, block = carried.first.misfit or "several, reshaped", (1,) * len(shape)
        if len(carried.pairs) > 1:
            said = "several, concatenated"
    else:
        said = _said(at.operand, shape, block, at.channel_axis)
    where = f"{graph.path.name}: {at.place}"
    return FileRow(
        at=at,
        type=type_,
        format=format,
        granularity=said,
        block=block or shape,
        rule=graph.path.name,
        where=where,
        at_run_time=scale is None and format not in BLOCKS,
    )


def _is_float32(given: Scaled) -> bool:
    said = {attribute.name for attribute in given.pair.dq.attribute}
    scale = given.scale
    return scale is not None and scale.dtype == np.float32 and "output_dtype" not in said


def _said(role: str, shape: Shape, block: Shape | None, channel: int | None) -> str:
    """A block in the recipe's words."""
    if block is None:
        return "several, reshaped"
    cells = grid(shape, block)
    varying = [axis for axis, count in enumerate(cells) if count > 1]
    if not varying:
        return "per_tensor"
    if channel is not None and varying == [channel] and block[channel] == 1 and role == "weight":
        return "per_channel"
    if all(block[axis] == shape[axis] for axis in range(len(shape)) if axis not in varying):
        last = len(shape) - 1
        if role == "input" and channel == last and varying == list(range(1, last)):
            return "per_token"
        if len(varying) == 1 and block[varying[0]] == 1:
            return f"per_channel(axis {varying[0]})"
    if all(part == 1 for part in block):
        return "per_element"
    cut = [axis for axis, part in enumerate(block) if part > 1]
    if len(cut) == 1:
        return f"per_block(size {block[cut[0]]}, axis {cut[0]})"
    return f"per_block({'x'.join(map(str, block))})"


def _type(node: onnx.NodeProto, weight: Shape | None) -> tuple[str, int]:
    """The module that a node is the computation of, and its groups."""
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    if node.op_type in ("Conv", "ConvTranspose"):
        kernel = next((list(a.ints) for a in node.attribute if a.name == "kernel_shape"), None)
        rank = len(kernel) if kernel else max(len(weight or ()) - 2, 1)
        return f"{node.op_type}{rank}d", groups
    return ("Linear" if node.op_type in ONNX_PRODUCTS else node.op_type), 1


def _transposed(node: onnx.NodeProto) -> bool:
    """Whether a Gemm takes its weight as (out, in)."""
    return any(a.name == "transB" and a.i for a in node.attribute)


def _layer(
    graph: ReadGraph, node: onnx.NodeProto, type_: str, groups: int, weight: Shape | None
) -> Layer | None:
    """The node as a capability table has it, None where no table does."""
    seen = graph.shape(node.input[0])
    shape: Shape | None = None if seen is None else (1, *(n or 1 for n in seen[1:]))
    if node.op_type in _PASSIVE:
        return Layer(node.name, type_, sites_of(node.name, type_, {"input": shape}))
    if node.op_type not in ONNX_PRODUCTS or len(node.input) < 2:
        return None
    if node.input[1] not in graph.constant:
        return _of_two(graph, node, type_, shape)
    if type_ == "MatMul":
        return None
    weight = weight or closed(graph.shape(node.input[1])) or (1, 1)
    if type_ == "Linear" and shape is None:
        shape = (1, weight[-1]) if node.op_type == "Gemm" else (1, 1, weight[-1])
    depthwise = groups > 1 and node.op_type == "Conv" and weight[1] == 1
    traits = frozenset({"depthwise"} if depthwise else {"grouped"} if groups > 1 else ())
    shapes: dict[Operand, Shape | None] = {"weight": weight, "input": shape}
    sites = sites_of(node.name, type_, shapes, groups)
    return Layer(node.name, type_, sites, groups=groups, traits=traits)


def _of_two(
    graph: ReadGraph, node: onnx.NodeProto, type_: str, shape: Shape | None
) -> Layer | None:
    """A product of two activations; None for a Gemm or a convolution of two, of which no table
    knows anything."""
    other = graph.shape(node.input[1])
    if node.op_type != "MatMul" or other is None:
        return None
    shapes: dict[Operand, Shape | None] = {
        "input": shape,
        "other": (1, *(n or 1 for n in other[1:])),
    }
    return Layer(node.name, type_, sites_of(node.name, type_, shapes))
