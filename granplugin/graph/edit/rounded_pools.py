"""Q/DQ in front of a max pool instead of behind it: the largest of rounded values is the rounded
largest one, since rounding keeps their order.

An engine stores what a convolution computes in 8 bits where Q/DQ reads it. (OpenVINO writes it in
float32 where a pool reads it first, pools float32, and rounds in a kernel of its own.)
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from granplugin.graph.edit.contract import equal_form
from granplugin.graph.edit.nodes import only_user, replace
from granplugin.quant.layers import ONNX_PRODUCTS

_FUSED = (
    "BatchNormalization", "Add", "Mul", "Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Sigmoid",
    "HardSigmoid", "HardSwish", "Mish", "Gelu", "Identity",
)  # fmt: skip
"""What an engine computes in the kernel of the product in front of it."""

_Rounded = tuple[ir.Node, ir.Node, ir.Node]


def rounded_pools(model: ir.Model) -> Iterator[_Rounded]:
    """The max pools of what a quantized product alone computes and nothing else reads, behind which
    Q/DQ with one scale reads everything; with that QuantizeLinear and DequantizeLinear."""
    for pool in model.graph:
        if pool.op_type != "MaxPool" or only_user(pool.inputs[0]) is None:
            continue
        if len(pool.outputs) > 1 and (pool.outputs[1].uses() or pool.outputs[1].is_graph_output()):
            continue
        q = only_user(pool.outputs[0])
        if q is None or q.op_type != "QuantizeLinear" or not _is_one(q):
            continue
        dq = only_user(q.outputs[0])
        if dq is None or dq.op_type != "DequantizeLinear" or dq.outputs[0].is_graph_output():
            continue
        if _is_of_integers(pool.inputs[0].producer()):
            yield pool, q, dq


def _is_one(q: ir.Node) -> bool:
    """Whether its scale is a stored number: the same for all that a window holds."""
    scale = q.inputs[1]
    return scale is not None and scale.is_initializer() and not scale.shape


def _is_of_integers(node: ir.Node | None) -> bool:
    """Whether this is a product of a quantized input, or what is fused into one; or pools that."""
    while node is not None and node.op_type in (*_FUSED, "MaxPool"):
        node = node.inputs[0].producer()
    if node is None or node.op_type not in ONNX_PRODUCTS:
        return False
    read = node.inputs[0].producer()
    return read is not None and read.op_type == "DequantizeLinear"


def _left(model: ir.Model) -> str | None:
    left = next(rounded_pools(model), None)
    return f"what {left[0].name} computes is still rounded behind it" if left else None


@equal_form(_left)
def rounded_before_pools(model: ir.Model) -> None:
    """Put Q/DQ in front of each of them, in place. Ensures that none is left."""
    while found := next(rounded_pools(model), None):
        pool, q, dq = found
        model.graph.remove([q, dq])
        pool.prepend([q, dq])
        given, pooled, rounded = pool.inputs[0], pool.outputs[0], dq.outputs[0]
        q.replace_input_with(0, given)
        replace(rounded, pooled)
        pool.replace_input_with(0, rounded)
        pooled.type = rounded.type
        for value in (q.outputs[0], rounded):
            value.shape = given.shape
