"""The types and shapes of a graph's tensors, by onnx's own inference and without its weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import onnx
from onnx import TensorProto, TypeProto, shape_inference

_KEPT = 1024
"""Values of a constant that inference may need, such as a Reshape's shape."""


def infer_types(
    model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], stored: Mapping[str, TensorProto]
) -> dict[str, TypeProto.Tensor]:
    """name -> type, of what can be told; `nodes` are the model's in an order of computation, and
    `stored` what its initializers and Constants hold. TensorRT's own operators keep their input's
    type and shape."""
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = model.graph
    light.graph.name = graph.name
    light.graph.input.extend(graph.input)
    light.graph.output.extend(graph.output)
    light.graph.value_info.extend(graph.value_info)
    light.graph.initializer.extend(_without_values(name, held) for name, held in stored.items())
    for node in nodes:
        if node.domain == "trt":
            light.graph.node.add(
                op_type="Identity", input=node.input[:1], output=node.output[:1], name=node.name
            )
        elif node.op_type != "Constant":
            light.graph.node.append(node)
    try:
        inferred = shape_inference.infer_shapes(light, data_prop=True).graph
    except (shape_inference.InferenceError, RuntimeError, ValueError):
        inferred = light.graph
    found = {v.name: v.type.tensor_type for v in (*inferred.input, *inferred.output)}
    return found | {v.name: v.type.tensor_type for v in inferred.value_info}


def _without_values(name: str, tensor: TensorProto) -> TensorProto:
    light = TensorProto(name=name, data_type=tensor.data_type, dims=tensor.dims)
    if math.prod(tensor.dims) <= _KEPT:
        light.CopyFrom(tensor)
        light.name = name
    return light
