"""Nodes of an exported graph named `layer/OpType`: a layer's are those between its markers; and their
values named after them."""

from __future__ import annotations

import ast
import re

import onnx_ir as ir

from granplugin.graph.edit.nodes import is_marker, site_of, unique


def name_nodes(graph: ir.Graph) -> None:
    """Name each node of the graph, while the exporter's metadata still says where it was called.

    What is behind the markers of a layer's operands, up to that of its output, is that layer's.
    Metadata are for the rest alone: where the user sets `forward` on an instance, or one module
    stands in many places, torch.export takes modules for their parents' or for one another.
    """
    nodes = list(graph.all_nodes())
    marked = {_site(node)[0] for node in nodes if is_marker(node)}
    inside: dict[ir.Value | None, str] = {}
    taken: set[str] = set()
    for node in nodes:
        if is_marker(node):
            layer, operand = _site(node)
            scope = site_of(node)
            if operand not in ("output", "skip"):  # what others read, or what is added to it
                inside[node.outputs[0]] = layer
        elif read := [inside[x] for x in node.inputs if x in inside]:
            scope = read[0]
            inside.update(dict.fromkeys(node.outputs, scope))
        else:
            scope = _called_in(node)
            while scope and scope in marked:
                scope = scope.rpartition(".")[0]
        node.name = unique(f"{scope}/{node.op_type}".lstrip("/"), taken)


def name_values(graph: ir.Graph) -> None:
    """Name what nodes put out after them, and the constants that the exporter made of no parameter
    after who reads them first; inputs and outputs of the graph keep their names.

    The exporter counts what it ever made: names then tell of nodes that are gone, such as a folded
    batch norm, and equal networks have equal ones.
    """
    kept = {value.name for value in (*graph.inputs, *graph.outputs)}
    made = [name for name in graph.initializers if _COUNTED.fullmatch(name)]
    for name in made:
        graph.initializers[name].name = f"constant/{name}"
    kept |= {name for name in graph.initializers if name not in made}
    taken = {str(name) for name in kept}
    for node in graph:
        for value in node.inputs:
            if value is not None and value.is_initializer() and value.name.startswith("constant/"):
                value.name = unique(f"{node.name}/constant", taken)
        for at, value in enumerate(node.outputs):
            if value.name and value.name not in kept:
                value.name = unique(f"{node.name}/{at}" if at else str(node.name), taken)


_COUNTED = re.compile(r"val_\d+")


def _site(marker: ir.Node) -> tuple[str, str]:
    """Layer and operand."""
    layer, _, operand = site_of(marker).rpartition(".")
    return layer, operand


def _called_in(node: ir.Node) -> str:
    """The module that the exporter says; the model itself of a node that it says nothing of."""
    # "['', 'features', 'features.0', 'conv2d']": modules, outermost first, then the call
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['', '']"))
    return str(scopes[-2]) if len(scopes) > 1 else ""
