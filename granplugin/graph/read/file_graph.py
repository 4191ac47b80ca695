"""An ONNX file as one finds it: what leads where, and its Q/DQ pairs.

Nothing here comes from the code that writes. Where a site is in a file follows from the nodes'
names, which begin with their module, and from the data flow.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from granplugin.errors import Unhonoured
from granplugin.graph.names import CASTS
from granplugin.graph.read.graph import (
    ReadGraph,
    dequantizes,
    quantizes,
    scope_of,
)
from granplugin.graph.read.loading import read_model, reading
from granplugin.graph.read.pairs import Qdq, qdq
from granplugin.graph.read.residual import residual_add
from granplugin.planning.rows import QuantizedRow
from granplugin.quant.layers import LOOKUP, ONNX_PRODUCTS
from granplugin.quant.site import Shape

E8M0_OPERATOR = "TRT_MXFP8DequantizeLinear"


@dataclass(frozen=True)
class Pair:
    """One QuantizeLinear and DequantizeLinear, or a stored weight and its DequantizeLinear.

    `source` and `result` are the float tensors before and after it, `low` what it says of the
    latter's type (0: that of the scale); `held` reads a weight's numbers; `flat` is the shape of one
    sample between the Reshapes around it, and `sample` the shape after them, where it has them.
    """

    name: str
    source: str
    result: str
    held: Callable[[], np.ndarray] | None
    scale: np.ndarray
    zero: np.ndarray
    axis: int
    block_size: int
    low: int
    flat: Shape | None
    sample: Shape | None


class FileGraph(ReadGraph):
    """One of our own files with its Q/DQ pairs. Raises Unhonoured for Q/DQ that are no pairs.

    The casts between float32 and a lower precision are looked through: who reads a cast tensor
    reads the tensor.
    """

    def __init__(self, model: onnx.ModelProto, path: Path) -> None:
        casts = {
            node.output[0]: node.input[0]
            for node in model.graph.node
            if node.op_type == "Cast" and scope_of(node) == CASTS
        }
        self.raised = {_before(name, casts): cast for cast, name in casts.items()}
        """A tensor -> what a cast made of it, which is what arithmetic in float32 reads."""
        nodes = [_past(node, casts) for node in model.graph.node if node.output[0] not in casts]
        super().__init__(model, path, nodes)
        self.outputs = dict.fromkeys(_before(v.name, casts) for v in model.graph.output)
        self.scopes: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            self.scopes[scope_of(node)].append(node)
        self.pairs = [self._pair(pair) for pair in qdq(self)]
        for node in filter(quantizes, self.nodes):
            if list(map(dequantizes, self.readers(node.output[0]))) != [True]:
                raise Unhonoured(f"{node.name}: is not followed by one DequantizeLinear")
        self.by_result = {pair.result: pair for pair in self.pairs}
        self.pooled: set[str] = set()
        """Max pools of what was rounded with one scale: theirs are the same numbers, rounded
        behind them."""
        for node in self.nodes:
            pair = self.by_result.get(node.input[0]) if node.op_type == "MaxPool" else None
            if pair is not None and not pair.scale.shape and node.output[0] not in self.outputs:
                self.pooled.add(node.name)
                self.by_result[node.output[0]] = pair
        self.by_source: dict[str, list[Pair]] = defaultdict(list)
        for pair in self.pairs:
            self.by_source[pair.source].append(pair)

    def rounded_for(self, result: str) -> list[onnx.NodeProto]:
        """The nodes that read what a pair rounds, and such pools with their own readers."""
        found = []
        for node in self.readers(result):
            found += [node, *(self.rounded_for(node.output[0]) if node.name in self.pooled else [])]
        return found

    def _pair(self, pair: Qdq) -> Pair:
        dq, q, source, result = pair.dq, pair.q, pair.source, pair.result
        if dq.op_type == E8M0_OPERATOR:
            return self._own(pair)
        if len(dq.input) != 3 or not all(name in self.stored for name in dq.input[1:]):
            raise Unhonoured(f"{dq.name}: its scale and zero point are not constants")
        if q is None and source not in self.stored:
            raise Unhonoured(f"{dq.name}: dequantizes an input of the model")
        attributes = _ints(dq)
        low = attributes.pop("output_dtype", 0)
        if q is not None and (list(q.input[1:]) != list(dq.input[1:]) or _ints(q) != attributes):
            raise Unhonoured(f"{dq.name}: does not undo {q.name}")
        flat = sample = None
        before, after = self.producer.get(source), self.readers(result)
        # A Reshape on either side, to a constant shape with only the batch left open.
        around = [before, *after] if q is not None else []
        if (
            before is not None
            and q is not None
            and [n and n.op_type for n in around] == ["Reshape"] * 2
            and scope_of(before) == scope_of(q)
        ):
            (open1, *flat), (open2, *sample) = (
                self.array(n.input[1]).tolist() for n in (before, *after)
            )
            if (open1, open2) != (-1, -1) or result in self.outputs:
                raise Unhonoured(f"{q.name}: the Reshapes around it are not each other's")
            source, result = before.input[0], after[0].output[0]
        return Pair(
            name=dq.name,
            source=source,
            result=result,
            held=partial(self.array, source) if q is None else None,
            scale=self.array(dq.input[1]),
            zero=self._signed(self.array(dq.input[2]), q),
            axis=attributes.get("axis", 1),
            block_size=attributes.get("block_size", 0),
            low=low,
            flat=None if flat is None else tuple(flat),
            sample=None if sample is None else tuple(sample),
        )

    def _signed(self, zero: np.ndarray, q: onnx.NodeProto | None) -> np.ndarray:
        """The zero point as int8 has it: numbers of an activation that are stored as uint8 are
        those of int8 where they are 128 higher, or where none is below 0 or above 127 scales."""
        if q is None or zero.dtype != np.uint8:
            return zero
        if (zero == 128).all() or (not zero.any() and self._within(q.input[0], q.input[1])):
            return np.zeros(zero.shape, np.int8)
        return zero

    def _within(self, name: str, scale: str) -> bool:
        """Whether a tensor is clipped to what rounds to 0 .. 127 scales."""
        clip = self.producer.get(name)
        if clip is None or clip.op_type != "Clip" or len(clip.input) < 3:
            return False
        if not all(each in self.stored for each in clip.input[1:]):
            return False
        least, most = (float(self.array(each)) for each in clip.input[1:])
        highest: float = np.rint(most / self.array(scale).astype(np.float64)).min()
        return least >= 0 and highest <= 127

    def _own(self, pair: Qdq) -> Pair:
        """A weight that is dequantized by TensorRT's own operator, in the words of ONNX: a byte e
        is the scale 2^(e - 127), and there is no zero point."""
        dq = pair.dq
        if len(dq.input) != 2 or not all(name in self.stored for name in dq.input):
            raise Unhonoured(f"{dq.name}: does not dequantize constants")
        stored, exponents = (self.array(name) for name in dq.input)
        attributes = _ints(dq)
        if exponents.dtype != np.uint8:
            raise Unhonoured(f"{dq.name}: its scales are {exponents.dtype}, not uint8")
        scale = np.exp2(exponents.astype(np.float32) - 127)
        lone = scale.size == 1
        scale = scale.reshape(()) if lone else scale
        return Pair(
            name=dq.name,
            source=pair.source,
            result=pair.result,
            held=lambda: stored,
            scale=scale,
            zero=np.zeros(scale.shape, stored.dtype),
            axis=attributes.get("axis", 1),
            block_size=0 if lone else attributes["block_size"],
            low=attributes["output_dtype"],
            flat=None,
            sample=None,
        )


def open_file(path: Path) -> FileGraph:
    """One of our own files. Raises ModelError for one that is damaged, Unhonoured."""
    model = read_model(path)
    with reading(path):
        return FileGraph(model, path)


def _past(node: onnx.NodeProto, casts: Mapping[str, str]) -> onnx.NodeProto:
    if casts.keys().isdisjoint(node.input):
        return node
    found = onnx.NodeProto()
    found.CopyFrom(node)
    found.input[:] = [_before(name, casts) for name in node.input]
    return found


def _before(name: str, casts: Mapping[str, str]) -> str:
    while name in casts:
        name = casts[name]
    return name


def _ints(node: onnx.NodeProto) -> dict[str, int]:
    return {attribute.name: attribute.i for attribute in node.attribute}


def tensors_of(graph: FileGraph, row: QuantizedRow) -> list[str]:
    """The tensors the row is about: what its layer's products take as their weight, what its nodes
    read from outside, or what others read of it; one or more for each call.

    Raises Unhonoured where an output is read by more than the one node that quantizes it.
    """
    nodes = graph.scopes.get(row.layer, [])
    own = {name for node in nodes for name in node.output}
    if row.operand == "weight":
        held = [(n, _weight_at(n)) for n in nodes]
        return [_origin(graph, n.input[at]) for n, at in held if at is not None]
    if row.operand == "input":
        fixed = graph.stored.keys() | {p.result for p in graph.pairs if p.held is not None}
        products = [n for n in nodes if n.op_type in ONNX_PRODUCTS]
        read = {_before_pad(graph, n.input[0]) for n in products or nodes if n.input}
        return sorted(read - own - fixed)
    if row.operand == "other":
        products = [n for n in nodes if n.op_type in ONNX_PRODUCTS]
        return sorted({n.input[1] for n in products} - own - graph.constant)
    if row.operand == "skip":
        return [name for _, name in residual_adds(graph, row.layer)]
    found = []
    for name in (name for node in nodes for name in node.output):
        outside = [n for n in graph.readers(name) if not own.intersection(n.output)]
        if outside or name in graph.outputs:
            if len(outside) != 1 or name in graph.outputs:
                raise not_quantized(row)
            found.append(name)
    return found


def _before_pad(graph: FileGraph, name: str) -> str:
    """A convolution that pads in a way of its own (reflect, circular) does so behind its input's
    Q/DQ: what is padded are values that were rounded."""
    node = graph.producer.get(name)
    return node.input[0] if node is not None and node.op_type == "Pad" else name


def _weight_at(node: onnx.NodeProto) -> int | None:
    """Which input of a node is a layer's weight."""
    return {LOOKUP: 0}.get(node.op_type, 1 if node.op_type in ONNX_PRODUCTS else None)


