"""Q/DQ of activations as uint8 with zero point 128: the same numbers, each stored 128 higher.

An integer q of int8 is q + 128 of uint8, and DequantizeLinear takes the 128 off before it
multiplies, so every float of the graph stays the same to the bit. Of two equal forms an engine may
compute one wrongly (OpenVINO: int8 around concatenations); it is given the other.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from granplugin.graph.edit.additions import Additions
from granplugin.graph.edit.contract import seam
from granplugin.graph.edit.nodes import constant

ZERO = 128


def _signed(model: ir.Model) -> list[ir.Node]:
    quantizing = (node for node in model.graph if node.op_type == "QuantizeLinear")
    return [node for node in quantizing if node.inputs[2].dtype == ir.DataType.INT8]


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


def _ensures(result: ir.Model, model: ir.Model) -> str | None:
    left = _signed(result)
    return f"{left[0].name} still writes int8" if left else None


@seam(_requires, _ensures)
def unsigned(model: ir.Model) -> ir.Model:
    """A copy whose QuantizeLinear write uint8 where they wrote int8; stored weights and other
    formats stay. Requires zero points of 0 and that what is quantized is only dequantized. Ensures
    that no QuantizeLinear writes int8."""
    model = model.clone()
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
    return model
