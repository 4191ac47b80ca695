"""What is quantized inside If, Loop and Scan: each body read as a graph of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx

from granplugin.graph.read.graph import ReadGraph, dequantizes, read_graph, reads
from granplugin.graph.read.loading import name_nodes


def bodies(model: onnx.ModelProto, path: Path) -> Iterator[tuple[str, ReadGraph]]:
    """Each body that has a DequantizeLinear, those inside others included, with the names of the
    nodes and branches that lead there. What it reads from outside is an input of it, or stored.
    Raises ModelError for one that is damaged."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    waiting = [(node, node.name) for node in model.graph.node]
    while waiting:
        node, place = waiting.pop()
        for attribute in node.attribute:
            held = ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs)
            for graph in held:
                inner = onnx.ModelProto(ir_version=model.ir_version)
                inner.opset_import.extend(model.opset_import)
                inner.graph.CopyFrom(graph)
                name_nodes(inner.graph.node)
                within = f"{place}/{attribute.name}"
                waiting.extend((each, f"{within}/{each.name}") for each in inner.graph.node)
                if any(map(dequantizes, inner.graph.node)):
                    _given(inner.graph, stored)
                    yield within, read_graph(inner, path)


def _given(graph: onnx.GraphProto, stored: dict[str, onnx.TensorProto]) -> None:
    """Add what a body reads from outside."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own.update(name for node in graph.node for name in node.output)
    outside = {name for node in graph.node for name in reads(node)} - own - {""}
    for name in sorted(outside | ({value.name for value in graph.output} - own)):
        if name in stored:
            graph.initializer.append(stored[name])
        else:
            graph.input.add(name=name)