def residual_adds(graph: FileGraph, layer: str) -> list[tuple[onnx.NodeProto, str]]:
    """The residual add that each of the layer's products leads to, and its other operand."""
    products = [node for node in graph.scopes.get(layer, []) if node.op_type in ONNX_PRODUCTS]
    return [add for node in products if (add := residual_add(graph, node))]


def pairs_of(graph: FileGraph, row: QuantizedRow) -> list[Pair]:
    """The pairs through which the row's layer reads or writes this tensor: one for each call."""
    found: dict[str, Pair] = {}
    for name in tensors_of(graph, row):
        if row.operand == "output":
            pairs = graph.by_source[name]
        else:
            pairs = [graph.by_result[name]] if name in graph.by_result else []
            pairs = [pair for pair in pairs if (pair.held is not None) == (row.operand == "weight")]
        if len(pairs) != 1:
            raise not_quantized(row)
        found[pairs[0].name] = pairs[0]
    if not found:
        raise not_quantized(row)
    return list(found.values())


def not_quantized(row: QuantizedRow) -> Unhonoured:
    return Unhonoured(f"{row.site}: should be {row.format}, and is not quantized in the file")


def _origin(graph: FileGraph, name: str) -> str:
    """A linear layer's weight is transposed on its way to MatMul."""
    node = graph.producer.get(name)
    return node.input[0] if node is not None and node.op_type == "Transpose" else name
