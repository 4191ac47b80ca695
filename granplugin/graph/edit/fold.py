"""Folding a batch norm into the layer before it, in the graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from granplugin.errors import ModelError
from granplugin.graph.edit.contract import Seen, contract, gone
from granplugin.graph.edit.nodes import (
    add_constant,
    bypass,
    constant,
    is_marker,
    markers,
    only_user,
    scope_of,
    site_of,
)
from granplugin.planning.rows import Row
from granplugin.quant import folding
from granplugin.quant.layers import ONNX_PRODUCTS

FOLDED = "/folded"
"""Behind the names of weights and biases that folding made."""


def _requires(before: Seen, graph: ir.Graph, rows: Sequence[Row]) -> str | None:
    unnamed = next((row for row in rows if row.bn == "fold" and not row.bn_name), None)
    if unnamed is not None:
        return f"{unnamed.site} has a batch norm to fold, without a name"
    return None


def _ensures(
    before: Seen, after: Seen, result: None, graph: ir.Graph, rows: Sequence[Row]
) -> str | None:
    folded = {row.bn_name for row in rows if row.bn == "fold"}
    quantized = {row.observed for row in rows if row.quantized}
    if lost := next((site for site in gone(before, after) if site in quantized), None):
        return f"{lost} has lost a marker"
    for node in after.nodes.get("BatchNormalization", ()):
        if scope_of(node) in folded:
            return f"{node.name} is still there"
    return None


@contract(_requires, _ensures)
def fold_batch_norms(graph: ir.Graph, rows: Sequence[Row]) -> None:
    """Fold, in place, the batch norm of each layer whose rows say so.

    Requires that rows with bn: fold name their batch norm. Ensures that none of these is left, and
    that no marker of a quantized row goes (those between a layer and its batch norm do). Raises
    ModelError where the graph does not have the two in a row.
    """
    folded = {row.layer: row.bn_name for row in rows if row.bn == "fold" and row.bn_name}
    if folded:
        weights = _weight_markers(graph)
        quantized = {row.observed for row in rows if row.quantized}
        for layer, bn_name in folded.items():
            _fold(graph, weights.get(layer, []), layer, bn_name, quantized)


def weights_of(model: ir.Model, rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """The weight of each layer with a weight row, its batch norm folded in where its rows say so.

    The model, with markers, is left as it is.
    """
    graph = model.graph.clone()
    fold_batch_norms(graph, rows)
    weights = _weight_markers(graph)
    layers = {row.layer: None for row in rows if row.operand == "weight"}
    return {layer: weight_at(weights[layer][0]) for layer in layers if layer in weights}


def weight_at(marker: ir.Node) -> np.ndarray:
    """The constant a weight's marker reads. Raises ModelError."""
    weight = constant(marker.inputs[0])
    if weight is None:
        raise ModelError(
            f"{site_of(marker)} is computed in the forward pass; make it a plain parameter "
            "(torch.nn.utils.parametrize.remove_parametrizations) or leave the layer float"
        )
    return weight


def _weight_markers(graph: ir.Graph) -> dict[str, list[ir.Node]]:
    found: dict[str, list[ir.Node]] = {}
    for marker in markers(graph):
        if site_of(marker).endswith(".weight"):
            found.setdefault(_layer(marker), []).append(marker)
    return found


def _layer(marker: ir.Node) -> str:
    return site_of(marker).rpartition(".")[0]


def _fold(
    graph: ir.Graph, nodes: list[ir.Node], layer: str, bn_name: str, quantized: set[str]
) -> None:
    node = only_user(nodes[0].outputs[0]) if len(nodes) == 1 else None
    if node is not None and node.op_type == "Transpose":
        node = only_user(node.outputs[0])
    if node is None or node.op_type not in ONNX_PRODUCTS:
        raise ModelError(f"{layer}: its batch norm cannot be folded in the graph; set bn: keep")
    bias, bias_at = None, node
    if node.op_type == "MatMul":
        bias_at = _bias_add(node)
        bias = None if bias_at is None else constant(bias_at.inputs[1])
    elif len(node.inputs) > 2:
        bias = constant(node.inputs[2])
    between, after = [], only_user((bias_at or node).outputs[0])
    while after is not None and is_marker(after):
        between.append(after)
        after = only_user(after.outputs[0])
    if (
        after is None
        or after.op_type != "BatchNormalization"
        or not {_layer(marker) for marker in between} <= {layer, bn_name}
        or quantized.intersection(map(site_of, between))
        or len(norm := [x for x in map(constant, after.inputs[1:5]) if x is not None]) != 4
    ):
        raise ModelError(
            f"{layer}: {bn_name} does not follow it directly in the graph, so it cannot be "
            "folded; set bn: keep"
        )
    gamma, beta, mean, var = norm
    transposed = node.op_type == "ConvTranspose"
    weight, bias = folding.fold(
        weight_at(nodes[0]),
        bias,
        folding.Norm(gamma, beta, mean, var, after.attributes["epsilon"].as_float()),
        axis=1 if transposed else 0,
        groups=node.attributes["group"].as_int() if transposed else 1,
    )
    nodes[0].replace_input_with(0, add_constant(graph, f"{layer}.weight{FOLDED}", weight))
    new_bias = add_constant(graph, f"{layer}.bias{FOLDED}", bias)
    for marker in between:
        bypass(marker)
    if bias_at is None:
        add = ir.node("Add", [node.outputs[0], new_bias], name=f"{layer}/Add")
        add.outputs[0].type, add.outputs[0].shape = after.outputs[0].type, after.outputs[0].shape
        add.outputs[0].name = f"{layer}/Add"
        node.append(add)
        after.replace_input_with(0, add.outputs[0])
    elif node.op_type == "MatMul":
        bias_at.replace_input_with(1, new_bias)
    else:
        node.resize_inputs(3)
        node.replace_input_with(2, new_bias)
    bypass(after)


def _bias_add(matmul: ir.Node) -> ir.Node | None:
    """The Add of a linear layer's bias: the next node of the same module."""
    add = only_user(matmul.outputs[0])
    if add is None or add.op_type != "Add" or constant(add.inputs[1]) is None:
        return None
    return add if scope_of(add) == scope_of(matmul) else None
