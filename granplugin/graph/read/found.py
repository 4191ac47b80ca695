"""A Q/DQ ONNX of any origin, read as layers and rows: what is quantized, by the data flow alone.

Every DequantizeLinear is followed through what only renames or reorders values (Transpose, Reshape,
Cast ...) to the nodes that compute with it. The scales' layout is carried along, so that
modelopt's Reshape around Q/DQ, a weight behind a Transpose, and float weights with Q and DQ all
come out as the granularity they are.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, inliner, numpy_helper, reference, shape_inference

from granplugin.errors import ModelError
from granplugin.graph.read.wiring import PRODUCTS, run_time_scale
from granplugin.planning.plan import Row
from granplugin.quant.granularity import Shape, grid
from granplugin.quant.layers import Layer

_THROUGH = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast")
# What may stand behind a product and still be of it.
_EPILOGUE = ("BatchNormalization", "Identity", "Cast", "Add", "Mul", "Reshape")
_DOMAINS = ("", "ai.onnx", "com.microsoft", "trt")
_FORMATS = {
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.INT16: "int16",
    TensorProto.UINT16: "uint16",
    TensorProto.INT4: "int4",
    TensorProto.UINT4: "uint4",
    TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.FLOAT8E5M2: "fp8_e5m2",
    TensorProto.FLOAT4E2M1: "nvfp4",
}
# TensorRT's own operators have the format in their name, and some a block size of their own.
_CUSTOM = {"TRT_FP8": "fp8", "TRT_INT4": "int4", "TRT_MXFP8": "mxfp8", "TRT_FP4": "nvfp4"}
_BLOCKS = {"mxfp8": 32, "nvfp4": 16}
_GRAPHS = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
# What the capability tables know of layers without weights.
_PASSIVE = ("MaxPool", "AveragePool", "GlobalAveragePool", "LayerNormalization")


@dataclass(frozen=True)
class Operand:
    """One quantized operand of one node: its row (layer is the node's name, `where` file and
    node), and the names of the QuantizeLinear - None where the file holds the numbers - and
    DequantizeLinear in front of it.

    `source` is the float tensor that is quantized, `result` what the node reads. `scale` is None
    where it is computed at run time; `one_d` tells a lone scale that is a vector; `misfit` says how
    scales do not fit.
    """

    row: Row
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
        return self.op_type in PRODUCTS


@dataclass(frozen=True)
class Found:
    """What a file quantizes. `graph` is the precision of the rest: fp32, fp16 or bf16; `layers` are
    those that a capability table knows; `hidden` counts Q/DQ inside If, Loop and Scan, which are
    not followed."""

    network: Network
    operands: tuple[Operand, ...]
    layers: tuple[Layer, ...]
    graph: str
    hidden: int

    @property
    def products(self) -> dict[str, int | None]:
        """Each node that multiplies, with the number of its weight's values, None without one."""
        found: dict[str, int | None] = {}
        for node in self.network.model.graph.node:
            if node.op_type in PRODUCTS and len(node.input) > 1:
                shape = self.network.shape(node.input[1])
                weight = node.input[1] in self.network.constant and shape and None not in shape
                found[node.name] = math.prod(shape) if weight else None
        return found

    def site(self, operand: Operand) -> str:
        """What the operand's site is called in a plan of ours, whose nodes are named after modules:
        a sum's skip input is a site of the layer whose output it is added to."""
        node = operand.node
        if operand.row.role == "skip":
            other = [n for n in self.network.node(node).input if n != operand.result]
            node = next(filter(None, map(self.network.product, other)), node)
        return f"{node.rpartition('/')[0]}.{operand.row.role}"

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(operand.row for operand in self.operands)


def load(path: Path) -> onnx.ModelProto:
    """A model with its functions inlined and a unique name for every node: an unnamed one is
    called as TensorRT calls it. Weights in other files stay there. Raises ModelError."""
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as err:
        why = err.strerror if isinstance(err, OSError) else "it is not ONNX"
        raise ModelError(f"{path}: cannot be read: {why}") from err
    if not model.graph.node:
        raise ModelError(f"{path}: cannot be read: it holds no nodes, so it is not an ONNX model")
    if model.functions:
        model = inliner.inline_local_functions(model)
    taken: set[str] = set()
    for node in model.graph.node:
        base = node.name or f"node_of_{next(filter(None, node.output), node.op_type)}"
        name, count = base, 0
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        taken.add(name)
        node.name = name
    return model


