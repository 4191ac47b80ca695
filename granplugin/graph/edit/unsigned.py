"""Q/DQ of activations as uint8 with zero point 128: the same numbers, each stored 128 higher.

An integer q of int8 is q + 128 of uint8, and DequantizeLinear takes the 128 off before it
multiplies, so every float of the graph stays the same to the bit. Of two equal forms an engine may
compute one wrongly (OpenVINO: int8 around concatenations); it is given the other. The factors of
a product of two activations stay int8 where no concatenation is behind them, or a sum of two - as
of rotated positions - between: with another zero point OpenVINO multiplies them in float.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from granplugin.graph.edit.additions import Additions
from granplugin.graph.edit.contract import equal_form
from granplugin.graph.edit.nodes import constant
from granplugin.quant.layers import ONNX_PRODUCTS

ZERO = 128
# What a weight goes through on its way to a product.
_MOVING = ("DequantizeLinear", "Transpose", "Reshape", "Cast", "Identity")


_PRODUCTS = (*ONNX_PRODUCTS, "Einsum")
_OF_TWO = ("Add", "Sub", "Mul", "Div")


def _signed(model: ir.Model) -> list[ir.Node]:
    """What writes int8, but for factors of products of two activations far from concatenations."""
    return [
        node
        for node in model.graph
        if node.op_type == "QuantizeLinear"
        and node.inputs[2].dtype == ir.DataType.INT8
        and not (_is_factor(node) and not _joined(node.inputs[0]))
    ]


def _is_factor(node: ir.Node) -> bool:
    """Whether only products of two activations read what is quantized."""
    dequantized = [user.outputs[0] for user, _ in node.outputs[0].uses()]
    readers = [user for value in dequantized for user, _ in value.uses()]
    return (
        bool(readers)
        and not any(value.is_graph_output() for value in dequantized)
        and all(user.op_type == "MatMul" and not any(map(_stored, user.inputs)) for user in readers)
    )


def _stored(value: ir.Value) -> bool:
    """Whether a value is a constant, or dequantized from one, in whatever order of its axes."""
    while (node := value.producer()) is not None and node.op_type in _MOVING:
        value = node.inputs[0]
    return constant(value) is not None


def _joined(value: ir.Value) -> bool:
    """Whether a concatenation is among what computes a value behind the last products and sums or
    products of two."""
    left, seen = [value], {value}
    while left:
        node = left.pop().producer()
        if node is None or node.op_type in _PRODUCTS:
            continue
        if node.op_type in _OF_TWO and not any(map(_stored, filter(None, node.inputs))):
            continue
        if node.op_type == "Concat":
            return True
        new = {each for each in node.inputs if each is not None and _may_be_float(each)} - seen
        seen |= new
        left += new
    return False


def _may_be_float(value: ir.Value) -> bool:
    """Shapes and masks are none: what is concatenated there is not what is quantized."""
    return value.dtype is None or value.dtype.is_floating_point()


def concatenates(model: ir.Model) -> bool:
    """Whether it has a concatenation, and an activation that is quantized to int8."""
    return bool(_signed(model)) and any(node.op_type == "Concat" for node in model.graph)


def _requires(model: ir.Model) -> str | None:
    for node in _signed(model):
        zero = constant(node.inputs[2])
        if zero is None or zero.any():
            return f"the zero point of {node.name} is not 0"
        if any(user.op_type != "DequantizeLinear" for user, _ in node.outputs[0].uses()):
            return f"{node.name} is not read by DequantizeLinear alone"
    return None


def _left(model: ir.Model) -> str | None:
    left = _signed(model)
    return f"{left[0].name} still writes int8" if left else None


@equal_form(_left, _requires)
def unsigned(model: ir.Model) -> None:
    """Let QuantizeLinear write uint8, in place, where it wrote int8; stored weights and other
    formats stay, and so do factors of products of two activations that no concatenation is behind.
    Requires zero points of 0 and that what is quantized is only dequantized. Ensures that no other
    QuantizeLinear writes int8."""
    additions = Additions(model.graph)
    zeros: dict[tuple[int, ...], ir.Value] = {}
    for node in _signed(model):
        zero = constant(node.inputs[2])
        shape = () if zero is None else zero.shape
        if shape not in zeros:
            name = "zero_point/uint8" + "".join(f"_{length}" for length in shape)
            zeros[shape] = additions.constant(name, np.full(shape, ZERO, np.uint8))
        for user in (node, *(user for user, _ in list(node.outputs[0].uses()))):
            user.replace_input_with(2, zeros[shape])
        if node.outputs[0].dtype is not None:
            node.outputs[0].dtype = ir.DataType.UINT8
    passes.RemoveUnusedNodesPass()(model)
