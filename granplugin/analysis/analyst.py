"""Who runs a network for an analysis: each kind of source names its own (Network.analyst), which is
imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from granplugin.analysis.effects import Wanted
from granplugin.analysis.figures import FigureKey
from granplugin.analysis.questions import Questions
from granplugin.analysis.tried import Held, RoundedNetwork
from granplugin.calibration.statistics import Need, Statistics
from granplugin.data.batches import Batch
from granplugin.planning.rows import QuantizedRow
from granplugin.quant.layers import Layer
from granplugin.recipe.loaded import Loaded
from granplugin.runs.session import Session
from granplugin.sources import open_network
from granplugin.sources.protocol import Network

PEAK = "peak"
"""`<layer>.peak` is the largest |x| of each sample of the layer's input, as a tensor (n, 1)."""

LocalStep = Callable[[Batch], Mapping[FigureKey, np.ndarray]]
EffectStep = Callable[[Batch, np.ndarray | None, frozenset[str]], Mapping[str, np.ndarray]]


class Analyst(Protocol):
    """A float network, as an analysis looks into it; each raises ModelError where it cannot run."""

    def held(self, layer: Layer) -> Held:
        """What the network holds of a layer with a weight."""

    def weights(self) -> Mapping[str, np.ndarray]:
        """Site -> weight (float32), of those that are sites of their own."""

    def collect(
        self, needs: Collection[Need], batches: Iterable[Batch], kept: Path, key: str
    ) -> Statistics:
        """What is needed at each site, over all batches; `kept` is where an interrupted pass for
        the same `key` was last saved. Raises ModelError naming the first layer that saw NaN or
        Inf."""

    def local(self, network: RoundedNetwork, wanted: frozenset[FigureKey]) -> LocalStep:
        """What measures these local errors of a batch: of each the figure, SUMS sums, then the
        signal and the error of each channel. Raises ModelError where an output is not finite."""

    def effects(self, asked: Wanted) -> EffectStep:
        """What measures the named effects of a batch with these labels (effects.compare)."""


@dataclass(frozen=True, eq=False)
class AnalyzedNetwork:
    """The float network of an analysis. Its pickle has the recipe, which opens the network again in
    the process that a task is taken to. `others` are the recipe's own rows of sites that are no
    factor of an analyzed layer's product; `norms` has by call the batch norm that the recipe folds
    into it; `axes` tell where outputs have their samples."""

    network: Network
    loaded: Loaded
    layers: tuple[Layer, ...]
    others: tuple[QuantizedRow, ...]
    norms: Mapping[str, str]
    example: Batch
    axes: Mapping[str, int | None]

    @cached_property
    def analyst(self) -> Analyst:
        """Who runs it. Raises ModelError where it cannot run."""
        _, _, name = self.network.analyst.partition(":")
        opened: Analyst = getattr(import_module(analyst_of(self.network)), name).open(self)
        return opened

    def __reduce__(self) -> tuple[Callable[..., AnalyzedNetwork], tuple[object, ...]]:
        rest = self.layers, self.others, self.norms, self.example, self.axes
        return _reopened, (self.loaded, *rest)


def _reopened(loaded: Loaded, *rest: Any) -> AnalyzedNetwork:
    return AnalyzedNetwork(open_network(loaded), loaded, *rest)


def analyst_of(network: Network) -> str:
    """The module that has a network's analyst."""
    return network.analyst.partition(":")[0]


def analyzed_network(session: Session, questions: Questions) -> AnalyzedNetwork:
    """That of a session."""
    calls = {layer.name for layer in session.layers if layer.call}
    norms = {
        row.layer: row.bn_name
        for row in questions.plan.rows
        if row.layer in calls and row.bn == "fold" and row.bn_name
    }
    return AnalyzedNetwork(
        session.network,
        session.loaded,
        session.layers,
        questions.others,
        norms,
        session.example,
        session.axes,
    )
