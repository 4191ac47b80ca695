"""What an ONNX file's layers hold, and what in it is no layer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from granplugin.graph.read.graph import ReadGraph
from granplugin.network.onnx_file import is_float
from granplugin.network.onnx_layers import Placed, folded_weight, weight_axis, weight_of
from granplugin.network.weight_facts import WeightFacts, weight_facts
from granplugin.quant.layers import BATCH_NORMS, Layer
from granplugin.sources.protocol import LayerFacts, NetworkFacts, Unsited


class Held:
    """Parameters are the floats that the file stores and that meet data in a node, but for single
    numbers and a batch norm's statistics."""

    def __init__(self, graph: ReadGraph, placed: Mapping[str, Placed]) -> None:
        self.graph, self._placed = graph, placed

    def facts(self, layers: Sequence[Layer]) -> NetworkFacts:
        """Of the file and of these layers. Raises ModelError where constants are damaged."""
        held = {name: self._held(placed) for name, placed in self._placed.items()}
        own = set().union(*held.values())
        sited = {node.name for placed in self._placed.values() for node in placed.nodes}
        others: dict[str, list[int]] = defaultdict(list)
        for node in self.graph.nodes:
            if node.name not in sited and not self.graph.fixed.issuperset(node.output):
                found = self._stored(node.input) - own
                own |= found
                if found:
                    others[node.op_type].append(self._count(found))
        return NetworkFacts(
            self._count(own),
            {
                layer.name: LayerFacts(self._count(held[layer.name]), self._weight_facts(layer))
                for layer in layers
            },
            tuple(Unsited(op, len(counts), sum(counts)) for op, counts in others.items()),
        )

    def _weight_facts(self, layer: Layer) -> WeightFacts | None:
        placed = self._placed[layer.name]
        weight = weight_of(self.graph, placed.node) if layer.shape("weight") else None
        if weight is None:
            return None
        folded = folded_weight(self.graph, placed)
        return weight_facts(weight, folded, weight_axis(placed.node), layer.groups)

    def _held(self, placed: Placed) -> set[str]:
        if placed.layer.type in BATCH_NORMS:
            return self._stored(placed.node.input[1:3])
        return self._stored(name for node in placed.nodes for name in node.input)

    def _stored(self, names: Iterable[str]) -> set[str]:
        """The stored tensors of floats that these tensors, as far as no data changes them, are made
        of."""
        found: set[str] = set()
        seen: set[str] = set()
        waiting = [*names]
        while waiting:
            name = waiting.pop()
            if not name or name in seen or name not in self.graph.fixed:
                continue
            seen.add(name)
            if name not in self.graph.stored:
                waiting += self.graph.producer[name].input
            elif is_float(self.graph.stored[name].data_type) and self._count([name]) > 1:
                found.add(name)
        return found

    def _count(self, names: Iterable[str]) -> int:
        return sum(math.prod(self.graph.stored[name].dims) for name in names)
