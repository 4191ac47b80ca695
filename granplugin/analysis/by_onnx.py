"""An ONNX file in an analysis: run node by node in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

import numpy as np

from granplugin.analysis.analyst import AnalyzedNetwork, EffectStep, LocalStep
from granplugin.analysis.cut import Effects
from granplugin.analysis.effects import Wanted
from granplugin.analysis.figures import FigureKey
from granplugin.analysis.node_errors import NodeErrors
from granplugin.analysis.passes import Pace, left
from granplugin.analysis.tried import Held, RoundedNetwork, factor_of
from granplugin.calibration.statistics import Need, Statistics
from granplugin.data.batches import Batch
from granplugin.errors import DataError
from granplugin.network.onnx_layers import Placed, attribute, weight_axis, weight_of
from granplugin.network.onnx_rounded import bias_of, folded_of
from granplugin.network.onnx_running import Running
from granplugin.network.onnx_watch import Watch
from granplugin.network.weight_facts import weight_facts
from granplugin.planning.rows import QuantizedRow
from granplugin.quant.layers import Layer
from granplugin.sources.onnx_network import OnnxNetwork, Passed


@dataclass(frozen=True)
class OnnxAnalyst:
    """`passed` is the file's graph as a pass over the example has shown it; `others` are the
    recipe's own rows of sites that are no factor of an analyzed layer's product."""

    running: Running
    passed: Passed
    others: Sequence[QuantizedRow]
    example: Batch
    axes: Mapping[str, int | None]

    @classmethod
    def open(cls, of: AnalyzedNetwork) -> Self:
        """That of an ONNX file."""
        network = cast(OnnxNetwork, of.network)
        return cls(network.running, network.shown(of.example), of.others, of.example, of.axes)

    def held(self, layer: Layer) -> Held:
        graph, placed = self.passed.graph, self.passed.placed[layer.name]
        weight = self._weight(placed)
        axis = weight_axis(placed.node)
        if placed.bn is None:
            facts = weight_facts(weight, None, axis, layer.groups)
            return Held(weight, (weight, bias_of(graph, placed)), None, facts)
        folded = folded_of(graph, placed)
        gamma, variance = graph.array(placed.bn.input[1]), graph.array(placed.bn.input[4])
        eps = attribute(placed.bn, "epsilon", 1e-5)
        return Held(
            weight,
            folded,
            factor_of(gamma, variance, eps, weight, axis, layer.groups),
            weight_facts(weight, folded[0], axis, layer.groups),
        )

    def weights(self) -> Mapping[str, np.ndarray]:
        constant = (row for row in self.others if row.at.constant)
        return {row.site: self._weight(self.passed.placed[row.layer]) for row in constant}

    def collect(
        self, needs: Collection[Need], batches: Iterable[Batch], kept: Path, key: str
    ) -> Statistics:
        watch, pace = Watch(self.running, self.passed.placed, needs), Pace()
        past, done = left(kept, key)

        def now() -> Statistics:
            found = watch.statistics()
            return found if past is None else past.merge(found)

        def saving(done: int) -> Callable[[], object]:
            return lambda: now().save(kept, f"{key}+{done}")

        for at, batch in enumerate(batches):
            if at >= done:
                watch.see(batch)
                pace.save(saving(at + 1))
        if not watch.samples:
            if past is None:
                raise DataError("there are no calibration samples")
            return past
        return now()

    def local(self, network: RoundedNetwork, wanted: frozenset[FigureKey]) -> LocalStep:
        return NodeErrors(self.running, self.passed, network, wanted, self.example).run

    def effects(self, asked: Wanted) -> EffectStep:
        return Effects(self.running, self.passed, asked, self.axes, self.example).run

    def _weight(self, placed: Placed) -> np.ndarray:
        weight = weight_of(self.passed.graph, placed.node)
        assert weight is not None, f"{placed.layer.name} has a weight"
        return np.ascontiguousarray(weight)
