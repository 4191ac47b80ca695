"""What stages need of a network, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

import numpy as np

from granplugin.calibration.statistics import Need, Statistics
from granplugin.measures.samples import Output
from granplugin.network.weight_facts import WeightFacts
from granplugin.planning.rows import Plan, QuantizedRow
from granplugin.quant.layers import Layer
from granplugin.quant.multiplications import Multiplication
from granplugin.recipe.loaded import Loaded

if TYPE_CHECKING:
    from granplugin.network.norm_seen import NormSeen

Batch = Mapping[str, np.ndarray]
"""Input -> array with the samples on axis 0."""
FakeQuantize = Callable[[np.ndarray, QuantizedRow, np.ndarray | None], np.ndarray]
"""A tensor, its row and the row's amax, None for a dynamic one -> the tensor rounded."""
Outputs = dict[str, np.ndarray]
"""Output -> array, with the samples where `Ran.outputs` says; on axis 0 where it says nothing."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What one pass shows: the layers, in the order they run, all that is multiplied, and the
    outputs, as far as they were looked at. `open`: lengths are not known that a pass would show."""

    layers: tuple[Layer, ...]
    products: tuple[Multiplication, ...]
    outputs: tuple[Output, ...] = ()
    open: bool = False


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What a layer holds: `parameters` are its own, bias included; `weight` where it has one."""

    parameters: int
    weight: WeightFacts | None


@dataclass(frozen=True, slots=True)
class Unsited:
    """Parts of one type that hold parameters and always stay float: embeddings, recurrences."""

    type: str
    modules: int
    parameters: int


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """What a network holds: `parameters` counts each once, `layers` are by name."""

    parameters: int
    layers: Mapping[str, LayerFacts]
    others: tuple[Unsited, ...]


class Network(Protocol):
    """A float network of which the recipe is; everything but its class is said in arrays, files and
    values. An `example` is one small batch, of two samples or more."""

    libraries: ClassVar[tuple[str, ...]]
    """The distributions that compute what is asked of it."""
    analyst: ClassVar[str]
    """The class that runs it for an analysis (analysis.analyst.Analyst), as module:name."""
    key: str
    """A hash of everything its outputs depend on, the same in every process."""
    notes: tuple[str, ...]
    """What was done to make it a float network, for the reader of a plan or report."""

    @classmethod
    def open(cls, loaded: Loaded) -> Self:
        """The recipe's network. Raises ModelError, at the recipe's line."""

    def alone(self) -> Ran | None:
        """What it tells without running; None where only a pass shows what reads what."""

    def untraced(self) -> tuple[Layer, ...]:
        """The layers, as far as they can be told without running it."""

    def facts(self, layers: Sequence[Layer], example: Batch | None = None) -> NetworkFacts:
        """What these layers, and what is no layer, hold; with an example also of weights that the
        network computes."""

    input_names: tuple[str, ...]
    """What it takes; empty where it takes any name."""
    open_axes: Mapping[str, Mapping[int, str]]
    """Input -> axis behind the batch's, of those that may have any length -> its name."""

    def traced(self, example: Batch, most: int) -> Ran:
        """The layers and what reads what, and the products; at most `most` samples, or those of the
        example, go in at once. Raises ModelError, DataError."""

    def chosen(self, example: Batch) -> str | None:
        """What in it chooses by values of the data what is put out, and the way out; None where
        nothing does."""

    def outputs(self, batch: Batch) -> Outputs:
        """The float outputs. Raises ModelError with what running it raised."""

    def ranges(self, layers: Sequence[Layer]) -> Mapping[str, np.ndarray]:
        """Site -> the amax grid that the network came with, of the layers' `given`. Raises
        ModelError."""

    def first_norm(self, batch: Batch) -> NormSeen | None:
        """What the first batch norm gets of a batch, beside what it got in training; None where
        there is none that tells."""

    def collect(
        self, needs: Collection[Need], layers: Sequence[Layer], batches: Iterable[Batch]
    ) -> Statistics:
        """What is needed at each site, in one float pass over the batches. Raises ModelError."""

    def export(self, layers: Sequence[Layer], example: Batch, path: Path) -> None:
        """Write the float ONNX with a marker at each site (granplugin.network.export). Raises
        ModelError."""

    def quantized(
        self,
        plan: Plan,
        amax: Mapping[str, np.ndarray],
        layers: Sequence[Layer],
        example: Batch,
    ) -> Callable[[Batch], Outputs]:
        """A copy with the plan's choices set, batch norms folded, computed by another than what
        writes and runs the Q/DQ file: modelopt, or the oracle's arithmetic. Sites without an amax
        that are not dynamic stay float. Raises ModelError."""

    def fake_quantize(self) -> FakeQuantize | None:
        """Who rounds, besides the oracle, what a Q/DQ file's sites are compared with."""
