"""An ONNX graph as it is read: what leads where, what is constant, what multiplies.

The one model of a file that verification, the audit and the engines are built on. It reads with
onnx alone: the files are written with onnx_ir, and the fault of a library that does both would not
be seen. Chains are followed without recursion, and every look-up is by name.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, TypeProto, numpy_helper

from granplugin.errors import ModelError
from granplugin.graph.read.constants import Evaluator, Refused, is_random, stored_in
from granplugin.graph.read.inferred import infer_types
from granplugin.graph.read.loading import name_of, read_model, reading, subgraphs
from granplugin.quant.layers import ONNX_PRODUCTS
from granplugin.quant.site import Shape

BIAS = 2
"""The operand of a product that is added to it."""
# What may stand behind a product and still be of it.
_EPILOGUE = ("BatchNormalization", "Identity", "Cast", "Add", "Mul", "Reshape")
_DOMAINS = ("", "ai.onnx", "com.microsoft", "trt")
PRECISIONS = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}


Infer = Callable[["ReadGraph"], dict[str, TypeProto.Tensor]]
"""Tells the types of a graph's tensors, as far as it can."""


@dataclass(frozen=True)
class Product:
    """A node that multiplies; `weight` is its second operand where that is constant, and `values`
    counts the numbers in it, None where there is none or the count is not told."""

    node: onnx.NodeProto
    weight: str | None
    values: int | None


def quantizes(node: onnx.NodeProto | None) -> bool:
    known = ("QuantizeLinear", "DynamicQuantize", "TRT_BlockQuantize")
    return node is not None and node.op_type.endswith(known) and node.domain in _DOMAINS


def dequantizes(node: onnx.NodeProto | None) -> bool:
    if node is None or node.domain not in _DOMAINS:
        return False
    return bool(node.op_type.endswith(("DequantizeLinear", "TRT_BlockDequantize")))


def scope_of(node: onnx.NodeProto) -> str:
    """The module that a node of our own files is of."""
    return str(node.name.rpartition("/")[0])


def layer_of(node: onnx.NodeProto) -> str:
    """The layer that a product is of: in our own files its module, else itself."""
    return scope_of(node) or str(node.name)


def read(path: Path) -> ReadGraph:
    """The graph of a file. Raises ModelError."""
    return read_graph(read_model(path), path)


def read_graph(model: onnx.ModelProto, path: Path, infer: Infer | None = None) -> ReadGraph:
    """The graph of a model, as from `load`; `infer` tells its tensors' types where onnx's own
    inference is not to. Raises ModelError."""
    with reading(path):
        return ReadGraph(model, path, infer=infer)


