"""An ONNX graph in which some sites are rounded, in float arithmetic: what a Q/DQ file of it is to
compute, made without that file and without the code that writes it.

A weight becomes the oracle's numbers (granplugin.quant.formats); another tensor x becomes
clip(round(x / scale)) * scale, the oracle's formula, in nodes of ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import onnx
from onnx import TensorProto, helper

from granplugin.graph.read.graph import ReadGraph
from granplugin.network.onnx_layers import (
    Placed,
    attribute,
    weight_axis,
    weight_input,
    weight_of,
)
from granplugin.planning.rows import QuantizedRow
from granplugin.quant.folding import Norm, fold
from granplugin.quant.formats import FORMATS, fake_quantize, scale_of
from granplugin.quant.granularity import expand

_SMALLEST_NORMAL = float(np.finfo(np.float32).smallest_normal)


@dataclass(frozen=True)
class Rounded:
    """Nodes in an order of computation, and the constants that they read besides the graph's;
    `sizes` are the numbers of values of those that are made when they are read."""

    nodes: tuple[onnx.NodeProto, ...]
    constants: Mapping[str, np.ndarray]
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _WhenRead(Mapping[str, np.ndarray]):
    """Arrays of which some are made each time they are read, and kept by nobody."""

    held: Mapping[str, np.ndarray]
    makers: Mapping[str, Callable[[], np.ndarray]]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.makers[name]() if name in self.makers else self.held[name]

    def __contains__(self, name: object) -> bool:
        return name in self.makers or name in self.held

    def __iter__(self) -> Iterator[str]:
        yield from self.held
        yield from self.makers

    def __len__(self) -> int:
        return len(self.held) + len(self.makers)


def rounded(
    graph: ReadGraph,
    placed: Mapping[str, Placed],
    rows: Iterable[QuantizedRow],
    amax: Mapping[str, np.ndarray],
    folded: Iterable[str] = (),
    made: Mapping[str, np.ndarray] = MappingProxyType({}),
    when_read: bool = False,
) -> Rounded:
    """A prepared graph with these rows' sites rounded, by their `amax` where they are not dynamic,
    and with the batch norms of the layers `folded` taken in. `made` are weights that are rounded
    already, by site; others are rounded at once, or each time `when_read`."""
    edit, rows = _Edit(graph, when_read), list(rows)
    weights = {row.layer: row for row in rows if row.operand == "weight"}
    folded = set(folded)
    for layer in dict.fromkeys([*weights, *folded]):
        edit.weigh(placed[layer], weights.get(layer), amax, made, layer in folded)
    # What a layer puts out is renamed first, or it would be rounded behind what reads it.
    for row in sorted(rows, key=lambda row: row.operand != "output"):
        if row.operand != "weight":
            edit.round(placed[row.layer], row, amax.get(row.site), row.layer in folded)
    return edit.done()


def folded_of(graph: ReadGraph, placed: Placed) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias (float32) of a layer with its batch norm taken in."""
    bn, node = placed.bn, placed.node
    assert bn is not None
    weight = weight_of(graph, node)
    assert weight is not None
    gamma, beta, mean, var = (graph.array(name) for name in bn.input[1:5])
    norm = Norm(gamma, beta, mean, var, attribute(bn, "epsilon", 1e-5))
    return fold(weight, bias_of(graph, placed), norm, weight_axis(node), placed.layer.groups)


def bias_of(graph: ReadGraph, placed: Placed) -> np.ndarray | None:
    """What is added to each output channel of a layer (float32), in its node and behind it; None
    where nothing is."""
    weight, node = placed.layer.shape("weight"), placed.node
    assert weight is not None
    channels = weight[1] * placed.layer.groups if weight_axis(node) else weight[0]
    parts = []
    if node.op_type != "MatMul" and len(node.input) > 2 and node.input[2]:
        factor = attribute(node, "beta", 1.0) if node.op_type == "Gemm" else 1.0
        parts.append(graph.array(node.input[2]).reshape(-1) * np.float32(factor))
    if placed.bias is not None:
        name = next(name for name in placed.bias.input if name in graph.stored)
        parts.append(graph.array(name).reshape(-1))
    if not parts:
        return None
    return np.broadcast_to(np.sum(parts, axis=0, dtype=np.float32), (channels,))


