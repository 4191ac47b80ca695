"""Scales that do not vary along what a product sums over, multiplied behind the product.

For a divisor d[r] of the rows r of x = d q:  y[r, n] = sum_k d[r] q[r, k] w[k, n]
= d[r] sum_k q[r, k] w[k, n], so the product of what is left, times d[r], is exact. The bias,
which has no factor d, moves behind the multiplication. That covers per_token inputs, static or
dynamic, of Linear, and one dynamic scale for each sample of any product: a convolution does not
sum over the batch either.
"""

from __future__ import annotations

import onnx_ir as ir

from granplugin.errors import ModelError
from granplugin.graph.edit.additions import Additions
from granplugin.graph.edit.contract import seam
from granplugin.graph.edit.lowering.division import divided
from granplugin.graph.edit.lowering.products import products
from granplugin.graph.edit.nodes import constant, only_user, replace
from granplugin.planning.rows import QuantizedRow


def _scaled(
    result: None, additions: Additions, marker: ir.Node, row: QuantizedRow, scale: ir.Value
) -> str | None:
    for node, _ in marker.outputs[0].uses():
        mul = only_user(node.outputs[0])
        if mul is None or mul.op_type != "Mul" or mul.inputs[1] is not scale:
            return f"{node.name} is read without the scales of {row.site}"
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            return f"{node.name} adds its bias before the scales of {row.site}"
    return None


@seam(divided, _scaled)
def scale_rows(additions: Additions, marker: ir.Node, row: QuantizedRow, scale: ir.Value) -> None:
    """Multiply each product of the marked tensor by `scale`, in place.

    Requires that the marker reads the quotient by `scale`. Ensures that each node that reads the
    marker has no bias and is read by the multiplication by `scale` alone. Raises ModelError for
    readers that are no products, and for a bias that is computed.
    """
    for node in products(marker, row):
        product = node.outputs[0]
        scaled = result = additions.node(row.layer, "Mul", [product, scale], after=node)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            bias = constant(node.inputs[2])
            if bias is None:
                raise ModelError(f"{row.site}: the bias of {node.name} is computed; write simulate")
            if node.op_type != "Gemm":
                bias = bias.reshape(-1, *[1] * (len(row.shape) - 2))
            bias = additions.constant(f"{row.layer}.bias/behind", bias)
            node.resize_inputs(2)
            result = additions.node(row.layer, "Add", [scaled, bias], after=scaled.producer())
        for value in (scaled, result):
            value.type, value.shape = product.type, product.shape
        replace(product, result)
        scaled.producer().replace_input_with(0, product)
        product.name = product.name or f"{node.name}/product"  # the graph's output has it now
