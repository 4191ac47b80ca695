"""A bias of zeros for quantized convolutions that have none.

To add 0 changes no number. Of the zeros the first is -0: a bias whose zeros are all alike is taken
for none (by OpenVINO, which may then apply the scales of such a convolution twice, or one channel's
to all: where its output goes several ways, at once or behind a ReLU or a gain, or is clipped behind a
pool). Of a single channel no two zeros can differ, and the bias is the smallest
number there is of float32: it changes no number but 0, and no quantized one.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from granplugin.graph.edit.additions import Additions
from granplugin.graph.edit.contract import equal_form
from granplugin.graph.edit.nodes import constant

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_WEIGHT, _BIAS = 1, 2


def unbiased(model: ir.Model) -> list[ir.Node]:
    """The convolutions of quantized weights without a bias, or with one of equal zeros."""
    return [node for node in model.graph if node.op_type in _CONVOLUTIONS and _is_unbiased(node)]


def _is_unbiased(node: ir.Node) -> bool:
    weight = node.inputs[_WEIGHT].producer()
    if weight is None or weight.op_type != "DequantizeLinear":
        return False
    if len(node.inputs) <= _BIAS or node.inputs[_BIAS] is None:
        return True
    bias = constant(node.inputs[_BIAS])
    return bias is not None and not bias.any() and len(set(np.signbit(bias).tolist())) < 2


def _left(model: ir.Model) -> str | None:
    left = [node for node in unbiased(model) if _zeros(node) is not None]
    return f"{left[0].name} still has no bias" if left else None


@equal_form(_left)
def add_zero_biases(model: ir.Model) -> None:
    """Give them one, in place. Ensures that none is left, but for those of a single channel that
    are not float32."""
    additions = Additions(model.graph)
    for node in unbiased(model):
        zeros = _zeros(node)
        if zeros is None:
            continue
        name = node.name.rpartition("/")[0] or node.name
        node.resize_inputs(_BIAS + 1)
        node.replace_input_with(_BIAS, additions.constant(f"{name}.zero_bias", zeros))


def _zeros(node: ir.Node) -> np.ndarray | None:
    zeros = np.zeros(_channels(node), _dtype(node))
    if len(zeros) > 1:
        zeros[0] = -0.0
    elif zeros.dtype == np.float32:
        zeros[0] = np.finfo(np.float32).smallest_subnormal
    else:
        return None
    return zeros


def _channels(node: ir.Node) -> int:
    shape = node.inputs[_WEIGHT].producer().inputs[0].shape
    if node.op_type == "Conv":
        return int(shape[0])
    group = node.attributes.get("group")
    return int(shape[1]) * (1 if group is None else group.as_int())


def _dtype(node: ir.Node) -> np.dtype:
    kind = node.inputs[0].dtype or node.outputs[0].dtype or ir.DataType.FLOAT
    return kind.numpy()
