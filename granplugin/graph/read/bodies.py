"""What is quantized inside If, Loop and Scan: each body read as a graph of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx

from granplugin.graph.read.graph import ReadGraph, dequantizes, read_graph, reads
from granplugin.graph.read.loading import name_nodes


def bodies(model: onnx.ModelProto, path: Path) -> Iterator[tuple[str, ReadGraph]]:
    """Each body that has a DequantizeLinear, as a graph of its own, with the names of `body_graphs`.
    What it reads from outside is an input of it, or stored. Raises ModelError for one that is
    damaged."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for within, graph in body_graphs(model.graph.node):
        if any(map(dequantizes, graph.node)):
            inner = onnx.ModelProto(ir_version=model.ir_version, graph=graph)
            inner.opset_import.extend(model.opset_import)
            _given(inner.graph, stored)
            yield within, read_graph(inner, path)


def body_graphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[str, onnx.GraphProto]]:
    """A copy of each body of If, Loop and Scan among these nodes, those inside others included, its
    nodes named, with the names of the nodes and branches that lead there."""
    waiting = [(node, node.name) for node in nodes]
    while waiting:
        node, place = waiting.pop()
        for attribute in node.attribute:
            held = ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs)
            for graph in held:
                named = onnx.GraphProto()
                named.CopyFrom(graph)
                name_nodes(named.node)
                within = f"{place}/{attribute.name}"
                waiting.extend((each, f"{within}/{each.name}") for each in named.node)
                yield within, named


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
