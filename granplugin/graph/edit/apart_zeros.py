"""Zero points of their own for weights of each form, where one tensor of zeros stands for several.

The exporter merges equal constants, so a convolution and a linear layer of as many channels share
their zero points. (OpenVINO, which gives the tensor the shape of each weight, no longer takes it
for a constant where shapes are fixed, and multiplies all those weights in float.)
"""

from __future__ import annotations

from collections import defaultdict

import onnx_ir as ir

from granplugin.graph.edit.additions import Additions
from granplugin.graph.edit.contract import equal_form
from granplugin.graph.edit.nodes import constant

_WEIGHT, _ZERO = 0, 2


def shared_zeros(model: ir.Model) -> list[ir.Node]:
    """What dequantizes stored weights with zeros that weights of other forms have, too."""
    readers: defaultdict[ir.Value, list[ir.Node]] = defaultdict(list)
    for node in model.graph:
        if node.op_type == "DequantizeLinear" and len(node.inputs) > _ZERO:
            zero = node.inputs[_ZERO]
            if zero is not None and zero.shape and constant(node.inputs[_WEIGHT]) is not None:
                readers[zero].append(node)
    return [
        node
        for zero, nodes in readers.items()
        if len(set(map(_form, nodes))) > 1 and constant(zero) is not None
        for node in nodes
    ]


def _form(node: ir.Node) -> tuple[int, int]:
    """Of how many axes the weight is, and which one the scales lie along."""
    rank = len(node.inputs[_WEIGHT].shape)
    axis = node.attributes.get("axis")
    return rank, (1 if axis is None else axis.as_int()) % rank


def _left(model: ir.Model) -> str | None:
    left = shared_zeros(model)
    return f"{left[0].name} still shares its zero points" if left else None


@equal_form(_left)
def apart_from_shared_zeros(model: ir.Model) -> None:
    """Give weights of each form zero points of their own, in place. Ensures that none shares them
    with weights of another form."""
    additions = Additions(model.graph)
    own: dict[tuple[ir.Value, tuple[int, int]], ir.Value] = {}
    for node in shared_zeros(model):
        zero = node.inputs[_ZERO]
        key = (zero, _form(node))
        if key not in own:
            # The first form keeps the tensor.
            own[key] = zero
            if any(shared is zero for shared, _ in own.keys() - {key}):
                array = constant(zero)
                assert array is not None, f"{zero.name} is an initializer"
                own[key] = additions.constant(zero.name, array)
        node.replace_input_with(_ZERO, own[key])
