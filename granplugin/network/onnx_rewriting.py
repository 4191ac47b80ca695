"""Nodes of a file in another form: what stands in place of one, under its own name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from granplugin.graph.read.graph import ReadGraph


@dataclass(slots=True, eq=False)
class InPlace:
    """The nodes in place of one, and the constants that they read; no name is one of those `taken`."""

    name: str
    taken: set[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    products: int = 0

    def node(self, op_type: str, reads: Sequence[str], **attributes: object) -> str:
        """What it puts out. It is beside the product: no node is called <layer>/<OpType> but what
        is computed for the layer."""
        name = self._free(f"{self.name}/{op_type.lower()}")
        made = helper.make_node(op_type, reads, [name], name=name, **attributes)
        self.nodes.append(made)
        return name

    def product(self, first: str, second: str) -> str:
        """A MatMul, the first of which has this name; others are called <name>_1, ..."""
        out = self.node("MatMul", [first, second])
        count, self.products = self.products, self.products + 1
        self.nodes[-1].name = self.name if not count else self._free(f"{self.name}_{count}")
        return out

    def number(self, value: int | float | Sequence[int], kind: type[np.generic]) -> str:
        name = self._free(f"{self.name}/constant")
        self.constants.append(numpy_helper.from_array(np.array(value, kind), name))
        return name

    def _free(self, base: str) -> str:
        name, count = base, 0
        while name in self.taken:
            count += 1
            name = f"{base}_{count}"
        self.taken.add(name)
        return name


def rewrite(graph: ReadGraph, one: Callable[[ReadGraph, onnx.NodeProto, InPlace], bool]) -> None:
    """Puts, in the graph's model, what `one` makes of a node in its place, the last of it putting out
    what the node did; nodes of which it makes nothing (False) stay."""
    given = (value.name for value in graph.model.graph.input)
    taken = {*graph.named, *graph.stored, *graph.producer, *given}
    nodes: list[onnx.NodeProto] = []
    for node in graph.model.graph.node:
        made = InPlace(node.name, taken)
        if node.domain not in ("", "ai.onnx") or not one(graph, node, made):
            nodes.append(node)
            continue
        made.nodes[-1].output[0] = node.output[0]
        nodes += made.nodes
        graph.model.graph.initializer.extend(made.constants)
    del graph.model.graph.node[:]
    graph.model.graph.node.extend(nodes)
