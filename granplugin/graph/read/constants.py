"""What a node makes of constants, as onnx's reference computes it, within bounds.

A file says what to compute, so it could ask for more than there is memory or time. A result's size
is known before it is computed, from onnx's own shape inference; what loops is never run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper, reference, shape_inference

_PER_VALUE = 64
"""Multiplications that take as long as a value."""
LARGEST = 2**26
"""The most values a computed constant may have."""
_AT_LEAST = 2**14
"""What a node costs, in values, however few it makes."""
BUDGET = 2**27
"""The most values that are computed for one file."""
_SHAPES = 4096
"""Operands of at most this many values may say a shape."""
_COMPUTED = frozenset(
    [
        "Abs",
        "Add",
        "And",
        "BatchNormalization",
        "Cast",
        "CastLike",
        "Ceil",
        "Clip",
        "Concat",
        "ConstantOfShape",
        "DequantizeLinear",
        "Div",
        "Equal",
        "Exp",
        "Expand",
        "Flatten",
        "Floor",
        "Gather",
        "Greater",
        "GreaterOrEqual",
        "Identity",
        "InstanceNormalization",
        "Less",
        "LessOrEqual",
        "Log",
        "Max",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "Pow",
        "QuantizeLinear",
        "Range",
        "Reciprocal",
        "ReduceL2",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
        "Reshape",
        "Round",
        "Shape",
        "Sign",
        "Size",
        "Slice",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Sum",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
        "Xor",
    ]
)
"""What takes time and memory as its operands and results are large."""
_MULTIPLIES = frozenset({"Gemm", "MatMul"})
"""What also takes time as its operands are deep: a weight may be a product of others."""
_RANDOM = frozenset(
    [
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    ]
)


def is_random(node: onnx.NodeProto) -> bool:
    """Whether a node's results differ from run to run, whatever it reads."""
    return node.op_type in _RANDOM


def stored_in(node: onnx.NodeProto) -> TensorProto:
    """What a Constant node holds. Raises ValueError for one that holds nothing."""
    for attribute in node.attribute:
        match attribute.name:
            case "value":
                return attribute.t
            case "value_float" | "value_floats":
                held = helper.get_attribute_value(attribute)
                return numpy_helper.from_array(np.array(held, np.float32))
            case "value_int" | "value_ints":
                held = helper.get_attribute_value(attribute)
                return numpy_helper.from_array(np.array(held, np.int64))
            case "value_string" | "value_strings":
                held = helper.get_attribute_value(attribute)
                return numpy_helper.from_array(np.array(held, object))
    raise ValueError("a Constant without a value")


def _multiplied(node: onnx.NodeProto, feeds: Mapping[str, np.ndarray], size: int) -> int:
    """What a product's multiplications cost, in values."""
    if node.op_type not in _MULTIPLIES:
        return 0
    depth = max(feeds[node.input[0]].shape, default=1)  # of Gemm, either axis may be it
    return size * depth // _PER_VALUE


class Refused(Exception):
    """Why a constant is not computed, as the rest of a sentence about its node."""


class Evaluator:
    """Computes nodes of constants, until what one file may take is used up."""

    def __init__(self, opsets: Sequence[onnx.OperatorSetIdProto]) -> None:
        self.opsets = list(opsets)
        self.versions = {opset.domain: opset.version for opset in opsets}
        self.left = BUDGET

    def run(
        self, node: onnx.NodeProto, feeds: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray] | None:
        """The node's results by name; None for an operator that is not computed here.

        Raises Refused, and what onnx raises for a node that is damaged.
        """
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise Refused(f"is a {node.op_type}, which is not run")
        if node.op_type not in _COMPUTED | _MULTIPLIES or node.domain not in ("", "ai.onnx"):
            return None
        size = self._size(node, feeds)
        if size is None:
            return None
        if size > LARGEST:
            raise Refused(f"makes a constant of {size:,} values")
        self.left -= max(size, _AT_LEAST, _multiplied(node, feeds, size))
        if self.left < 0:
            raise Refused("is one constant too many to compute")
        given = {name: helper.np_dtype_to_tensor_dtype(x.dtype) for name, x in feeds.items()}
        graph = helper.make_graph(
            [node],
            "constant",
            [helper.make_tensor_value_info(n, kind, None) for n, kind in given.items()],
            [onnx.ValueInfoProto(name=name) for name in node.output if name],
        )
        model = helper.make_model(graph, opset_imports=self.opsets)
        try:
            made = reference.ReferenceEvaluator(model).run(None, dict(feeds))
        except NotImplementedError:
            return None  # for these types
        return dict(zip(filter(None, node.output), map(np.asarray, made), strict=True))

    def _size(self, node: onnx.NodeProto, feeds: Mapping[str, np.ndarray]) -> int | None:
        """The values of all results together; None where onnx cannot tell."""
        try:
            schema = defs.get_schema(node.op_type, self.versions.get(node.domain, 1), "")
        except defs.SchemaError:
            return None  # of a newer opset than the file says
        types, data = {}, {}
        for name, array in feeds.items():
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            types[name] = helper.make_tensor_type_proto(kind, array.shape)
            if array.size <= _SHAPES:
                data[name] = numpy_helper.from_array(array, name)
        made = shape_inference.infer_node_outputs(
            schema, node, types, data, opset_imports=self.opsets
        )
        total = 0
        for name in filter(None, node.output):
            held = made[name].tensor_type if name in made else None
            if held is None or not held.HasField("shape"):
                return None
            lengths = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in held.shape.dim]
            if min(lengths, default=0) < 0:
                return None
            total += math.prod(lengths)
        return total
