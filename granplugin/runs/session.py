"""One run's model and data: built at once, traced and converted only where that is not kept."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

import granplugin
from granplugin.network.batch_norms import fold_batch_norms
from granplugin.data.batches import Batch, Batches
from granplugin.data.open import open_data
from granplugin.errors import DataError, ModelError
from granplugin.quant.layers import Layer, layer_from_json, layer_to_json
from granplugin.network.models import build_model, device, input_names, model_key
from granplugin.planning.plan import Plan
from granplugin.progress import track
from granplugin.recipe.loaded import Loaded
from granplugin.store.run_folder import RunFolder
from granplugin.store.keys import content_key
from granplugin.planning.plan_file import text_key
from granplugin.calibration.statistics import Need, Statistics
from granplugin.network.forward import call
from granplugin.network.trace import Traced, trace

log = logging.getLogger(__name__)

CALIBRATION_BATCH = 16
"""On a CPU, torch computes a sample's activations to the same bits in any batch of 16 or more, on
any number of threads, and to others below (modelopt_bridge.observe.batches has the measurement).
So calibration has its own batches, and scales do not depend on the recipe's batch_size."""


class Session:
    """The model and data that all recipes of a run share."""

    def __init__(self, loaded: Loaded, run: RunFolder) -> None:
        self.run, self.loaded = run, loaded
        self.recipe = recipe = loaded.recipe
        with located(loaded, "device"):
            where = device(recipe.device)
        with located(loaded, "model", "callable"):
            self.model = build_model(recipe.model, where)
        self.converted: Any = None
        self.key = model_key(recipe.model, self.model)
        self.text_key = text_key(recipe)

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        return input_names(self.model)

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
        data = self.recipe.data
        with located(self.loaded, "data", role):
            return open_data(getattr(data, role), batch_size, data.seed, role, self.input_names)

    @cached_property
    def example(self) -> dict[str, Any]:
        """Two samples: torch.export takes a batch of one for a constant."""
        with located(self.loaded, "data", "calibration"):
            batch = next(iter(self.calibration))
        return self.tensors({name: array[:2] for name, array in batch.items()})

    def tensors(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """A batch where the model is."""
        where = next(self.model.parameters(), torch.empty(0)).device
        return {name: torch.as_tensor(array).to(where) for name, array in batch.items()}

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        def traced() -> list[dict]:
            with located(self.loaded, "model"):
                return [layer_to_json(layer) for layer in trace(self.model, self.example).layers]

        shapes = {name: tuple(tensor.shape) for name, tensor in self.example.items()}
        key = content_key(self.key, shapes, granplugin.__version__)
        return tuple(map(layer_from_json, self.run.made_json("layers", key, traced)))

    def convert(self, needs: Collection[Need]) -> Statistics:
        """Convert the model with modelopt, collecting `needs` in one pass over the data."""
        # Importing modelopt takes 7 s, and most second runs need no conversion.
        from granplugin import modelopt_bridge

        loop = self.forward_loop if needs else lambda model: None
        with located(self.loaded, "data", "calibration"):
            skips = [layer.name for layer in self.layers if layer.skip_shape]
            self.converted, seen = modelopt_bridge.convert(self.model, needs, loop, skips)
        return seen

    def quantized(self, plan: Plan, amax: Mapping[str, np.ndarray]) -> Any:
        """A variant as modelopt computes it: a copy of the converted model, batch norms folded
        with the proof that outputs did not change, then its quantizers set."""
        from granplugin import modelopt_bridge

        if self.converted is None:
            self.convert(())
        # A recurrent layer holds this module, of which there is no copy.
        model = copy.deepcopy(self.converted, {id(torch._VF): torch._VF})
        norms = {layer.name: layer.bn for layer in self.layers if layer.bn}
        with located(self.loaded, "model"):
            fold_batch_norms(model, Traced(self.layers, norms, {}, {}), plan.folded, self.example)
        rows = [replace(r, bn=None) for r in plan.quantized if r.site in amax or r.dynamic]
        modelopt_bridge.load_amax(model, rows, amax)
        return model

    def forward_loop(self, model: Any) -> None:
        """Run the model over the calibration data."""
        count = max(self.calibration.samples // CALIBRATION_BATCH, 1)
        for batch in track(whole(self.calibration), "calibrating", count):
            call(model, self.tensors(batch))


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


@contextmanager
def located(loaded: Loaded, *location: str) -> Iterator[None]:
    """What goes wrong with a section of the recipe is said at its line."""
    try:
        yield
    except (ModelError, DataError) as err:
        mark = loaded.mark(*location)
        if str(err).startswith(f"{mark.file}:"):
            raise
        raise type(err)(f"{mark}: {err}") from err
