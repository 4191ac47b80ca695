"""A Q/DQ ONNX of any origin, read as layers and rows: what is quantized, by the data flow alone.

Every DequantizeLinear is followed through what only renames or reorders values (Transpose, Reshape,
Cast ...) to the nodes that compute with it. The scales' layout is carried along, so that
modelopt's Reshape around Q/DQ, a weight behind a Transpose, and float weights with Q and DQ all
come out as the granularity they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from granplugin.graph.read.graph import (
    BIAS,
    ReadGraph,
    closed,
    dequantizes,
    quantizes,
    read_graph,
)
from granplugin.graph.read.layout import THROUGH, behind
from granplugin.graph.read.loading import reading, subgraphs
from granplugin.graph.read.pairs import BLOCKS, Scaled, qdq, scaled
from granplugin.planning.rows import FileRow
from granplugin.quant.granularity import grid
from granplugin.quant.layers import ONNX_PRODUCTS, Layer, sites_of
from granplugin.quant.site import Operand, Shape, Site

# What the capability tables know of layers without weights.
_PASSIVE = ("MaxPool", "AveragePool", "GlobalAveragePool", "LayerNormalization")


@dataclass(frozen=True)
class QuantizedOperand:
    """One quantized operand of one node: its row, and the names of the QuantizeLinear - None where the file holds the numbers - and
    DequantizeLinear in front of it.

    `source` is the float tensor that is quantized, `result` what the node reads. `scale` is None
    where it is computed at run time; `one_d` tells a lone scale that is a vector; `misfit` says how
    scales do not fit.
    """

    row: FileRow
    op_type: str
    quantize: str | None
    dequantize: str
    source: str
    result: str
    scale: np.ndarray | None
    one_d: bool = False
    float32_scale: bool = False
    misfit: str | None = None

    @property
    def node(self) -> str:
        return self.row.layer

    @property
    def product(self) -> bool:
        return self.op_type in ONNX_PRODUCTS


@dataclass(frozen=True)
class Found:
    """What a file quantizes. `precision` is that of the rest: fp32, fp16 or bf16; `layers` are
    those that a capability table knows; `biases` the nodes that read a bias in 32-bit integers;
    `hidden` counts Q/DQ inside If, Loop and Scan, which are not followed."""

    graph: ReadGraph
    operands: tuple[QuantizedOperand, ...]
    layers: tuple[Layer, ...]
    biases: tuple[str, ...]
    precision: str
    hidden: int

    @property
    def products(self) -> dict[str, int | None]:
        """Each node that multiplies, with the number of its weight's values, None without one."""
        return {product.node.name: product.values for product in self.graph.products}

    def site(self, operand: QuantizedOperand) -> str:
        """What the operand's site is called in a plan of ours, whose nodes are named after modules:
        a sum's skip input is a site of the layer whose output it is added to."""
        node = operand.node
        if operand.row.operand == "skip":
            other = [n for n in self.graph.named[node].input if n != operand.result]
            node = next(filter(None, map(self.graph.of_product.get, other)), node)
        return f"{node.rpartition('/')[0]}.{operand.row.at.word}"

    @property
    def rows(self) -> tuple[FileRow, ...]:
        return tuple(operand.row for operand in self.operands)


def find(model: onnx.ModelProto, path: Path) -> Found:
    """What `model`, as from `load`, quantizes. Raises ModelError."""
    graph = read_graph(model, path)
    operands: list[QuantizedOperand] = []
    layers: dict[str, Layer] = {}
    biases: dict[str, None] = {}
    with reading(path):
        for pair in qdq(graph):
            with reading(path, pair.dq):
                given = scaled(graph, pair)
                users = list(_users(graph, given))
            for user in users:
                with reading(path, user.node):
                    if _is_bias(graph, given, user):
                        biases[user.node.name] = None
                        continue
                    operand, layer = _operand(graph, given, user)
                operands.append(operand)
                if layer is not None:
                    layers.setdefault(layer.name, layer)
        operands.sort(key=lambda o: (graph.at[o.node], not o.row.at.constant, o.row.site))
        hidden = sum(dequantizes(n) for body in subgraphs(graph.nodes) for n in body.node)
        return Found(
            graph, tuple(operands), tuple(layers.values()), tuple(biases), graph.precision, hidden
        )