@dataclass
class _Edit:
    graph: ReadGraph
    when_read: bool = False
    nodes: dict[str, onnx.NodeProto] = field(default_factory=dict)
    before: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)
    after: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    renamed: dict[str, str] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    makers: dict[str, Callable[[], np.ndarray]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def node(self, name: str) -> onnx.NodeProto:
        """A copy of a node, to be changed."""
        if name not in self.nodes:
            self.nodes[name] = onnx.NodeProto()
            self.nodes[name].CopyFrom(self.graph.named[name])
        return self.nodes[name]

    def constant(self, name: str, array: np.ndarray) -> str:
        self.constants[name] = np.ascontiguousarray(array).reshape(array.shape)
        return name

    def weigh(
        self,
        placed: Placed,
        row: QuantizedRow | None,
        amax: Mapping[str, np.ndarray],
        made: Mapping[str, np.ndarray],
        folds: bool,
    ) -> None:
        """Give a layer another weight, and the bias of its batch norm."""
        node, name = self.node(placed.node.name), f"{placed.layer.name}/weight"
        folded = folded_of(self.graph, placed) if folds else None
        if folded is not None:
            self._bias(placed, folded[1])

        def weight() -> np.ndarray:
            if row is not None and row.site in made:
                return made[row.site]
            whole = folded[0] if folded is not None else weight_of(self.graph, placed.node)
            assert whole is not None
            if row is not None:
                fmt = FORMATS[row.format]
                whole = fake_quantize(whole, scale_of(amax[row.site], fmt), row.block, fmt)
            return np.ascontiguousarray(whole)

        if self.when_read:
            self.makers[name] = weight
            self.sizes[name] = math.prod(placed.layer.shape("weight") or ())
        else:
            self.constant(name, weight())
        if node.op_type == "MatMul":
            turned = helper.make_node("Transpose", [name], [f"{name}/turned"], perm=[1, 0])
            self.before.setdefault(node.name, []).append(turned)
            name = turned.output[0]
        elif node.op_type == "Gemm":
            _set(node, "transB", 1)
        node.input[weight_input(node)] = name

    def _bias(self, placed: Placed, bias: np.ndarray) -> None:
        bn = placed.bn
        assert bn is not None
        self.gone.add(bn.name)
        node = self.node(placed.node.name)
        if placed.bias is not None:
            add = self.node(placed.bias.name)
            at = next(i for i, x in enumerate(add.input) if x in self.graph.stored)
            inner = [1] * (len(placed.layer.shape("weight") or ()) - 2)  # behind the channels
            add.input[at] = self.constant(f"{placed.layer.name}/bias", bias.reshape(-1, *inner))
            del node.input[2:]
            self.renamed[placed.output] = bn.output[0]
            return
        name = self.constant(f"{placed.layer.name}/bias", bias)
        if node.op_type == "MatMul":
            product = f"{placed.output}/product"
            added = helper.make_node("Add", [product, name], [placed.output])
            node.output[0] = product
            self.after.setdefault(node.name, []).append(added)
        else:
            del node.input[2:]
            node.input.append(name)
            if node.op_type == "Gemm":
                _set(node, "beta", 1.0)
        self.renamed[placed.output] = bn.output[0]

    def round(
        self, placed: Placed, row: QuantizedRow, amax: np.ndarray | None, folds: bool
    ) -> None:
        """Round the tensor of an input, output or skip."""
        if row.operand == "output":
            # What reads it reads the same name.
            last, name = placed.nodes[-1].name, placed.output
            if row.bn == "fold" and not folds and placed.bn is not None:
                # It is that of the batch norm, which is kept here.
                last, name = placed.bn.name, placed.bn.output[0]
            plain = f"{name}/float"
            behind = self.after.setdefault(last, [])
            producer = behind[-1] if behind else self.node(last)
            producer.output[list(producer.output).index(name)] = plain
            behind += self._rounding(row, amax, plain, name)
            return
        reader, at = placed.node.name, 1 if row.operand == "other" else 0
        if row.operand == "skip":
            assert placed.skip is not None
            reader, at = placed.skip[0].name, placed.skip[1]
        node = self.node(reader)
        result = f"{row.site}/rounded"
        self.before.setdefault(reader, []).extend(self._rounding(row, amax, node.input[at], result))
        node.input[at] = result

    def _rounding(
        self, row: QuantizedRow, amax: np.ndarray | None, x: str, y: str
    ) -> list[onnx.NodeProto]:
        fmt, site = FORMATS[row.format], row.site
        nodes: list[onnx.NodeProto] = []

        def made(op_type: str, *inputs: str, output: str | None = None, **attributes: int) -> str:
            output = output or f"{site}/{len(nodes)}"
            nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
            return output

        def number(name: str, value: float | np.ndarray) -> str:
            return self.constant(f"{site}/{name}", np.asarray(value, np.float32))

        if row.dynamic:
            within = [at for at, n in enumerate(row.block) if at and n == row.shape[at]]
            axes = self.constant(f"{site}/axes", np.array(within, np.int64))
            largest = made("ReduceMax", made("Abs", x), axes, keepdims=1)
            scale = made("Div", largest, number("largest", fmt.largest))
            scale = made("Max", scale, number("least", _SMALLEST_NORMAL))
        else:
            assert amax is not None
            # Blocks of several values along an axis of several blocks cannot be broadcast.
            along = [n if cells > 1 else 1 for n, cells in zip(row.block, row.grid, strict=True)]
            scale = number("scale", expand(scale_of(amax, fmt), tuple(along)))
        value = made("Div", x, scale)
        bounds = number("smallest", fmt.smallest), number("most", fmt.largest)
        if fmt.integer:
            value = made("Clip", made("Round", value), *bounds)
        else:
            value = made("Cast", made("Clip", value, *bounds), to=TensorProto.FLOAT8E4M3FN)
            value = made("Cast", value, to=TensorProto.FLOAT)
        made("Mul", value, scale, output=y)
        return nodes

    def done(self) -> Rounded:
        found: list[onnx.NodeProto] = []
        for node in self.graph.nodes:
            if node.name in self.gone:
                continue
            found += self.before.get(node.name, ())
            found.append(self.nodes.get(node.name, node))
            found += self.after.get(node.name, ())
        if self.renamed:
            found = [self._named(node) for node in found]
        return Rounded(tuple(found), _WhenRead(self.constants, self.makers), self.sizes)

    def _named(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """The node with the names that tensors have where a batch norm is gone."""
        if self.renamed.keys().isdisjoint([*node.input, *node.output]):
            return node
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        for names in (copied.input, copied.output):
            for at, name in enumerate(names):
                names[at] = self.renamed.get(name, name)
        return copied


def _set(node: onnx.NodeProto, name: str, value: float) -> None:
    kept = [each for each in node.attribute if each.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
