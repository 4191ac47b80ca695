"""A float ONNX file to the form that torch's export has: a marker at each site, nodes named
`layer/OpType`, weights of linear layers as [out, in], open lengths as in the example."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir import external_data
from onnx_ir.passes import common as passes

from granplugin.errors import ModelError
from granplugin.graph.edit.nodes import (
    DOMAIN,
    SITE,
    add_constant,
    add_made,
    bypass,
    constant,
    marker_body,
    unique,
)
from granplugin.graph.files import EMBEDDED, save
from granplugin.graph.read.graph import ReadGraph
from granplugin.network.onnx_layers import Placed, attribute, weight_input
from granplugin.network.onnx_rounded import bias_of
from granplugin.quant.layers import Layer
from granplugin.quant.site import Shape
from granplugin.recipe.model import FileForm

log = logging.getLogger(__name__)


def export_marked(
    graph: ReadGraph,
    placed: Mapping[str, Placed],
    layers: Sequence[Layer],
    shapes: Mapping[str, Shape],
    form: FileForm,
    path: Path,
) -> None:
    """Write a prepared graph with a marker at each site of these layers (as
    granplugin.network.export writes a torch model). `shapes` are of its inputs and of others of its
    tensors, as a pass over an example has shown them; the `form` tells which of its inputs' axes
    stay open. Raises ModelError."""
    model = ir.from_proto(graph.model)
    external_data.set_base_dir(model.graph, graph.path.parent.resolve())
    if sum(value.const_value.nbytes for value in model.graph.initializers.values()) <= EMBEDDED:
        # What is written stands elsewhere than the files that the source has beside it.
        external_data.load_to_model(model)
    _fix_lengths(model.graph, shapes, form)
    _note_types(model.graph, graph)
    nodes = {node.name: node for node in model.graph}
    values = {value.name: value for node in model.graph for value in node.outputs}
    values |= {value.name: value for value in model.graph.inputs}
    taken: set[str] = set()
    writer = _Marker(model.graph, set(values) | set(model.graph.initializers))
    # Those inside the bodies of nodes stay as they are.
    usable = {name: each for name, each in placed.items() if each.layer.unusable is None}
    for each in usable.values():
        _lay_weight(model.graph, nodes[each.node.name], each, writer)
        if each.bias is not None:
            values[each.output] = _lay_bias(
                model.graph, nodes[each.node.name], nodes[each.bias.name], each, graph, writer
            )
    for layer in layers:
        if layer.name in usable:
            _mark(layer, usable[layer.name], nodes, values, writer)
    scopes = {node.name: name for name, each in usable.items() for node in each.nodes}
    for node in list(model.graph):
        if node.domain == DOMAIN:
            node.name = unique(node.name, taken)
        else:
            scope = scopes.get(node.name, node.name.removesuffix(f"/{node.op_type}"))
            node.name = unique(f"{scope}/{node.op_type}", taken)
    body = marker_body()
    model.functions[body.identifier()] = body
    model.opset_imports[DOMAIN] = 1
    passes.RemoveUnusedNodesPass()(model)
    model.graph.sort()
    save(model, path)
    log.info("exported %s: %d nodes", graph.path.name, model.graph.num_nodes())


def _fix_lengths(graph: ir.Graph, shapes: Mapping[str, Shape], form: FileForm) -> None:
    """Each input's lengths but the batch and those that are dynamic, as in the example."""
    for value in graph.inputs:
        kept = form.of(value.name)
        seen = shapes[value.name]
        value.shape = ir.Shape([kept.get(axis, length) for axis, length in enumerate(seen)])
    for value in graph.outputs:
        # They follow from the inputs'; what the file says may be of other lengths.
        value.shape = None if value.shape is None else ir.Shape([None] * len(value.shape))


def _note_types(graph: ir.Graph, read: ReadGraph) -> None:
    """What is known of each tensor's kind of number: edits compute in it."""
    for node in graph:
        for value in node.outputs:
            if value.type is None and (kind := read.element_type(value.name)):
                value.type = ir.TensorType(ir.DataType(kind))


class _Marker:
    """Puts markers into a graph, with names that nothing else has."""

    def __init__(self, graph: ir.Graph, taken: set[str]) -> None:
        self.graph, self.taken = graph, taken

    def value(self, name: str) -> str:
        return unique(name, self.taken)

    def of(self, x: ir.Value, site: str) -> ir.Node:
        """A marker that reads x."""
        node = ir.node(SITE, [x], {"site": site}, domain=DOMAIN, name=f"{site}/{SITE}")
        node.outputs[0].name = self.value(node.name)
        node.outputs[0].type, node.outputs[0].shape = x.type, x.shape
        return node


