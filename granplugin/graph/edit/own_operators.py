"""Weights in block-scaled formats by an engine's own operators, in place of DequantizeLinear.

What ONNX says with float32 scales, TensorRT's parser reads with scales in E8M0: a power of two s is
stored as the byte log2(s) + 127 (OCP Microscaling Formats v1.0), so every float of the graph stays
the same to the bit. TensorRT-RTX multiplies in the kernel that dequantizes such
weights, where DequantizeLinear gets a kernel of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from granplugin.graph.edit.additions import Additions
from granplugin.graph.edit.contract import Seen, contract
from granplugin.graph.edit.nodes import constant, replace, scope_of
from granplugin.planning.rows import QuantizedRow

DOMAIN = "trt"
BIAS = 127
"""Of E8M0's exponents."""


def _plain(model: ir.Model, rows: Sequence[QuantizedRow]) -> list[tuple[ir.Node, QuantizedRow]]:
    by_site = {row.site: row for row in rows}
    return [
        (node, by_site[scope_of(node)])
        for node in model.graph
        if node.op_type == "DequantizeLinear" and scope_of(node) in by_site
    ]


def _cells(node: ir.Node, row: QuantizedRow) -> np.ndarray | None:
    """The scales as the row's grid; None where they are not constants, one for each block. Along
    one axis ONNX has one for each index, the same throughout a block."""
    scale = constant(node.inputs[1])
    if scale is None:
        return None
    if scale.ndim == 1 and scale.size == max(row.block) * row.scales:
        runs = scale.reshape(row.scales, -1)
        scale = runs[:, 0] if (runs == runs[:, :1]).all() else scale
    return scale.reshape(row.grid) if scale.size == row.scales else None


def _requires(
    before: Seen, model: ir.Model, rows: Sequence[QuantizedRow], operators: Mapping[str, str]
) -> str | None:
    for node, row in _plain(model, rows):
        stored, scale = constant(node.inputs[0]), _cells(node, row)
        if row.format not in operators:
            return f"there is no operator for {row.format}, which {row.site} is in"
        if stored is None or stored.shape != row.shape or scale is None:
            return f"{node.name} does not read a weight by its scales"
        if (np.frexp(scale)[0] != 0.5).any():
            return f"a scale of {node.name} is no power of two"
    return None


def _ensures(
    before: Seen,
    after: Seen,
    result: None,
    model: ir.Model,
    rows: Sequence[QuantizedRow],
    operators: Mapping[str, str],
) -> str | None:
    left = _plain(model, rows)
    return f"{left[0][0].name} is left" if left else None


@contract(_requires, _ensures)
def own_operators(
    model: ir.Model, rows: Sequence[QuantizedRow], operators: Mapping[str, str]
) -> None:
    """Dequantize the weights of `rows`, in place, by `operators`, by format.

    Requires that their scales are constants, one for each block, and powers of two. Ensures that
    no DequantizeLinear of theirs is left.
    """
    additions = Additions(model.graph)
    for node, row in _plain(model, rows):
        cells = _cells(node, row)
        assert cells is not None  # _requires
        exponents = np.frexp(cells)[1] - 1
        scale = additions.constant(f"{row.site}/e8m0", (exponents + BIAS).astype(np.uint8))
        size = max(row.block)
        low = node.attributes.get("output_dtype")
        attributes = {
            "axis": row.block.index(size),
            "block_size": size,
            "output_dtype": int(ir.DataType.FLOAT) if low is None else low.as_int(),
        }
        own = ir.node(
            operators[row.format], [node.inputs[0], scale], attributes, domain=DOMAIN,
            name=node.name,
        )  # fmt: skip
        name, node.outputs[0].name = node.outputs[0].name, None
        own.outputs[0].name = name
        own.outputs[0].type, own.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
        node.prepend(own)
        replace(node.outputs[0], own.outputs[0])
        model.graph.remove(node, safe=True)
    model.opset_imports[DOMAIN] = 1
    passes.RemoveUnusedNodesPass()(model)