class ReadGraph:
    """`nodes` stand in an order of computation, the file's own where it is one; those that only
    hold a number are none: it is `stored`, as an initializer is.

    `producer` is the node that gives a tensor, `uses` the nodes that read it, and as which of their
    inputs. `constant` are the tensors that depend on nothing but what is stored, `fixed` also those
    that depend on an input's shape. Raises ModelError for what is no graph: tensors that nothing
    gives, or two nodes, or that are computed from themselves.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        path: Path,
        nodes: Sequence[onnx.NodeProto] | None = None,
        infer: Infer | None = None,
    ) -> None:
        """`nodes` stand in for those of the model, `infer` for onnx's inference."""
        graph = model.graph
        self.model, self.path = model, path
        self.outputs = dict.fromkeys(value.name for value in graph.output)
        self.stored: dict[str, TensorProto] = {}
        for tensor in graph.initializer:
            self._hold(tensor.name, tensor)
        computing = []
        for node in graph.node if nodes is None else nodes:
            if node.op_type == "Constant" and node.domain in _DOMAINS:
                with reading(path, node):
                    (name,) = node.output
                    self._hold(name, stored_in(node))
            else:
                computing.append(node)
        versions = {opset.domain: opset.version for opset in model.opset_import}
        self.opset = max(versions.get("", 0), versions.get("ai.onnx", 0)) or 1
        self.producer: dict[str, onnx.NodeProto] = {}
        for node in computing:
            self._check_arity(node, versions)
            for name in filter(None, node.output):
                if name in self.producer or name in self.stored:
                    raise self._damaged(node, f"gives {name!r}, which is given already")
                self.producer[name] = node
        self.nodes = self._in_order(computing)
        self._whole = self.nodes if nodes is None else graph.node
        self._infer = infer
        self.at = {node.name: at for at, node in enumerate(self.nodes)}
        self.named = {node.name: node for node in self.nodes}
        self.uses: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        self.constant, self.fixed = {*self.stored, ""}, {*self.stored, ""}
        for node in self.nodes:
            for index, name in enumerate(node.input):
                self.uses.setdefault(name, []).append((node, index))
            read = reads(node)
            if not is_random(node):
                if self.constant.issuperset(read):
                    self.constant.update(node.output)
                # A shape says nothing of the values.
                if node.op_type in ("Shape", "Size") or self.fixed.issuperset(read):
                    self.fixed.update(node.output)
        self._flow()
        self._values: dict[str, np.ndarray | None] = {}
        self.refused: dict[str, str] = {}
        """A constant that is not computed -> why: it loops, or is too large."""
        self._evaluator = Evaluator(model.opset_import)

    def _hold(self, name: str, tensor: TensorProto) -> None:
        if name in self.stored:
            raise ModelError(f"{self.path}: cannot be read: constant {name!r} is there twice")
        if min(tensor.dims, default=0) < 0:
            raise ModelError(
                f"{self.path}: cannot be read: constant {name!r} has a negative length"
            )
        self.stored[name] = tensor

    def _check_arity(self, node: onnx.NodeProto, versions: Mapping[str, int]) -> None:
        schema = _schema(node.op_type, versions.get(node.domain, 1), node.domain)
        if schema is not None:
            for held, least, what in (
                (node.input, schema.min_input, "inputs"),
                (node.output, schema.min_output, "outputs"),
            ):
                if len(held) < least:
                    raise self._damaged(
                        node, f"has {len(held)} {what}, and {node.op_type} needs {least}"
                    )

    def _in_order(self, nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
        given = {value.name for value in self.model.graph.input} | {*self.stored, ""}
        given.update(tensor.values.name for tensor in self.model.graph.sparse_initializer)
        waiting: dict[str, list[int]] = defaultdict(list)
        missing = []
        for at, node in enumerate(nodes):
            unknown = reads(node) - given
            missing.append(len(unknown))
            for name in unknown:
                if name not in self.producer:
                    raise self._damaged(node, f"reads {name!r}, which nothing gives")
                waiting[name].append(at)
        ready = [at for at, count in enumerate(missing) if not count]
        ordered = []
        while ready:
            at = heapq.heappop(ready)
            ordered.append(nodes[at])
            for reader in (reader for name in nodes[at].output for reader in waiting[name]):
                missing[reader] -= 1
                if not missing[reader]:
                    heapq.heappush(ready, reader)
        if len(ordered) < len(nodes):
            left = next(node for node, count in zip(nodes, missing, strict=True) if count)
            raise self._damaged(left, "is computed from its own result")
        return ordered

    def _flow(self) -> None:
        """Which product each tensor is of, and which tensors are scales of run time."""
        self.of_product: dict[str, str] = {}
        """A tensor -> the product that it is of, but for a batch norm or bias behind it."""
        self.run_time_scales: set[str] = set()
        """An input's scales of run time, by which products are multiplied, in our own files."""
        for node in self.nodes:
            if node.op_type in ONNX_PRODUCTS:
                self.of_product.update(dict.fromkeys(filter(None, node.output), node.name))
            elif (node.op_type == "Max" and scope_of(node).endswith(".input")) or (
                node.op_type == "Cast" and self.run_time_scales.issuperset(node.input)
            ):
                self.run_time_scales.update(node.output)
            elif node.op_type in _EPILOGUE:
                given = [
                    name
                    for name in node.input
                    if name not in self.constant and name not in self.run_time_scales
                ]
                if len(given) == 1 and given[0] in self.of_product:
                    product = self.of_product[given[0]]
                    self.of_product.update(dict.fromkeys(filter(None, node.output), product))

    def _damaged(self, node: onnx.NodeProto, why: str) -> ModelError:
        return ModelError(f"{self.path}: cannot be read: node {name_of(node)!r} {why}")

    @property
    def qdq_axis(self) -> int:
        """The axis of scales where a node does not say it. Before opset 13 there is one scale, and
        TensorRT takes several for those of output channels (onnx-tensorrt)."""
        return 1 if self.opset >= 13 else 0

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that read a tensor, once for each input."""
        return [node for node, _ in self.uses.get(name, ())]

    @cached_property
    def products(self) -> tuple[Product, ...]:
        """The nodes that multiply two operands, in order."""
        found = []
        for node in self.nodes:
            if node.op_type in ONNX_PRODUCTS and len(node.input) > 1:
                weight = node.input[1] if node.input[1] in self.constant else None
                values = None if weight is None else self.count(weight)
                found.append(Product(node, weight, values))
        return tuple(found)

    def count(self, name: str) -> int | None:
        """How many values a tensor has; None where a length is open."""
        shape = closed(self.shape(name))
        return None if shape is None else math.prod(shape)

    def array(self, name: str) -> np.ndarray:
        """What is stored under this name. Raises ModelError where it cannot be read."""
        held = self.stored[name]
        try:
            if held.data_location == TensorProto.EXTERNAL:
                # onnx would keep what it reads in the model.
                held = TensorProto()
                held.CopyFrom(self.stored[name])
            return np.asarray(numpy_helper.to_array(held, str(self.path.parent)))
        except Exception as err:  # other files too: of external data
            told = " ".join(str(err).split())[:200]
            raise ModelError(f"{self.path}: constant {name!r} cannot be read: {told}") from err

    def value(self, name: str) -> np.ndarray | None:
        """What a constant is, computed where it has to be; None where that cannot be told, or is
        `refused`. Raises ModelError for one that cannot be read."""
        if not name or name not in self.constant:
            return None
        waiting = [name]
        while waiting:
            current = waiting[-1]
            if current in self._values:
                waiting.pop()
            elif current in self.stored:
                self._values[current] = self.array(current)
            else:
                node = self.producer[current]
                unknown = [each for each in node.input if each and each not in self._values]
                waiting.extend(unknown)
                if not unknown:
                    self._compute(node)
        return self._values[name]

    def _compute(self, node: onnx.NodeProto) -> None:
        read = {name: self._values[name] for name in node.input if name}
        why = next((self.refused[name] for name in read if name in self.refused), None)
        made = None
        feeds = {name: array for name, array in read.items() if array is not None}
        if len(feeds) == len(read):
            with reading(self.path, node):
                try:
                    made = self._evaluator.run(node, feeds)
                except Refused as err:
                    why = f"node {node.name!r} {err}"
        self._values |= dict.fromkeys(node.output) if made is None else made
        if why is not None:
            self.refused |= dict.fromkeys(node.output, why)

    @cached_property
    def _types(self) -> dict[str, TypeProto.Tensor]:
        if self._infer is not None:
            return self._infer(self)
        return infer_types(self.model, self._whole, self.stored)

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """A tensor's lengths, None for one that is open; None where nothing is known."""
        if name in self.stored:
            return tuple(self.stored[name].dims)
        if name in self._types and self._types[name].HasField("shape"):
            dims = self._types[name].shape.dim
            # Some write -1 for a length that is open.
            known = (d.HasField("dim_value") and d.dim_value >= 0 for d in dims)
            return tuple(d.dim_value if told else None for d, told in zip(dims, known, strict=True))
        if name in self.constant and (held := self.value(name)) is not None:
            return held.shape
        return None

    def element_type(self, name: str) -> int:
        """Of TensorProto; 0 where it is not known."""
        if name in self.stored:
            return int(self.stored[name].data_type)
        return self._types[name].elem_type if name in self._types else 0

    @cached_property
    def precision(self) -> str:
        """Of what is not quantized: that of the weights and biases, else of the inputs."""
        scales = {
            name
            for node in self.nodes
            if dequantizes(node) or quantizes(node)
            for name in node.input[1:]
        }
        counts: Counter[str] = Counter()
        for name, tensor in self.stored.items():
            several = math.prod(tensor.dims) > 1  # a lone number may be a scale that is computed
            if tensor.data_type in PRECISIONS and several and name not in scales:
                counts[PRECISIONS[tensor.data_type]] += math.prod(tensor.dims)
        for value in self.model.graph.input:
            counts[PRECISIONS.get(value.type.tensor_type.elem_type, "fp32")] += 1
        return counts.most_common(1)[0][0] if counts else "fp32"


def closed(shape: tuple[int | None, ...] | None) -> Shape | None:
    """The shape, where it is known and no length is open."""
    lengths = [length for length in shape or () if length is not None]
    return None if shape is None or len(lengths) < len(shape) else tuple(lengths)


@cache
def _schema(op_type: str, version: int, domain: str) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None  # another library's operator


def reads(node: onnx.NodeProto) -> set[str]:
    """The tensors a node depends on, those that only its subgraphs read included."""
    read: set[str] = set(node.input)
    inside: set[str] = set()
    for graph in subgraphs([node]):
        inside.update(value.name for value in graph.input)
        inside.update(tensor.name for tensor in graph.initializer)
        for each in graph.node:
            inside.update(each.output)
            read.update(each.input)
        read.update(value.name for value in graph.output)
    return read - inside
