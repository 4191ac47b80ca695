"""A torch model in an analysis: run module by module, hooked into, replayed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from torch import Tensor, nn

from granplugin.analysis.analyst import AnalyzedNetwork, EffectStep, LocalStep
from granplugin.analysis.collect import collect_resumably
from granplugin.analysis.effects import Wanted
from granplugin.analysis.figures import FigureKey
from granplugin.analysis.local import LocalErrors, held_of
from granplugin.analysis.replayed import Effects, References
from granplugin.analysis.rounded import analysis_copy, run, weights_of_calls
from granplugin.analysis.tensors import TensorErrors
from granplugin.analysis.tried import Held, RoundedNetwork
from granplugin.calibration.statistics import Need, Statistics
from granplugin.data.batches import Batch, length_of
from granplugin.measures.samples import sampled
from granplugin.network.forward import flatten_outputs
from granplugin.planning.rows import QuantizedRow
from granplugin.quant.layers import Layer
from granplugin.sources.torch_network import TorchNetwork


@dataclass(frozen=True)
class TorchAnalyst:
    """`model` is a copy that passes may hook into; `tensors` puts a batch where it is; `others` are
    the recipe's own rows of sites that are no factor of an analyzed layer's product."""

    model: nn.Module
    tensors: Callable[[Batch], dict[str, Any]]
    example: Batch
    others: Sequence[QuantizedRow]
    axes: Mapping[str, int | None]
    references: References = field(default_factory=References)

    @classmethod
    def open(cls, of: AnalyzedNetwork) -> Self:
        """That of a torch model."""
        network = cast(TorchNetwork, of.network)
        copied = analysis_copy(
            network.module(), of.others, of.layers, of.norms, network.tensors(of.example)
        )
        return cls(copied, network.tensors, of.example, of.others, of.axes)

    def held(self, layer: Layer) -> Held:
        return held_of(self.model, layer)

    def weights(self) -> Mapping[str, np.ndarray]:
        return weights_of_calls(self.model, self.others, self.tensors(self.example))

    def collect(
        self, needs: Collection[Need], batches: Iterable[Batch], kept: Path, key: str
    ) -> Statistics:
        return collect_resumably(self.model, needs, batches, self._forward, kept, key)

    def local(self, network: RoundedNetwork, wanted: frozenset[FigureKey]) -> LocalStep:
        layers = LocalErrors(self.model, list(network.tried.values()), wanted)
        tensors = TensorErrors(self.model, list(network.sites.values()), wanted)

        def step(batch: Batch) -> Mapping[FigureKey, np.ndarray]:
            samples = length_of(batch)
            with tensors.watched(samples):
                found = layers.run(lambda: self._forward(batch), samples)
            return {**found, **tensors.flush()}

        return step

    def effects(self, asked: Wanted) -> EffectStep:
        made = Effects(
            self.model, asked, self.tensors(self.example), self._outputs, self.references
        )
        return lambda batch, labels, wanted: made.run(self.tensors(batch), labels, wanted)

    def _forward(self, batch: Batch) -> Any:
        return run(self.model, self.tensors(batch))

    def _outputs(self, found: object) -> dict[str, np.ndarray]:
        """What forward returned, as far as samples can be told apart in it, with them on axis 0."""
        tensors: Mapping[str, Tensor] = flatten_outputs(found)
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        return sampled(arrays, self.axes)
