"""Q/DQ of activations that cannot be negative as uint8 with zero point 0: the same numbers.

Of int8 such values use 0 .. 127. In uint8 they have the same integers, and what is above 127 scales
stays there by a Clip in front, which takes the place of the ReLU where nothing else reads that.
Kernels that multiply u8 by i8 (AVX-512 VNNI's) take them without a shift.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from granplugin.graph.edit.additions import Additions
from granplugin.graph.edit.contract import equal_form
from granplugin.graph.edit.nodes import constant, scope_of

HIGHEST = 127
_POSITIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp")
# Of these an output is never below the smallest operand or 0.
_KEEPING = (
    "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax",
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Slice", "Gather",
    "DequantizeLinear", "QuantizeLinear",
)  # fmt: skip
_JOINING = ("Add", "Mul", "Concat", "Max")


def _not_negative(graph: ir.Graph) -> set[ir.Value]:
    """The values of a graph that are 0 or more whatever its inputs are, as far as its nodes tell."""
    found: set[ir.Value] = set()
    for node in graph:
        if node.domain not in ("", "ai.onnx") or not node.inputs:
            continue
        first = node.inputs[0]
        if (
            node.op_type in _POSITIVE
            or (node.op_type == "Clip" and _is_least(node))
            or (node.op_type in _KEEPING and first in found)
            or (node.op_type in _JOINING and found.issuperset(node.inputs))
        ):
            found.add(node.outputs[0])
    return found


def _is_least(node: ir.Node) -> bool:
    """Whether a Clip's lower bound is 0 or more."""
    least = constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
    return least is not None and bool((least >= 0).all())


def _asking(model: ir.Model) -> Iterator[tuple[ir.Node, np.ndarray]]:
    """What quantizes values that are not negative to int8, with one scale and 0 for 0, for
    DequantizeLinear alone; and that scale."""
    positive: set[ir.Value] | None = None
    for node in model.graph:
        if node.op_type != "QuantizeLinear" or len(node.inputs) < 3:
            continue
        scale, zero = constant(node.inputs[1]), constant(node.inputs[2])
        if scale is None or zero is None or scale.shape or zero.dtype != np.int8 or zero.any():
            continue
        if any(user.op_type != "DequantizeLinear" for user, _ in node.outputs[0].uses()):
            continue
        positive = _not_negative(model.graph) if positive is None else positive
        if node.inputs[0] in positive:
            yield node, scale


def quantizes_nonnegative(model: ir.Model) -> bool:
    """Whether it quantizes to int8 what cannot be negative."""
    return next(_asking(model), None) is not None


def _left(model: ir.Model) -> str | None:
    left = next(_asking(model), None)
    return f"{left[0].name} still writes int8" if left else None


@equal_form(_left)
def nonnegative_unsigned(model: ir.Model) -> None:
    """Quantize to uint8, in place, what cannot be negative and is quantized to int8 with one scale.
    Ensures that none is left."""
    if any(node.inputs[0].dtype is None for node, _ in _asking(model)):
        passes.ShapeInferencePass(data_prop=False)(model)
    additions = Additions(model.graph)
    zero = None
    for node, scale in list(_asking(model)):
        if zero is None:
            zero = additions.constant("zero_point/uint8_0", np.zeros((), np.uint8))
        # In the type of what is clipped, be it float16: half an integer is far more than a rounding.
        kind = node.inputs[0].dtype
        dtype = scale.dtype if kind is None else kind.numpy()
        highest = np.asarray(scale.astype(np.float32) * HIGHEST, dtype)
        _clip(additions, node, highest)
        for user in (node, *(user for user, _ in list(node.outputs[0].uses()))):
            user.replace_input_with(2, zero)
        if node.outputs[0].dtype is not None:
            node.outputs[0].dtype = ir.DataType.UINT8
    passes.RemoveUnusedNodesPass()(model)


def _clip(additions: Additions, node: ir.Node, highest: np.ndarray) -> None:
    source = node.inputs[0]
    least, most = np.zeros((), highest.dtype), highest
    before = source.producer()
    if before is not None and _is_alone(source):
        bounds = _bounds(before)
        if bounds is not None:
            source = before.inputs[0]
            least, most = (np.minimum(bound, highest) for bound in bounds)
    dtype = highest.dtype
    ends = [
        additions.constant(f"{scope_of(node)}.least", np.asarray(least, dtype)),
        additions.constant(f"{scope_of(node)}.most", np.asarray(most, dtype)),
    ]
    # In the scope of what it clips, which for a quantized output is the layer's own.
    scope = scope_of(node if before is None else before) or "clip"
    clipped = additions.node(scope, "Clip", [source, *ends], before=node)
    clipped.type, clipped.shape = node.inputs[0].type, node.inputs[0].shape
    node.replace_input_with(0, clipped)


def _bounds(node: ir.Node) -> tuple[np.ndarray, np.ndarray] | None:
    """Of a ReLU or a Clip by two constants."""
    if node.op_type == "Relu":
        return np.zeros((), np.float32), np.full((), np.inf, np.float32)
    if node.op_type != "Clip" or len(node.inputs) < 3:
        return None
    least, most = constant(node.inputs[1]), constant(node.inputs[2])
    return None if least is None or most is None else (least, most)


def _is_alone(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()
