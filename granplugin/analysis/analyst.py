"""Who runs a network for an analysis: each kind of source names its own (Network.analyst), which is
imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np

from granplugin.analysis.effects import Wanted
from granplugin.analysis.figures import FigureKey
from granplugin.analysis.questions import Questions
from granplugin.analysis.tried import Held, RoundedNetwork
from granplugin.calibration.statistics import Need, Statistics
from granplugin.data.batches import Batch
from granplugin.quant.layers import Layer
from granplugin.runs.session import Session

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


def analyst_of(session: Session) -> str:
    """The module that has the analyst of a session's network."""
    return session.network.analyst.partition(":")[0]


def open_analyst(session: Session, questions: Questions) -> Analyst:
    """That of a session's network."""
    name = session.network.analyst.partition(":")[2]
    opened: Analyst = getattr(import_module(analyst_of(session)), name).open(session, questions)
    return opened
