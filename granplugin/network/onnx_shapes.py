"""The shapes of a float file's tensors, node by node, with what computes a shape computed.

onnx's own inference gives up where a shape is computed by what it does not evaluate - torch's
exporter writes Mod, Slice and Reshape of the shape of a tensor -, and then knows nothing behind it.
Here what is computed of known shapes is known too, and which branch of an If they lead to.
"""

from __future__ import annotations

import math
from collections import ChainMap, Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, TypeProto, defs, helper, numpy_helper, shape_inference

from granplugin.graph.read.constants import Evaluator, Refused, stored_in
from granplugin.graph.read.graph import ReadGraph
from granplugin.graph.read.inferred import infer_types
from granplugin.quant.site import Shape

BATCH = 2
"""The samples of a batch that a file leaves open, as of the example that a torch model runs on: a
1 could be any length."""
_SMALL = 1024
"""A constant of more values says no shape."""


def infer_shapes(graph: ReadGraph, given: Mapping[str, Shape]) -> dict[str, TypeProto.Tensor]:
    """name -> type, of what can be told; `given` has the shapes of some, such as the inputs'.

    Where the first axis of an input is open and nothing is given, it is BATCH, and so is every axis
    with the same name.
    """
    small = {
        name: numpy_helper.from_array(graph.array(name), name)
        for name, tensor in graph.stored.items()
        if math.prod(tensor.dims) <= _SMALL
    }
    stored = {**graph.stored, **small}
    fixed = _fixed(graph.model, stored, given)
    types = {
        name: helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        for name, tensor in stored.items()
    }
    for value in fixed.graph.input:
        types.setdefault(value.name, value.type)
    whole = infer_types(fixed, graph.nodes, stored)
    inference = _Inference(graph.model, given, whole, ChainMap(types), ChainMap(small))
    inference.follow(graph.nodes)
    return {name: held.tensor_type for name, held in types.items() if held.HasField("tensor_type")}


