"""A maximum with -inf behind quantized products whose result is cut in pieces.

It keeps the cut of a joint projection (queries, keys and values of one linear layer) behind the
product: TensorRT-RTX moves it in front, onto the weight, whose scales for each channel it then
dequantizes by, and multiplies in float.
"""

from __future__ import annotations

import onnx_ir as ir

from granplugin.graph.edit.additions import Additions
from granplugin.graph.edit.contract import equal_form
from granplugin.graph.edit.maximum import put_maximum
from granplugin.graph.edit.nodes import computes_of_one, constant, scope_of

_PRODUCTS = ("MatMul", "Gemm")
_CUTS = ("Slice", "Split", "Gather")
_MOVED = (
    "Add", "Sub", "Mul", "Div", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity",
)  # fmt: skip
"""What a cut can be moved in front of; of two operands one is a constant."""


def cut_products(model: ir.Model) -> list[ir.Node]:
    """The products with a weight that is stored with several scales, of which a part alone goes on
    somewhere."""
    return [
        node
        for node in model.graph
        if node.op_type in _PRODUCTS and _scale(node) is not None and _is_cut(node.outputs[0])
    ]


def _scale(node: ir.Node) -> ir.Value | None:
    """The scales of the product's weight, where it has several."""
    weight = node.inputs[1].producer()
    while weight is not None and weight.op_type == "Transpose":
        weight = weight.inputs[0].producer()
    if weight is None or weight.op_type != "DequantizeLinear":
        return None
    scale = weight.inputs[1]
    several = constant(scale)
    return scale if several is not None and several.size > 1 else None


def _is_cut(value: ir.Value) -> bool:
    left = [value]
    while left:
        for user, at in left.pop().uses():
            if user.op_type in _CUTS and at == 0:
                return True
            if user.op_type in _MOVED and computes_of_one(user):
                left += user.outputs
    return False


def _left(model: ir.Model) -> str | None:
    left = cut_products(model)
    return f"{left[0].name} is still cut" if left else None


@equal_form(_left)
def apart_from_cuts(model: ir.Model) -> None:
    """Put the maximum behind each of them, or behind the bias that is added to it, in place. Ensures
    that no product is cut as it is."""
    additions = Additions(model.graph)
    for node in cut_products(model):
        scale = _scale(node)
        assert scale is not None, "it is one of them"
        last = _with_bias(node)
        dtype = (scale.dtype or ir.DataType.FLOAT).numpy()
        put_maximum(additions, last, dtype, scope_of(node) or node.name)


def _with_bias(node: ir.Node) -> ir.Node:
    """The add of a constant that alone reads the product; else the product."""
    value = node.outputs[0]
    users = [user for user, _ in value.uses()]
    alone = len(users) == 1 and not value.is_graph_output()
    return users[0] if alone and users[0].op_type == "Add" and computes_of_one(users[0]) else node