def _lay_weight(graph: ir.Graph, node: ir.Node, placed: Placed, writer: _Marker) -> None:
    """The weight of a linear layer as its layer has it, [out, in], and turned in front of a MatMul,
    as in torch's export; a Gemm's bias as it is added."""
    if placed.layer.shape("weight") is None or node.op_type not in ("Gemm", "MatMul"):
        return
    weight = node.inputs[1]
    turned = weight.producer()
    if node.op_type == "Gemm":
        if (beta := attribute(placed.node, "beta", 1.0)) != 1 and len(node.inputs) > 2:
            bias = constant(node.inputs[2])
            if bias is not None:
                name = writer.value(f"{placed.layer.name}.bias")
                scaled = (bias * np.float32(beta)).astype(bias.dtype)
                node.replace_input_with(2, add_constant(graph, name, scaled))
                node.attributes.pop("beta")
        if attribute(placed.node, "transB", 0):
            if turned is not None:
                _untransposed(graph, node, turned, writer, placed)
            return
        node.attributes["transB"] = ir.AttrInt64("transB", 1)
        if turned is not None:
            node.replace_input_with(1, turned.inputs[0])
            return
    elif turned is not None:
        return
    flat = _turned(graph, weight, writer, placed)
    if node.op_type == "Gemm":
        node.replace_input_with(1, flat)
        return
    back = ir.node("Transpose", [flat], {"perm": [1, 0]}, name=f"{node.name}/Transpose")
    back.outputs[0].name = writer.value(back.name)
    back.outputs[0].type = weight.type
    node.prepend(back)
    node.replace_input_with(1, back.outputs[0])


def _lay_bias(
    graph: ir.Graph,
    node: ir.Node,
    add: ir.Node,
    placed: Placed,
    read: ReadGraph,
    writer: _Marker,
) -> ir.Value:
    """The bias behind a MatMul is what is added, the second operand, as in torch's export; behind
    another product it goes into its node. What the layer puts out then."""
    if node.op_type == "MatMul":
        first, second = add.inputs
        if constant(first) is not None:
            add.replace_input_with(0, second)
            add.replace_input_with(1, first)
        return add.outputs[0]
    bias = bias_of(read, placed)
    assert bias is not None
    node.attributes.pop("beta", None)
    node.resize_inputs(3)
    name = writer.value(f"{placed.layer.name}.bias")
    node.replace_input_with(2, add_constant(graph, name, np.ascontiguousarray(bias)))
    if constant(add.inputs[0]) is not None:
        add.replace_input_with(0, node.outputs[0])
    bypass(add)
    return node.outputs[0]


def _untransposed(
    graph: ir.Graph, node: ir.Node, turned: ir.Node, writer: _Marker, placed: Placed
) -> None:
    node.replace_input_with(1, _turned(graph, turned.inputs[0], writer, placed))


def _turned(graph: ir.Graph, value: ir.Value | None, writer: _Marker, placed: Placed) -> ir.Value:
    """A stored weight with its axes turned; of one in a file beside the model, when it is read."""
    held = constant(value)
    if held is None:
        raise ModelError(f"{placed.layer.name}: its weight is not stored in the file")
    name = writer.value(f"{placed.layer.name}.weight")
    return add_made(graph, name, held.shape[::-1], held.dtype, lambda: np.ascontiguousarray(held.T))


def _mark(
    layer: Layer,
    placed: Placed,
    nodes: Mapping[str, ir.Node],
    values: Mapping[str, ir.Value],
    writer: _Marker,
) -> None:
    node = nodes[placed.node.name]
    reads: dict[str, tuple[ir.Node, int]] = {
        "weight": (node, weight_input(placed.node)), "input": (node, 0), "other": (node, 1),
    }  # fmt: skip
    if placed.skip is not None:
        reads["skip"] = (nodes[placed.skip[0].name], placed.skip[1])
    for site in layer.sites:
        if site.operand == "output":
            _mark_output(values[placed.output], site.name, writer)
            continue
        reader, at = reads[site.operand]
        if site.operand == "weight" and at and (turned := reader.inputs[at].producer()) is not None:
            # In front of the Transpose, which may be another layer's too.
            name = f"{layer.name}/Transpose"
            own = ir.node("Transpose", [turned.inputs[0]], {"perm": [1, 0]}, name=name)
            own.outputs[0].name = writer.value(name)
            own.outputs[0].type = turned.outputs[0].type
            reader.prepend(own)
            reader.replace_input_with(at, own.outputs[0])
            reader, at = own, 0
        marker = writer.of(reader.inputs[at], site.name)
        reader.prepend(marker)
        reader.replace_input_with(at, marker.outputs[0])


def _mark_output(value: ir.Value, site: str, writer: _Marker) -> None:
    """Behind what puts the tensor out: all that read it, read the marker."""
    marker = writer.of(value, site)
    value.producer().append(marker)
    for user, at in list(value.uses()):
        if user is not marker:
            user.replace_input_with(at, marker.outputs[0])
    if value.is_graph_output():
        # The output keeps its name.
        name = value.name
        value.name = writer.value(f"{name}/float")
        marker.outputs[0].name = name
        graph = marker.graph
        for at, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[at] = marker.outputs[0]