def find(model: onnx.ModelProto, path: Path) -> Found:
    """What `model`, as from `load`, quantizes."""
    network = Network(model, path)
    operands, layers = [], {}
    for node in model.graph.node:
        if network.dequantizes(node):
            for operand, layer in _operands(network, node):
                operands.append(operand)
                if layer is not None:
                    layers.setdefault(layer.name, layer)
    order = {node.name: number for number, node in enumerate(model.graph.node)}
    operands.sort(key=lambda o: (order[o.node], o.row.role != "weight", o.row.role))
    hidden = sum(
        n.op_type.endswith("DequantizeLinear") for n in _inside(model.graph.node) if n is not None
    )
    return Found(network, tuple(operands), tuple(layers.values()), network.precision, hidden)


class Network:
    """What leads where in a graph, which of it is constant, and the shapes that can be inferred."""

    def __init__(self, model: onnx.ModelProto, path: Path) -> None:
        graph = model.graph
        self.model, self.path = model, path
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.outputs = {value.name for value in graph.output}
        self.producer = {name: node for node in graph.node for name in node.output if name}
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
        self.constant = {*self.initializers, ""}
        for node in graph.node:
            for index, name in enumerate(node.input):
                self.readers[name].append((node, index))
            if self.constant.issuperset(node.input):
                self.constant.update(node.output)
        self.held: dict[str, np.ndarray | None] = {}

    def node(self, name: str) -> onnx.NodeProto:
        return self._nodes[name]

    @cached_property
    def _nodes(self) -> dict[str, onnx.NodeProto]:
        return {node.name: node for node in self.model.graph.node}

    def product(self, name: str) -> str | None:
        """The product that a tensor is of, but for a batch norm or bias behind it."""
        node = self.producer.get(name)
        while node is not None and node.op_type not in PRODUCTS:
            given = [
                each
                for each in node.input
                if each not in self.constant and not run_time_scale(self.producer, each)
            ]
            if node.op_type not in _EPILOGUE or len(given) != 1:
                return None
            node = self.producer.get(given[0])
        return None if node is None else node.name

    @staticmethod
    def dequantizes(node: onnx.NodeProto) -> bool:
        known = node.op_type.endswith("DequantizeLinear") or node.op_type == "TRT_BlockDequantize"
        return known and node.domain in _DOMAINS

    @staticmethod
    def quantizes(node: onnx.NodeProto | None) -> bool:
        known = ("QuantizeLinear", "DynamicQuantize", "TRT_BlockQuantize")
        return node is not None and node.op_type.endswith(known) and node.domain in _DOMAINS

    def value(self, name: str) -> np.ndarray | None:
        """What a constant holds, None where that cannot be told."""
        if name not in self.held:
            self.held[name] = self._value(name)
        return self.held[name]

    def _value(self, name: str) -> np.ndarray | None:
        if name in self.initializers:
            try:
                return numpy_helper.to_array(self.initializers[name], str(self.path.parent))
            except (OSError, ValueError, onnx.checker.ValidationError) as err:
                told = " ".join(str(err).split())[:200]
                raise ModelError(f"{self.path}: constant {name!r} cannot be read: {told}") from err
        node = self.producer.get(name)
        if node is None or name not in self.constant:
            return None
        feeds = {each: self.value(each) for each in node.input if each}
        if any(array is None for array in feeds.values()):
            return None
        try:
            found = reference.ReferenceEvaluator(node).run(None, feeds)
        except (NotImplementedError, RuntimeError, TypeError, ValueError):
            return None  # an operator that onnx itself does not compute
        return np.asarray(found[list(node.output).index(name)])

    @cached_property
    def _types(self) -> dict[str, onnx.TypeProto.Tensor]:
        """name -> inferred type, on a copy without weights and without TensorRT's operators."""
        light = onnx.ModelProto()
        light.CopyFrom(self.model)
        for tensor in light.graph.initializer:
            if tensor.HasField("raw_data") and len(tensor.raw_data) > 1024:
                tensor.ClearField("raw_data")
        for node in light.graph.node:
            if node.domain == "trt":
                node.op_type, node.domain = "Identity", ""
                del node.input[1:], node.output[1:], node.attribute[:]
        try:
            inferred = shape_inference.infer_shapes(light)
        except (shape_inference.InferenceError, RuntimeError, ValueError):
            inferred = light
        graph = inferred.graph
        found = {v.name: v.type.tensor_type for v in (*graph.input, *graph.output)}
        return found | {v.name: v.type.tensor_type for v in graph.value_info}

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        if name in self.initializers:
            return tuple(self.initializers[name].dims)
        if name in self._types and self._types[name].HasField("shape"):
            dims = self._types[name].shape.dim
            return tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
        if name in self.constant and (held := self.value(name)) is not None:
            return held.shape
        return None

    def element_type(self, name: str) -> int:
        """Of TensorProto; 0 where it is not known."""
        if name in self.initializers:
            return self.initializers[name].data_type
        return self._types[name].elem_type if name in self._types else 0

    @cached_property
    def precision(self) -> str:
        """Of what is not quantized: that of the weights and biases, else of the inputs."""
        scales = {
            name
            for node in self.model.graph.node
            if self.dequantizes(node) or self.quantizes(node)
            for name in node.input[1:]
        }
        counts: Counter[str] = Counter()
        for name, tensor in self.initializers.items():
            if tensor.data_type in _GRAPHS and name not in scales:
                counts[_GRAPHS[tensor.data_type]] += math.prod(tensor.dims)
        for value in self.model.graph.input:
            counts[_GRAPHS.get(value.type.tensor_type.elem_type, "fp32")] += 1
        return counts.most_common(1)[0][0] if counts else "fp32"


