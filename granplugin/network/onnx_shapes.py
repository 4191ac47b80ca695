"""The shapes of a float file's tensors, node by node, with what computes a shape computed.

onnx's own inference gives up where a shape is computed by what it does not evaluate - torch's
exporter writes Mod, Slice and Reshape of the shape of a tensor -, and then knows nothing behind it.
Here what is computed of known shapes is known too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, TypeProto, defs, helper, numpy_helper, shape_inference

from granplugin.graph.read.constants import Evaluator, Refused
from granplugin.graph.read.graph import ReadGraph
from granplugin.graph.read.inferred import infer_types
from granplugin.quant.site import Shape

BATCH = 2
"""The samples of a batch that a file leaves open, as of the example that a torch model runs on: a
1 could be any length."""
_SMALL = 1024
"""A constant of more values says no shape."""
_Types = dict[str, TypeProto]


def infer_shapes(graph: ReadGraph, given: Mapping[str, Shape]) -> dict[str, TypeProto.Tensor]:
    """name -> type, of what can be told; `given` has the shapes of some, such as the inputs'.

    Where the first axis of an input is open and nothing is given, it is BATCH, and so is every axis
    with the same name.
    """
    model = graph.model
    small = {
        name: numpy_helper.from_array(graph.array(name), name)
        for name, tensor in graph.stored.items()
        if math.prod(tensor.dims) <= _SMALL
    }
    stored = {**graph.stored, **small}
    fixed = _fixed(model, stored, given)
    whole = infer_types(fixed, graph.nodes, stored)
    types: _Types = {
        name: helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        for name, tensor in stored.items()
    }
    for value in fixed.graph.input:
        types.setdefault(value.name, value.type)
    values = dict(small)
    evaluator = Evaluator(model.opset_import)
    versions = {opset.domain: opset.version for opset in model.opset_import}
    for node in graph.nodes:
        made = _outputs(node, versions, types, values, model)
        for name in filter(None, node.output):
            held = _best(made.get(name), whole.get(name))
            if name in given:
                held = helper.make_tensor_type_proto(held.tensor_type.elem_type, given[name])
            types[name] = held
        _evaluate(node, types, values, evaluator)
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
    lengths: dict[str, int] = {}
    for value in light.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in given and len(given[value.name]) == len(dims):
            for dim, length in zip(dims, given[value.name], strict=True):
                if dim.dim_param:
                    lengths[dim.dim_param] = length
                elif dim.dim_value not in (0, length):
                    # What is noted of other tensors is of the length that was declared.
                    light.graph.ClearField("value_info")
                    light.graph.ClearField("output")
                dim.dim_value = length
        elif value.name not in stored and dims and dims[0].dim_value < 1:
            if dims[0].dim_param:
                lengths.setdefault(dims[0].dim_param, BATCH)
            dims[0].dim_value = BATCH
    # Exporters note shapes with these names in them.
    for value in (*light.graph.input, *light.graph.value_info, *light.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in lengths:
                dim.dim_value = lengths[dim.dim_param]
    return light


def _outputs(
    node: onnx.NodeProto,
    versions: Mapping[str, int],
    types: Mapping[str, TypeProto],
    values: Mapping[str, TensorProto],
    model: onnx.ModelProto,
) -> Mapping[str, TypeProto]:
    """The types of a node's outputs; nothing of those that onnx does not know or that do not fit."""
    schema = _schema(node.op_type, versions.get(node.domain, 0), node.domain)
    if schema is None or any(a.HasField("g") or a.graphs for a in node.attribute):
        return {}
    read = {name: types[name] for name in node.input if name in types}
    known = {name: values[name] for name in node.input if name in values}
    try:
        return shape_inference.infer_node_outputs(
            schema, node, read, known, opset_imports=[*model.opset_import]
        )
    except (shape_inference.InferenceError, RuntimeError, ValueError, KeyError):
        return {}


def _best(here: TypeProto | None, whole: TypeProto.Tensor | None) -> TypeProto:
    """What is known of a tensor from its node, and from the whole graph where that tells more."""
    told = TypeProto()
    if here is not None:
        told.CopyFrom(here)
    if whole is not None and (here is None or here.HasField("tensor_type")):
        mine = told.tensor_type
        if not mine.elem_type:
            mine.elem_type = whole.elem_type
        if not whole.HasField("shape"):
            return told
        if not mine.HasField("shape"):
            mine.shape.CopyFrom(whole.shape)
        elif len(mine.shape.dim) == len(whole.shape.dim):
            for dim, other in zip(mine.shape.dim, whole.shape.dim, strict=True):
                if not dim.HasField("dim_value"):
                    dim.CopyFrom(other)
    return told


def _evaluate(
    node: onnx.NodeProto,
    types: Mapping[str, TypeProto],
    values: dict[str, TensorProto],
    evaluator: Evaluator,
) -> None:
    """Note the values of a node's outputs, where they are few and of known ones."""
    made: Mapping[str, np.ndarray] | None = None
    if node.op_type in ("Shape", "Size") and node.input[0] in types:
        shape = _closed(types[node.input[0]])
        if shape is None:
            return
        if node.op_type == "Shape":
            bounds = {a.name: a.i for a in node.attribute}
            held = np.array(shape[bounds.get("start", 0) : bounds.get("end")], np.int64)
        else:
            held = np.array(math.prod(shape), np.int64)
        made = {node.output[0]: held}
    elif node.input and all(name in values for name in node.input if name):
        outputs = [types.get(name) for name in node.output if name]
        sizes = [None if kind is None else _closed(kind) for kind in outputs]
        if any(size is None or math.prod(size) > _SMALL for size in sizes):
            return
        try:
            made = evaluator.run(
                node, {name: numpy_helper.to_array(values[name]) for name in node.input if name}
            )
        except (Refused, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
            return  # of these lengths there is no such result
    for name, array in (made or {}).items():
        if array.size <= _SMALL:
            values[name] = numpy_helper.from_array(array, name)


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
