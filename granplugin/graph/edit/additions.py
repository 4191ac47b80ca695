"""New nodes and constants of a graph, each with a name nobody else has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from granplugin.graph.edit.nodes import add_constant, add_made, all_nodes, unique


class Additions:
    """Adds to a graph; remembers which names are taken."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        nodes = list(all_nodes(graph))
        self.nodes = {node.name for node in nodes}
        self.values = {value.name for node in nodes for value in node.outputs}
        self.values.update(graph.initializers, (value.name for value in graph.inputs))

    def node(
        self,
        scope: str,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Mapping[str, int] = MappingProxyType({}),
        *,
        before: ir.Node | None = None,
        after: ir.Node | None = None,
    ) -> ir.Value:
        """The output of a new node `scope/op_type`, which stands before or after another, or last."""
        name = unique(f"{scope}/{op_type}", self.nodes)
        node = ir.node(op_type, inputs, attributes, name=name)
        node.outputs[0].name = unique(name, self.values)
        if before is not None:
            before.prepend(node)
        elif after is not None:
            after.append(node)
        else:
            self.graph.append(node)
        return node.outputs[0]

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        return add_constant(self.graph, unique(name, self.values), array)

    def made(
        self, name: str, shape: Sequence[int], dtype: np.dtype, make: Callable[[], np.ndarray]
    ) -> ir.Value:
        """A constant that is made whenever it is read (add_made)."""
        return add_made(self.graph, unique(name, self.values), shape, dtype, make)

    def number(self, name: str, array: np.ndarray | float, like: ir.Value) -> ir.Value:
        """A constant to compute with `like`, and so of its type (float32 where it has none)."""
        dtype = np.float32 if like.dtype is None else like.dtype.numpy()
        return self.constant(name, np.asarray(array, dtype))