def _inside(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from attribute.g.node
                yield from _inside(attribute.g.node)


@dataclass(frozen=True)
class _Pair:
    """A DequantizeLinear with what is in front of it; `cells` is how its scales lie: the block of
    values that share one, None where that cannot be told, in a tensor of `shape`."""

    dq: onnx.NodeProto
    q: onnx.NodeProto | None
    format: str
    source: str
    scale: np.ndarray | None
    shape: Shape | None
    block: Shape | None
    misfit: str | None


def _operands(network: Network, dq: onnx.NodeProto) -> Iterator[tuple[Operand, Layer | None]]:
    pair = _pair(network, dq)
    for node, index, path in _users(network, dq.output[0], ()):
        yield _operand(network, pair, node, index, path)


def _users(
    network: Network, name: str, path: tuple[onnx.NodeProto, ...]
) -> Iterator[tuple[onnx.NodeProto, int, tuple[onnx.NodeProto, ...]]]:
    """The nodes that compute with a tensor, and what it goes through on the way."""
    for node, index in network.readers[name]:
        if network.dequantizes(node) or network.quantizes(node):
            continue  # a scale that is itself quantized, or a tensor that is quantized anew
        if node.op_type in _THROUGH and index == 0:
            yield from _users(network, node.output[0], (*path, node))
        else:
            yield node, index, path


def _pair(network: Network, dq: onnx.NodeProto) -> _Pair:
    q = network.producer.get(dq.input[0])
    q = q if network.quantizes(q) else None
    source = dq.input[0] if q is None else q.input[0]
    said = {a.name: helper.get_attribute_value(a) for a in dq.attribute}
    format = _format(network, dq, q)
    scale = network.value(dq.input[1])
    shape = network.shape(source)
    # An open batch counts as one sample, and any other open size as unknown.
    if shape is not None:
        shape = tuple(1 if n is None and i == 0 else n for i, n in enumerate(shape))
        shape = None if None in shape else shape
    size = said.get("block_size", 0) or _BLOCKS.get(format, 0)
    block, misfit = None, None
    if scale is not None and scale.size == 1:
        block = shape
    elif shape is not None:
        axis = said.get("axis", -1 if format in _BLOCKS else 1)
        if "block_shape" in said:
            listed = zip(said["block_shape"], shape, strict=False)
            block = tuple(n if part == -1 else part for part, n in listed)
        elif not -len(shape) <= axis < len(shape):
            misfit = f"axis {axis} is none of the tensor's {len(shape)}"
        elif size:
            axis %= len(shape)
            block = tuple(size if i == axis else 1 for i in range(len(shape)))
        elif scale is not None:
            shape, block, misfit = _along(shape, scale.shape, axis % len(shape))
    return _Pair(dq, q, format, source, scale, shape, block, misfit)


def _along(shape: Shape, scales: Shape, axis: int) -> tuple[Shape, Shape | None, str | None]:
    """The tensor's shape, the block, and what does not fit, of scales along one axis."""
    if len(scales) == len(shape) and not any(n % s for n, s in zip(shape, scales, strict=True)):
        return shape, tuple(n // s for n, s in zip(shape, scales, strict=True)), None
    if axis == 0 and shape[0] == 1:
        shape = (*scales[:1], *shape[1:])  # one for each sample of a batch of that size
    if len(scales) != 1 or shape[axis] != scales[0]:
        return (
            shape,
            None,
            f"scales of shape {list(scales)} do not fit axis {axis} of {list(shape)}",
        )
    return shape, tuple(1 if i == axis else n for i, n in enumerate(shape)), None


def _format(network: Network, dq: onnx.NodeProto, q: onnx.NodeProto | None) -> str:
    for start, format in _CUSTOM.items():
        if dq.op_type.startswith(start) or (q is not None and q.op_type.startswith(start)):
            return format
    kinds = [network.element_type(name) for name in dq.input[2:3]]
    kinds += [network.element_type(dq.input[0])] if q is None else []
    kinds += [a.i for a in (q.attribute if q is not None else ()) if a.name == "output_dtype"]
    kinds += [network.element_type(name) for name in (q.input[2:3] if q is not None else ())]
    # Without a zero point ONNX says uint8, and TensorRT int8.
    return next((_FORMATS.get(kind, "unknown") for kind in kinds if kind), "int8")


def _operand(
    network: Network,
    pair: _Pair,
    node: onnx.NodeProto,
    index: int,
    path: tuple[onnx.NodeProto, ...],
) -> tuple[Operand, Layer | None]:
    weight = node.op_type in PRODUCTS and pair.source in network.constant
    summed = node.op_type == "Add" and network.constant.isdisjoint(node.input)
    role = "weight" if weight else "skip" if summed else "input"
    name = role if index == 0 or role != "input" else f"input {index + 1}"
    shape, block = _through(network, pair, path)
    type_, groups = _type(node, pair.shape)
    if weight and type_ == "Linear" and len(shape) == 2 and not _transposed(node):
        shape, block = shape[::-1], block and block[::-1]
    if type_ == "Linear" and weight and len(shape) != 2:
        type_ = "MatMul"
    layer = _layer(network, node, type_, groups, shape if weight else None)
    channel = layer.channel_axis("weight" if weight else "input") if layer else None
    one = pair.scale is not None and pair.scale.size == 1
    if pair.scale is None:
        said = "run-time scales" if pair.format not in _BLOCKS else _said(role, shape, block, 0)
    elif one:
        said, block = "per_tensor", shape
    elif block is None:
        said, block = pair.misfit or "several, reshaped", (1,) * len(shape)
    else:
        said = _said(role, shape, block, channel)
    row = Row(
        node.name, type_, name, shape, pair.format, said, block or shape, None, None, None, None,
        rule=network.path.name, where=f"{network.path.name}: {node.name}",
    )  # fmt: skip
    kinds = {a.name for a in pair.dq.attribute}
    operand = Operand(
        row,
        node.op_type,
        None if pair.q is None else pair.q.name,
        pair.dq.name,
        pair.source,
        node.input[index],
        pair.scale,
        one_d=one and pair.scale.ndim == 1,
        float32_scale=pair.scale is not None
        and pair.scale.dtype == np.float32
        and "output_dtype" not in kinds,
        misfit=pair.misfit,
    )
    known = layer is not None and pair.scale is not None and pair.misfit is None
    return operand, layer if known or pair.format in _BLOCKS else None


def _through(
    network: Network, pair: _Pair, path: tuple[onnx.NodeProto, ...]
) -> tuple[Shape, Shape | None]:
    """Shape and block of a tensor, as they are behind the nodes of `path`."""
    end = path[-1].output[0] if path else pair.dq.output[0]
    shape, block = pair.shape, pair.block
    if shape is None or block is None:
        seen = network.shape(end) or network.shape(pair.source) or (1,)
        return tuple(n or 1 for n in seen), None
    for node in path:
        if node.op_type in ("Identity", "Cast"):
            continue
        if node.op_type == "Transpose":
            said = [list(a.ints) for a in node.attribute if a.name == "perm"]
            perm = said[0] if said else list(range(len(shape)))[::-1]
            shape = tuple(shape[i] for i in perm)
            block = tuple(block[i] for i in perm)
            continue
        after = network.shape(node.output[0])
        after = tuple(n or 1 for n in after) if after else None
        if after is None or math.prod(after) != math.prod(shape):
            return after or shape, None
        block = _reshaped(shape, block, after)
        shape = after
        if block is None:
            return shape, None
    return shape, block


def _reshaped(shape: Shape, block: Shape, after: Shape) -> Shape | None:
    """The block of the same values in a tensor reshaped from `shape` to `after`, None where they
    are none."""
    if block == shape:
        return after
    cells = grid(shape, block)
    index = np.arange(math.prod(cells), dtype=np.int32).reshape(cells)
    for axis, part in enumerate(block):
        index = np.repeat(index, part, axis)
    index = index.reshape(after)
    found = []
    for axis, length in enumerate(after):
        changes = np.flatnonzero((np.diff(index, axis=axis) != 0).any(
            axis=tuple(i for i in range(len(after)) if i != axis)
        )) + 1  # fmt: skip
        found.append(int(np.gcd.reduce([length, *changes])))
    # Every cell must hold one scale, and every scale one cell.
    first = index[tuple(slice(None, None, part) for part in found)]
    return tuple(found) if first.size == np.unique(index).size else None


def _said(role: str, shape: Shape, block: Shape | None, channel: int | None) -> str:
    """A block in the recipe's words."""
    if block is None:
        return "several, reshaped"
    cells = grid(shape, block)
    varying = [axis for axis, count in enumerate(cells) if count > 1]
    if not varying:
        return "per_tensor"
    if varying == [channel] and block[channel] == 1 and role == "weight":
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
    return ("Linear" if node.op_type in PRODUCTS else node.op_type), 1


def _transposed(node: onnx.NodeProto) -> bool:
    """Whether a Gemm takes its weight as (out, in)."""
    return any(a.name == "transB" and a.i for a in node.attribute)


def _layer(
    network: Network, node: onnx.NodeProto, type_: str, groups: int, weight: Shape | None
) -> Layer | None:
    """The node as a capability table has it, None where no table does."""
    seen = network.shape(node.input[0])
    shape = None if seen is None else (1, *(n or 1 for n in seen[1:]))
    if node.op_type in _PASSIVE:
        return Layer(node.name, type_, input_shape=shape)
    if node.op_type not in PRODUCTS or type_ == "MatMul" or len(node.input) < 2:
        return None
    if node.input[1] not in network.constant:
        return None
    weight = weight or network.shape(node.input[1]) or (1, 1)
    if type_ == "Linear" and shape is None:
        shape = (1, weight[-1]) if node.op_type == "Gemm" else (1, 1, weight[-1])
    depthwise = groups > 1 and node.op_type == "Conv" and weight[1] == 1
    traits = frozenset({"depthwise"} if depthwise else {"grouped"} if groups > 1 else ())
    return Layer(
        node.name, type_, input_shape=shape, weight_shape=weight, groups=groups, traits=traits
    )
