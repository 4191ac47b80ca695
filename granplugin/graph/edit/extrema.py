"""A maximum with -inf behind extrema that are quantized.

The larger of a number and -inf is the number. It keeps a reduction to its largest or smallest value
from being fused with the QuantizeLinear behind it (which OpenVINO computes wrongly).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from granplugin.graph.edit.additions import Additions
from granplugin.graph.edit.contract import seam
from granplugin.graph.edit.nodes import constant

_EXTREMA = ("ReduceMax", "ReduceMin", "GlobalMaxPool")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def quantized_extrema(model: ir.Model) -> list[ir.Node]:
    """The reductions to an extremum, of floats, whose output is quantized as it is, behind what
    computes of nothing else, or in a concatenation."""
    return [
        node for node in model.graph if node.op_type in _EXTREMA and _quantized(node.outputs[0])
    ]


def _quantized(value: ir.Value) -> bool:
    left = [value]
    while left:
        for user, _ in left.pop().uses():
            if user.op_type == "QuantizeLinear":
                return True
            if user.op_type == "Concat" or (user.op_type != "Max" and _alone(user)):
                left += user.outputs
    return False


def _alone(node: ir.Node) -> bool:
    """Whether a node has but one operand that is no constant."""
    return sum(each is not None and constant(each) is None for each in node.inputs) == 1


def _requires(model: ir.Model) -> str | None:
    for node in quantized_extrema(model):
        if node.outputs[0].dtype not in (None, *_FLOATS):
            return f"{node.name} is quantized and not of floats"
    return None


def _ensures(result: ir.Model, model: ir.Model) -> str | None:
    left = quantized_extrema(result)
    return f"{left[0].name} is still quantized" if left else None


@seam(_requires, _ensures)
def apart_from_extrema(model: ir.Model) -> ir.Model:
    """A copy with the maximum behind each of them. Requires that they are of floats. Ensures that
    none is quantized as it is."""
    model = model.clone()
    additions = Additions(model.graph)
    for node in quantized_extrema(model):
        value = node.outputs[0]
        least = np.asarray(-np.inf, (value.dtype or ir.DataType.FLOAT).numpy())
        name = node.name.rpartition("/")[0] or node.name
        infinity = additions.constant(f"{name}.least", least)
        behind = additions.node(name, "Max", [value, infinity], after=node)
        for user, at in list(value.uses()):
            if user is not behind.producer():
                user.replace_input_with(at, behind)
    return model
