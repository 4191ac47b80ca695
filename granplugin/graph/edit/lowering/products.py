"""The products that read a marked input, and nothing but products."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from granplugin.errors import ModelError
from granplugin.planning.rows import QuantizedRow
from granplugin.quant.layers import ONNX_PRODUCTS


def products(marker: ir.Node, row: QuantizedRow) -> list[ir.Node]:
    """The products that read the marked tensor as their first operand.

    Raises ModelError where anything else reads it: divided by its scales, it is of use to no other.
    """
    tensor = marker.outputs[0]
    for node, index in tensor.uses():
        if node.op_type not in ONNX_PRODUCTS or index != 0 or not _plain(node):
            raise ModelError(
                f"{row.site}: {node.name} reads it and is no product with a weight, so the scales "
                "cannot be taken out again; write simulate or per_tensor"
            )
    if tensor.is_graph_output():
        raise ModelError(f"{row.site}: is an output of the model too; write simulate or per_tensor")
    return [node for node, _ in tensor.uses()]


def check_readers(row: QuantizedRow, inputs: Sequence[ir.Node], weights: Sequence[ir.Node]) -> None:
    """Do the layer's input and weight meet in the same products, and go nowhere else?

    Raises ModelError where scales moved from one to the other would reach only one of them.
    """
    reading = {node for marker in inputs for node in products(marker, row)}
    using: set[ir.Node] = set()
    for marker in weights:
        for node, _ in marker.outputs[0].uses():
            is_transpose = node.op_type == "Transpose"
            using.update((u.node for u in node.outputs[0].uses()) if is_transpose else [node])
    if reading != using:
        raise ModelError(
            f"{row.site}: its weight is also used where the input has no such scales; write "
            "simulate or per_tensor"
        )


def _plain(node: ir.Node) -> bool:
    """Gemm can do more than a linear layer."""
    if node.op_type != "Gemm":
        return True
    alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    return alpha == beta == 1 and not node.attributes.get_int("transA", 0)
