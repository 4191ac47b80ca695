"""A file and what an engine made of it, as the checks of lint look at it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace

from granplugin.audits.ran import ran_of
from granplugin.backends.base import LayerPrecision
from granplugin.backends.engine_plan import EngineLayer
from granplugin.backends.nvidia.kernels import Kernels
from granplugin.backends.nvidia.libraries import LIBRARIES
from granplugin.capabilities import Cell, cell_promise, load_table
from granplugin.capabilities.promise import operation
from granplugin.graph.read.quantized_graph import QuantizedGraph, QuantizedOperand
from granplugin.quant.layers import Layer
from granplugin.results.audited import Finding

CHOICES = ("per_channel", "per_tensor")
"""Of a weight, beside an input of one scale."""
FLOAT = "write format: float for the layer"
"""What is always to be had."""


class Case:
    """A graph, with what several checks look up; `where` gives a site or node -> its rule's line.
    Without a plan `kernels` know of no kernel, and checks of the plan find nothing."""

    def __init__(
        self, library: str, quantized: QuantizedGraph, kernels: Kernels, where: Mapping[str, str]
    ) -> None:
        self.library, self.where = LIBRARIES[library], where
        self.table = load_table(library)
        self.found, self.kernels = quantized, kernels
        self.graph = quantized.graph
        self.by_node: dict[str, dict[str, QuantizedOperand]] = defaultdict(dict)
        for operand in quantized.operands:
            self.by_node[operand.node][operand.row.at.word] = operand
        self.results = {pair.pair.result for pair in quantized.pairs}
        self.readers: dict[str, list[QuantizedOperand]] = defaultdict(list)
        """DequantizeLinear -> what reads its result."""
        for operand in quantized.operands:
            for pair in operand.pairs:
                self.readers[pair.pair.dq.name].append(operand)
        self.dequantizes = {operand.dequantize: operand for operand in quantized.operands}
        self.layers = {layer.name: layer for layer in quantized.layers}
        self.sixteen = quantized.precision != "fp32"
        self._known: dict[int, LayerPrecision] = {}

    def find(
        self, code: str, layer: str, says: str, instead: str, bytes: int | None = None,
        role: str = "weight",
    ) -> Finding:  # fmt: skip
        """A finding at a node or site."""
        line = self.where.get(f"{layer}.{role}") or self.where.get(layer)
        return Finding(code, layer, line, says, instead, bytes)

    def wrong(
        self, code: str, layer: str, says: str, instead: str, role: str = "weight"
    ) -> Finding:
        """One of what makes the numbers wrong."""
        return replace(self.find(code, layer, says, instead, role=role), severity="wrong")

    def products(self) -> Iterator[tuple[str, dict[str, QuantizedOperand], list[EngineLayer]]]:
        """Each quantized product, its operands by role, and the kernels that multiply for it."""
        for node, operands in self.by_node.items():
            if next(iter(operands.values())).product:
                ran = [k for k in self.kernels.multiplying(node) if k.multiplies]
                yield node, operands, ran

    def ran(self, dequantize: str) -> list[LayerPrecision]:
        """In what each node that computes with the result of a DequantizeLinear has it."""
        return [self._ran(operand) for operand in self.readers[dequantize]]

    def _ran(self, operand: QuantizedOperand) -> LayerPrecision:
        """Once for each: behind a concatenation of many, one reads all of their pairs."""
        if id(operand) not in self._known:
            self._known[id(operand)] = ran_of(operand, self.kernels)
        return self._known[id(operand)]

    def native(self, layer: str, format: str, but: str = "", given: str = "per_tensor") -> str:
        """What to write for a quantized layer beside its input as it is `given` (float: weights
        alone): scales that the table has as native for its operation, other than those it has
        (`but`), or float."""
        known = self.layers.get(layer)
        choices = [
            choice
            for choice in CHOICES
            if known is not None and choice != but and self._has(known, format, choice, given)
        ]
        if not choices:
            return FLOAT
        return f"write weight: {' or '.join(choices)}, or {FLOAT.removeprefix('write ')}"

    def _has(self, layer: Layer, format: str, weight: str, given: str) -> bool:
        graph = self.found.precision
        cell = Cell(operation(layer), format, weight=weight, input=given, graph=graph)
        return cell_promise(self.table, cell).kind == "native"
