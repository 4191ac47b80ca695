"""Operators that came after the opset files are written in, as the nodes ONNX says they stand for:
Attention, RMSNormalization and RotaryEmbedding of opset 23, and later ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import onnx
from onnx import defs, helper, inliner

from granplugin.graph.read.graph import ReadGraph, read_graph
from granplugin.graph.read.loading import name_nodes

OPSET = 21
"""What files are written in: the first with blocked Q/DQ and INT4."""


def spelled_out(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model, of a file, without operators that OPSET does not have, as far as ONNX has functions for them;
    nodes in place of one are called <its name>/<operator>."""
    later = {node.op_type for node in model.graph.node if node.domain in ("", "ai.onnx")}
    later &= _later()
    if not later:
        return model
    whole = [node for node in model.graph.node if node.op_type in later]
    kept = {node.name for node in model.graph.node}
    _say_types(read_graph(model, path), whole)
    spelled = inliner.inline_selected_functions(
        model, [(node.domain, node.op_type) for node in whole], inline_schema_functions=True
    )
    places = _places(whole, spelled)
    for node, place in zip(spelled.graph.node, places, strict=True):
        if node.name not in kept or not node.name:
            node.name = f"{place}/{node.op_type.lower()}"
    name_nodes(spelled.graph.node)
    return spelled


def _say_types(graph: ReadGraph, nodes: Iterable[onnx.NodeProto]) -> None:
    """A function's body depends on the types of what it reads, which have to be noted, also a stored
    tensor's."""
    noted = (*graph.model.graph.input, *graph.model.graph.value_info, *graph.model.graph.output)
    read = dict.fromkeys(name for node in nodes for name in node.input if name)
    for name in sorted(read.keys() - {value.name for value in noted}):
        if kind := graph.element_type(name):
            value = helper.make_tensor_value_info(name, kind, graph.shape(name))
            graph.model.graph.value_info.append(value)


def _places(whole: list[onnx.NodeProto], spelled: onnx.ModelProto) -> Iterator[str]:
    """By node, the name of the one that it, or the next such, is in place of."""
    names = {name: node.name for node in whole for name in node.output if name}
    found, place = [], ""
    for node in reversed(spelled.graph.node):
        place = next((names[name] for name in node.output if name in names), place)
        found.append(place)
    return reversed(found)


@cache
def _later() -> frozenset[str]:
    """ONNX's operators that came after OPSET and have a function."""
    known = [schema for schema in defs.get_all_schemas_with_history() if not schema.domain]
    old = {schema.name for schema in known if schema.since_version <= OPSET}
    return frozenset(
        schema.name
        for schema in known
        if schema.name not in old and (schema.has_function or schema.has_context_dependent_function)
    )
