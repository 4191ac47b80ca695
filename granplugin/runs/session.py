"""One run's recipe, data and network: opened at once, traced only where that is not kept."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import cached_property

import numpy as np

from granplugin.calibration.statistics import Need, Statistics
from granplugin.data.batches import Batch, Batches
from granplugin.data.open import open_data
from granplugin.planning.plan_file import text_key
from granplugin.progress import track
from granplugin.quant.site import Shape
from granplugin.quant.layers import Layer, layer_from_json, layer_to_json
from granplugin.quant.multiplications import (
    Multiplication,
    multiplication_from_json,
    multiplication_to_json,
    multiplications,
)
from granplugin.recipe.loaded import Loaded, located
from granplugin.sources import open_network
from granplugin.sources.protocol import Ran
from granplugin.store.keys import content_key
from granplugin.store.maker import made_by
from granplugin.store.run_folder import RunFolder

CALIBRATION_BATCH = 16
"""On a CPU, torch computes a sample's activations to the same bits in any batch of 16 or more, on
any number of threads, and to others below (modelopt_bridge.observe.batches has the measurement).
So calibration has its own batches, and scales do not depend on the recipe's batch_size."""


class Session:
    """The recipe, data and network that all recipes of a run share."""

    def __init__(self, loaded: Loaded, run: RunFolder) -> None:
        self.run, self.loaded, self.recipe = run, loaded, loaded.recipe
        self.network = open_network(loaded)
        self.text_key = text_key(loaded.recipe)

    @property
    def key(self) -> str:
        return self.network.key

    @cached_property
    def calibration(self) -> Batches:
        return self._data("calibration", CALIBRATION_BATCH)

    @cached_property
    def evaluation(self) -> Batches:
        role = "evaluation" if self.recipe.data.evaluation else "calibration"
        return self._data(role, self.recipe.data.batch_size)

    @cached_property
    def analysis(self) -> Batches:
        """What an analysis measures on: in batches at least as large as those of calibration."""
        role = "analysis" if self.recipe.data.analysis else "calibration"
        return self._data(role, max(self.recipe.data.batch_size, CALIBRATION_BATCH))

    def _data(self, role: str, batch_size: int) -> Batches:
        data, names = self.recipe.data, self.network.input_names
        with located(self.loaded, "data", role):
            return open_data(getattr(data, role), batch_size, data.seed, role, names)

    @cached_property
    def example(self) -> Batch:
        """Two samples: torch.export takes a batch of one for a constant."""
        with located(self.loaded, "data", "calibration"):
            batch = next(iter(self.calibration))
        return {name: array[:2] for name, array in batch.items()}

    @property
    def input_shapes(self) -> dict[str, Shape]:
        """Input -> its shape, with the example's batch."""
        return {name: array.shape for name, array in self.example.items()}

    def made_by(self, *libraries: str) -> str:
        """What makes contents of the network: the code of its kind, and these libraries."""
        return made_by(type(self.network).__module__, libraries=libraries)

    @cached_property
    def statistics_key(self) -> str:
        """Of ranges and histograms, whichever verb's pass over the calibration data made them."""
        makers = (type(self.network).__module__, "granplugin.analysis.collect")
        maker = made_by(*makers, libraries=("nvidia-modelopt", "torch"))
        return content_key(self.key, self.calibration.key(), maker)

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self._traced.layers

    @property
    def products(self) -> tuple[Multiplication, ...]:
        """All that the network multiplies, in layers or not."""
        return self._traced.products

    @cached_property
    def _traced(self) -> Ran:
        if not self.network.runs:
            layers = self.network.untraced()
            return Ran(layers, multiplications(layers))

        def traced() -> dict[str, list]:
            with located(self.loaded, "model"):
                found = self.network.traced(self.example)
            return {
                "layers": list(map(layer_to_json, found.layers)),
                "products": list(map(multiplication_to_json, found.products)),
            }

        key = content_key(self.key, self.input_shapes, self.made_by("torch"))
        kept = self.run.kept.made_json("layers", key, traced)
        return Ran(
            tuple(map(layer_from_json, kept["layers"])),
            tuple(map(multiplication_from_json, kept["products"])),
        )

    def collect(self, needs: Collection[Need]) -> Statistics:
        """What is needed at each site, in one pass over the calibration data."""
        count = max(self.calibration.samples // CALIBRATION_BATCH, 1)
        batches = track(whole(self.calibration), "calibrating", count)
        with located(self.loaded, "data", "calibration"):
            return self.network.collect(needs, self.layers, batches)


def whole(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Batches of CALIBRATION_BATCH samples; what is left over joins the last one."""
    held: Batch | None = None
    for batch in batches:
        if held is not None and len(next(iter(batch.values()))) < CALIBRATION_BATCH:
            held = {name: np.concatenate([held[name], batch[name]]) for name in held}
            continue
        if held is not None:
            yield held
        held = batch
    if held is not None:
        yield held
