"""What stages need of a network, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np

from granplugin.calibration.statistics import Need, Statistics
from granplugin.measures.samples import Output
from granplugin.network.weight_facts import WeightFacts
from granplugin.planning.rows import Plan
from granplugin.quant.layers import Layer
from granplugin.quant.multiplications import Multiplication
from granplugin.recipe.loaded import Loaded

if TYPE_CHECKING:
    from torch import nn

    from granplugin.network.first_norm import NormSeen

Batch = Mapping[str, np.ndarray]
"""Input -> array with the samples on axis 0."""
Outputs = dict[str, np.ndarray]
"""Output -> array, with the samples where `Ran.outputs` says; on axis 0 where it says nothing."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What one pass shows: the layers, in the order they run, all that is multiplied, and the
    outputs, as far as they were looked at."""

    layers: tuple[Layer, ...]
    products: tuple[Multiplication, ...]
    outputs: tuple[Output, ...] = ()


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


class Described(Protocol):
    """A float network of which the recipe is, as far as plan and inspect need it."""

    runs: ClassVar[bool]
    """Whether it is a Network too; if not, `untraced` has all that can be told of its layers."""
    key: str
    """A hash of everything its outputs depend on, the same in every process."""

    @classmethod
    def open(cls, loaded: Loaded) -> Self:
        """The recipe's network. Raises ModelError, at the recipe's line."""

    def untraced(self) -> tuple[Layer, ...]:
        """The layers, as far as they can be told without running it."""

    def facts(self, layers: Sequence[Layer]) -> NetworkFacts:
        """What these layers, and what is no layer, hold."""


class Network(Described, Protocol):
    """One that runs; everything but its class is said in arrays, files and values. An `example` is
    one small batch, of two samples or more."""

    input_names: tuple[str, ...]
    """What it takes; empty where it takes any name."""

    def traced(self, example: Batch, most: int) -> Ran:
        """The layers and what reads what, and the products; at most `most` samples, or those of the
        example, go in at once. Raises ModelError, DataError."""

    def outputs(self, batch: Batch) -> Outputs:
        """The float outputs. Raises ModelError with what running it raised."""

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
        """A copy with the plan's choices set, batch norms folded, as modelopt computes it; sites
        without an amax that are not dynamic stay float. Raises ModelError."""

    def module(self) -> nn.Module:
        """The network as torch runs it, for what looks at it module by module (analyze). Raises
        ModelError where it is none."""

    def tensors(self, batch: Batch) -> dict[str, Any]:
        """A batch where the module is, by argument of its forward."""
