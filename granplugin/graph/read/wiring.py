"""What leads where in an ONNX graph, and which add a layer's result meets."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class Wiring:
    """`producer` and `readers` of each tensor; `fixed` are those that do not depend on the values
    of an input; `at` is a node's place in the file."""

    def __init__(
        self, graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto] | None = None
    ) -> None:
        """`nodes` stand in for those of the graph."""
        self.nodes = list(graph.node if nodes is None else nodes)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.outputs = {value.name for value in graph.output}
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self.at = {node.name: at for at, node in enumerate(self.nodes)}
        self.fixed = set(self.constants) | {""}
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)
            # A shape says nothing of the values.
            if node.op_type in ("Shape", "Size") or self.fixed.issuperset(node.input):
                self.fixed.update(node.output)

    def array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.constants[name])


def run_time_scale(producer: Mapping[str, onnx.NodeProto], name: str) -> bool:
    """Whether a tensor is an input's scale of run time, by which products are multiplied."""
    node = producer.get(name)
    while node is not None and node.op_type == "Cast":
        node = producer.get(node.input[0])
    scope = "" if node is None else node.name.rpartition("/")[0]
    return scope.endswith(".input") and node.op_type == "Max"


def residual_add(graph: Wiring, product: onnx.NodeProto) -> tuple[onnx.NodeProto, str] | None:
    """The first Add of what is computed from this node alone with something else, and the name of
    that; None where a layer comes first, or the end."""
    own = {product.output[0]}
    waiting = {graph.at[node.name] for node in graph.readers[product.output[0]]}
    ordered = sorted(waiting)
    while ordered:
        # In the file's order: whatever of it is computed before has been seen.
        node = graph.nodes[heapq.heappop(ordered)]
        foreign = set(node.input) - own - graph.fixed
        foreign = {name for name in foreign if not run_time_scale(graph.producer, name)}
        if node.op_type == "Add" and len(foreign) == 1:
            return node, foreign.pop()
        if foreign or node.op_type in PRODUCTS:
            continue
        own.update(node.output)
        for reader in (reader for name in node.output for reader in graph.readers[name]):
            if graph.at[reader.name] not in waiting:
                waiting.add(graph.at[reader.name])
                heapq.heappush(ordered, graph.at[reader.name])
    return None