def _fixed(
    model: onnx.ModelProto, stored: Mapping[str, TensorProto], given: Mapping[str, Shape]
) -> onnx.ModelProto:
    """The model without nodes and weights, its inputs with the lengths that they have in a pass."""
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.graph.name = model.graph.name
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    light.graph.value_info.extend(model.graph.value_info)
    named: set[tuple[str, int]] = set()
    for value in light.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in given and len(given[value.name]) == len(dims):
            for dim, length in zip(dims, given[value.name], strict=True):
                if dim.dim_param:
                    named.add((dim.dim_param, length))
                elif dim.dim_value not in (0, length):
                    # What is noted of other tensors is of the length that was declared.
                    light.graph.ClearField("value_info")
                    light.graph.ClearField("output")
                dim.dim_value = length
        elif value.name not in stored and dims and dims[0].dim_value < 1:
            if dims[0].dim_param:
                named.add((dims[0].dim_param, BATCH))
            dims[0].dim_value = BATCH
    # Some call every open length '?'.
    several = Counter(name for name, _ in named)
    lengths = {name: length for name, length in named if several[name] == 1 and name != "?"}
    # Exporters note shapes with these names in them.
    for value in (*light.graph.input, *light.graph.value_info, *light.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in lengths:
                dim.dim_value = lengths[dim.dim_param]
    return light


@dataclass(frozen=True, slots=True, eq=False)
class _Inference:
    """One pass over the nodes of a graph or of a body: what is known of tensors is added to `types`
    and `values`. `whole` is what onnx's own inference tells."""

    model: onnx.ModelProto
    given: Mapping[str, Shape]
    whole: Mapping[str, TypeProto.Tensor]
    types: ChainMap[str, TypeProto]
    values: ChainMap[str, TensorProto]

    def follow(self, nodes: Iterable[onnx.NodeProto]) -> None:
        evaluator = Evaluator(self.model.opset_import)
        versions = {opset.domain: opset.version for opset in self.model.opset_import}
        for node in nodes:
            made = self._branch(node) if node.op_type == "If" else self._made(node, versions)
            for name in filter(None, node.output):
                held = _best(made.get(name), self.whole.get(name))
                if name in self.given:
                    held = helper.make_tensor_type_proto(
                        held.tensor_type.elem_type, self.given[name]
                    )
                self.types[name] = held
            self._evaluate(node, evaluator)

    def _made(self, node: onnx.NodeProto, versions: Mapping[str, int]) -> Mapping[str, TypeProto]:
        """The types of a node's outputs; nothing where onnx does not know it or it does not fit."""
        schema = _schema(node.op_type, versions.get(node.domain, 0), node.domain)
        if schema is None or any(a.HasField("g") or a.graphs for a in node.attribute):
            return {}
        read = {name: self.types[name] for name in node.input if name in self.types}
        known = {name: self.values[name] for name in node.input if name in self.values}
        try:
            return shape_inference.infer_node_outputs(
                schema, node, read, known, opset_imports=[*self.model.opset_import]
            )
        except (shape_inference.InferenceError, RuntimeError, ValueError, KeyError):
            return {}

    def _branch(self, node: onnx.NodeProto) -> Mapping[str, TypeProto]:
        """The types of an If's outputs: those of the branch that these shapes lead to, or of both
        where they agree."""
        graphs = {attribute.name: attribute.g for attribute in node.attribute}
        if not {"then_branch", "else_branch"} <= graphs.keys():
            return {}
        chosen = ["then_branch", "else_branch"]
        if node.input[0] in self.values:
            held = numpy_helper.to_array(self.values[node.input[0]])
            chosen = ["then_branch" if held.all() else "else_branch"]
        told: list[list[TypeProto | None]] = []
        for name in chosen:
            body = graphs[name]
            inner = _Inference(self.model, {}, {}, self.types.new_child(), self.values.new_child())
            inner.hold({tensor.name: tensor for tensor in body.initializer})
            inner.follow(body.node)
            told.append([inner.types.get(output.name) for output in body.output])
            if len(chosen) == 1:
                for output, outer in zip(body.output, node.output, strict=False):
                    if outer and output.name in inner.values:
                        self.values[outer] = inner.values[output.name]
        return {
            outer: kinds[0]
            for outer, *kinds in zip(node.output, *told, strict=False)
            if kinds[0] is not None and all(kind == kinds[0] for kind in kinds)
        }

    def hold(self, stored: Mapping[str, TensorProto]) -> None:
        """Constants more."""
        for name, tensor in stored.items():
            self.types[name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
            external = tensor.data_location == TensorProto.EXTERNAL
            if math.prod(tensor.dims) <= _SMALL and not external:
                self.values[name] = tensor

    def _evaluate(self, node: onnx.NodeProto, evaluator: Evaluator) -> None:
        """Note the values of a node's outputs, where they are few and of known ones."""
        made: Mapping[str, np.ndarray] | None = None
        if node.op_type == "Constant":
            self.hold({node.output[0]: stored_in(node)})
        elif node.op_type in ("Shape", "Size") and node.input[0] in self.types:
            shape = _closed(self.types[node.input[0]])
            if shape is None:
                return
            if node.op_type == "Shape":
                bounds = {a.name: a.i for a in node.attribute}
                held = np.array(shape[bounds.get("start", 0) : bounds.get("end")], np.int64)
            else:
                held = np.array(math.prod(shape), np.int64)
            made = {node.output[0]: held}
        elif node.input and all(name in self.values for name in node.input if name):
            kinds = [self.types.get(name) for name in node.output if name]
            sizes = [None if kind is None else _closed(kind) for kind in kinds]
            if any(size is None or math.prod(size) > _SMALL for size in sizes):
                return
            read = {n: numpy_helper.to_array(self.values[n]) for n in node.input if n}
            try:
                made = evaluator.run(node, read)
            except (Refused, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
                return  # of these lengths there is no such result
        for name, array in (made or {}).items():
            if array.size <= _SMALL:
                self.values[name] = numpy_helper.from_array(array, name)


def _best(here: TypeProto | None, whole: TypeProto.Tensor | None) -> TypeProto:
    """What is known of a tensor from its node, and from the whole graph where that tells more."""
    kind = TypeProto()
    if here is not None:
        kind.CopyFrom(here)
    if whole is not None and (here is None or here.HasField("tensor_type")):
        mine = kind.tensor_type
        if not mine.elem_type:
            mine.elem_type = whole.elem_type
        if not whole.HasField("shape"):
            return kind
        if not mine.HasField("shape"):
            mine.shape.CopyFrom(whole.shape)
        elif len(mine.shape.dim) == len(whole.shape.dim):
            for dim, other in zip(mine.shape.dim, whole.shape.dim, strict=True):
                if not dim.HasField("dim_value"):
                    dim.CopyFrom(other)
    return kind


def _closed(kind: TypeProto) -> Shape | None:
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    if not all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in dims):
        return None
    return tuple(dim.dim_value for dim in dims)


@cache
def _schema(op_type: str, version: int, domain: str) -> onnx.defs.OpSchema | None:
    try:
        return defs.get_schema(op_type, version, domain)
    except defs.SchemaError:
        return None
