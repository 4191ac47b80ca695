"""A maximum with -inf behind extrema that are quantized.

It keeps a reduction to its largest or smallest value from being fused with the QuantizeLinear behind
it (which OpenVINO computes wrongly).
"""

from __future__ import annotations

import onnx_ir as ir

from granplugin.graph.edit.additions import Additions
from granplugin.graph.edit.contract import equal_form
from granplugin.graph.edit.maximum import put_maximum
from granplugin.graph.edit.nodes import computes_of_one, scope_of

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
            if user.op_type == "Concat" or (user.op_type != "Max" and computes_of_one(user)):
                left += user.outputs
    return False


def _requires(model: ir.Model) -> str | None:
    for node in quantized_extrema(model):
        if node.outputs[0].dtype not in (None, *_FLOATS):
            return f"{node.name} is quantized and not of floats"
    return None


def _left(model: ir.Model) -> str | None:
    left = quantized_extrema(model)
    return f"{left[0].name} is still quantized" if left else None


@equal_form(_left, _requires)
def apart_from_extrema(model: ir.Model) -> None:
    """Put the maximum behind each of them, in place. Requires that they are of floats. Ensures that
    none is quantized as it is."""
    additions = Additions(model.graph)
    for node in quantized_extrema(model):
        dtype = (node.outputs[0].dtype or ir.DataType.FLOAT).numpy()
        put_maximum(additions, node, dtype, scope_of(node) or node.name)