@dataclass(frozen=True)
class _User:
    """A node that computes with a dequantized tensor, as its input `index`; `shape` and `block` are
    those of the tensor there."""

    node: onnx.NodeProto
    index: int
    shape: Shape
    block: Shape | None


def _users(graph: ReadGraph, given: Scaled) -> Iterator[_User]:
    waiting: list[tuple[str, Shape, Shape | None]]
    waiting = [(given.pair.result, given.shape or (), given.block)]
    while waiting:
        name, shape, block = waiting.pop()
        if block is None:
            seen = graph.shape(name) or shape or graph.shape(given.pair.source) or (1,)
            shape = tuple(n or 1 for n in seen)
        onward = []
        for node, index in graph.uses.get(name, ()):
            if dequantizes(node) or quantizes(node):
                continue  # a scale that is itself quantized, or a tensor that is quantized anew
            if node.op_type in THROUGH and index == 0:
                onward.append((node.output[0], *behind(graph, node, shape, block)))
            else:
                yield _User(node, index, shape, block)
        waiting.extend(reversed(onward))


def _is_bias(graph: ReadGraph, given: Scaled, user: _User) -> bool:
    """ONNX Runtime's tools write biases as 32-bit integers with a DequantizeLinear; they are added
    to a product and are no operand of it."""
    if given.pair.source in graph.constant and given.format == "int32":
        return True
    return user.node.op_type in ONNX_PRODUCTS and user.index == BIAS


def _operand(graph: ReadGraph, given: Scaled, user: _User) -> tuple[QuantizedOperand, Layer | None]:
    node, pair, scale, shape, block = user.node, given.pair, given.scale, user.shape, user.block
    weight = node.op_type in ONNX_PRODUCTS and pair.source in graph.constant
    summed = node.op_type == "Add" and graph.constant.isdisjoint(node.input)
    role: Operand = "weight" if weight else "skip" if summed else "input"
    if node.op_type in ONNX_PRODUCTS and user.index == 1 and not weight:
        role = "other"
    type_, groups = _type(node, given.shape)
    if weight and type_ == "Linear" and len(shape) == 2 and not _transposed(node):
        shape, block = shape[::-1], block and block[::-1]
    if type_ == "Linear" and (len(shape) != 2 if weight else role == "other"):
        type_ = "MatMul"
    layer = _layer(graph, node, type_, groups, shape if weight else None)
    known_site = layer.site("weight" if weight else "input") if layer else None
    channel = known_site.channel_axis if known_site else None
    one = scale is not None and scale.size == 1
    if scale is None:
        said = "run-time scales" if given.format not in BLOCKS else _said(role, shape, block, 0)
    elif one:
        said, block = "per_tensor", shape
    elif block is None:
        said, block = given.misfit or "several, reshaped", (1,) * len(shape)
    else:
        said = _said(role, shape, block, channel)
    row = FileRow(
        at=Site(node.name, role, shape, channel, index=user.index if role == "input" else 0),
        type=type_,
        format=given.format,
        granularity=said,
        block=block or shape,
        rule=graph.path.name,
        where=f"{graph.path.name}: {node.name}",
    )
    kinds = {a.name for a in pair.dq.attribute}
    operand = QuantizedOperand(
        row,
        node.op_type,
        None if pair.q is None else pair.q.name,
        pair.dq.name,
        pair.source,
        node.input[user.index],
        scale,
        one_d=scale is not None and scale.shape == (1,),
        float32_scale=scale is not None
        and scale.dtype == np.float32
        and "output_dtype" not in kinds,
        misfit=given.misfit,
    )
    known = layer is not None and scale is not None and given.misfit is None
    return operand, layer if known or given.format in BLOCKS else None


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
    if node.op_type not in ONNX_PRODUCTS or type_ == "MatMul" or len(node.input) < 2:
        return None
    if node.input[1] not in graph.constant:
        return None
    weight = weight or closed(graph.shape(node.input[1])) or (1, 1)
    if type_ == "Linear" and shape is None:
        shape = (1, weight[-1]) if node.op_type == "Gemm" else (1, 1, weight[-1])
    depthwise = groups > 1 and node.op_type == "Conv" and weight[1] == 1
    traits = frozenset({"depthwise"} if depthwise else {"grouped"} if groups > 1 else ())
    shapes: dict[Operand, Shape | None] = {"weight": weight, "input": shape}
    sites = sites_of(node.name, type_, shapes, groups)
    return Layer(node.name, type_, sites, groups=groups, traits=traits)
