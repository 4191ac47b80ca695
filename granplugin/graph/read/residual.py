"""Which add a layer's result meets."""

from __future__ import annotations

import heapq

import onnx

from granplugin.graph.read.graph import ReadGraph
from granplugin.quant.layers import ONNX_PRODUCTS


def residual_add(graph: ReadGraph, product: onnx.NodeProto) -> tuple[onnx.NodeProto, str] | None:
    """The first Add of what is computed from this node alone with something else, and the name of
    that; None where a layer comes first, or the end."""
    own = {product.output[0]}
    waiting = {graph.at[node.name] for node in graph.readers(product.output[0])}
    ordered = sorted(waiting)
    while ordered:
        # In the file's order: whatever of it is computed before has been seen.
        node = graph.nodes[heapq.heappop(ordered)]
        foreign = set(node.input) - own - graph.fixed - graph.run_time_scales
        if node.op_type == "Add" and len(foreign) == 1:
            return node, foreign.pop()
        if foreign or node.op_type in ONNX_PRODUCTS:
            continue
        own.update(node.output)
        for reader in (reader for name in node.output for reader in graph.readers(name)):
            if graph.at[reader.name] not in waiting:
                waiting.add(graph.at[reader.name])
                heapq.heappush(ordered, graph.at[reader.name])
    return None
