"""One run's recipe, data and network: opened at once, traced only where that is not kept."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import asdict
from functools import cached_property
from itertools import chain, repeat
from typing import Any

from granplugin.calibration.statistics import Need, Statistics
from granplugin.data.batches import (
    SAME_BITS,
    Batch,
    Batches,
    calibration_sizes,
    rebatched,
    same_bits,
)
from granplugin.data.open import Role, open_data
from granplugin.data.unpadded import cut_inputs, unpadded
from granplugin.errors import DataError, ModelError
from granplugin.measures.samples import Output, output_from_json
from granplugin.planning.plan_file import text_key
from granplugin.progress import stage, track
from granplugin.quant.layers import Layer, layer_from_json, layer_to_json
from granplugin.quant.multiplications import (
    Multiplication,
    multiplication_from_json,
    multiplication_to_json,
)
from granplugin.quant.site import Shape
from granplugin.recipe.loaded import Loaded, located
from granplugin.runs.moved import moved
from granplugin.sources import open_network
from granplugin.sources.protocol import Network, Ran
from granplugin.store.keys import content_key
from granplugin.store.maker import made_by
from granplugin.store.run_folder import RunFolder

log = logging.getLogger(__name__)

LAYERS = "layers"
"""The stage whose files tell what one forward pass shows."""


class Session:
    """The recipe, data and network that all recipes of a run share."""

    def __init__(self, loaded: Loaded, run: RunFolder) -> None:
        self.run, self.loaded, self.recipe = run, loaded, loaded.recipe
        with stage("opening the network"):
            self.network: Network = open_network(loaded)
        if algorithms := any(rule.algorithm is not None for rule in loaded.recipe.rules):
            self.network = moved(copy(self))
        # What a live model is, no text says, nor what an algorithm made of one.
        told = loaded.live is None and not algorithms
        self.text_key = text_key(loaded.recipe) if told else self.key

    @property
    def key(self) -> str:
        return self.network.key

    @cached_property
    def calibration(self) -> Batches:
        calibration = open_calibration(self.loaded, self.network)
        self._check_whole(calibration, "calibration")
        return calibration

    @cached_property
    def evaluation(self) -> Batches:
        role: Role = "evaluation" if self.recipe.data.evaluation else "calibration"
        return self._data(role, self.recipe.data.batch_size)

    @cached_property
    def analysis(self) -> Batches:
        """What an analysis measures on."""
        role: Role = "analysis" if self.recipe.data.analysis else "calibration"
        return self._data(role, self.recipe.data.batch_size)

    def _data(self, role: Role, batch_size: int) -> Batches:
        data, names = self.recipe.data, self.network.input_names
        with located(self.loaded, "data", role):
            batches = open_data(
                getattr(data, role), batch_size, data.seed, role, names, self.network.open_axes
            )
        self._check_whole(batches, role)
        return batches

    def _check_whole(self, data: Batches, role: str) -> None:
        """RecipeError where a network's batch is static and the last batch would be another."""
        most, counted = self.recipe.data.batch_size, data.samples
        if self.recipe.model.form.static_batch and counted % most:
            asked = f"samples: {counted - counted % most}" if counted > most else "more of them"
            raise self.loaded.error(
                ("data", role),
                f"with model.static_batch every batch has data.batch_size samples, {most}, and "
                f"{counted} are no multiple of it; take {asked}, or another batch_size",
            )

    @cached_property
    def example(self) -> Batch:
        """Two samples: torch.export takes a batch of one for a constant. A whole batch, where the
        network's is static."""
        if self.recipe.model.form.static_batch:
            with located(self.loaded, "data", "calibration"):
                return next(iter(self._data("calibration", self.recipe.data.batch_size)))
        with located(self.loaded, "data", "calibration"):
            alone = self.recipe.data.batch_size == 1
            batch = next(iter(self._data("calibration", 2) if alone else self.calibration))
        return {name: array[:2] for name, array in batch.items()}

    @property
    def input_shapes(self) -> dict[str, Shape]:
        """Input -> its shape, with the example's batch."""
        return {name: array.shape for name, array in self.example.items()}

    @cached_property
    def input_sizes(self) -> dict[str, tuple[Shape, Shape]]:
        """Input -> the smallest and the largest sizes of its axes behind the batch: the example's,
        and of axes that are dynamic those of all data that the network runs on."""
        seen = {name: [shape[1:]] for name, shape in self.input_shapes.items()}
        if any(self.network.open_axes.values()):
            for data in (self.calibration, self.evaluation):
                for name, shapes in data.shapes().items():
                    seen[name] += shapes
        return {
            name: (tuple(map(min, *each)), tuple(map(max, *each)))
            if len(each) > 1
            else (each[0],) * 2
            for name, shapes in seen.items()
            if (each := list(dict.fromkeys(shapes)))
        }

    def made_by(self) -> str:
        """What makes contents of the network: the code of its kind, and its libraries."""
        return made_by(type(self.network).__module__, libraries=self.network.libraries)

    @cached_property
    def statistics_key(self) -> str:
        """Of ranges and histograms, whichever verb's pass over the calibration data made them."""
        makers = (type(self.network).__module__, "granplugin.analysis.collect")
        maker = made_by(*makers, libraries=self.network.libraries)
        samples, most = self.calibration.samples, self.recipe.data.batch_size
        # Where the last bits depend on it, ranges of another batch size are others.
        one_shape = all(len(shapes) == 1 for shapes in self.calibration.shapes().values())
        masks = self.recipe.data.mask
        same = not self.recipe.model.small_batches_differ or same_bits(samples, most)
        batches = [] if same and one_shape and not masks else [most]
        masked = [masks, self.network.open_axes] if masks else []
        return content_key(self.key, self.calibration.key(), maker, *batches, *masked)

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self._planned.layers

    @property
    def products(self) -> tuple[Multiplication, ...]:
        """All that the network multiplies, in layers or not."""
        return self._planned.products

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What the network puts out, in files or not."""
        return self._traced.outputs

    @property
    def axes(self) -> dict[str, int | None]:
        """Output -> the axis of its samples."""
        return {output.name: output.axis for output in self.outputs}

    @property
    def notes(self) -> list[str]:
        """What a reader must know of the network and its outputs."""
        told = [note for output in self.outputs if (note := output.note)]
        return [*self.network.notes, *told]

    @property
    def unmeasurable(self) -> str | None:
        """Why no metric can be of any output: none has its samples on an axis. None where one
        has."""
        axes = self.axes
        if not axes or any(axis is not None for axis in axes.values()):
            return None
        chosen = self.network.chosen(self.example)
        told = (
            f"no output has an axis of samples; {chosen}"
            if chosen
            else "; ".join(note for output in self.outputs if (note := output.note))
        )
        return f"nothing can be measured: {told}"

    @cached_property
    def _planned(self) -> Ran:
        """What a plan is made of: what the network tells alone, where that is all."""
        alone = self.network.alone()
        if alone is None:
            return self._traced
        if alone.open:
            with suppress(DataError):  # they are for apply to refuse
                return self._traced
        return alone

    @cached_property
    def _traced(self) -> Ran:
        example = self.example

        def traced() -> dict[str, list[Any]]:
            with located(self.loaded, "model"), stage("running the network once"):
                ran = self.network.traced(example, self.recipe.data.batch_size)
            return {
                "layers": list(map(layer_to_json, ran.layers)),
                "products": list(map(multiplication_to_json, ran.products)),
                "outputs": list(map(asdict, ran.outputs)),
            }

        dynamic = self.recipe.model.form.dynamic
        key = content_key(self.key, self.input_shapes, dynamic, self.made_by())
        kept = self.run.kept.made_json(LAYERS, key, traced)
        return Ran(
            tuple(map(layer_from_json, kept["layers"])),
            tuple(map(multiplication_from_json, kept["products"])),
            tuple(output_from_json(output) for output in kept["outputs"]),
        )

    def collect(self, needs: Collection[Need]) -> Statistics:
        """What is needed at each site, in one pass over the calibration data."""
        batches = self.calibrating("calibrating")
        with located(self.loaded, "data", "calibration"):
            return self.network.collect(needs, self.layers, batches)

    def calibrating(self, stage: str) -> Iterator[Batch]:
        """The calibration data in batches of calibration_sizes, without their padding where a mask
        tells it, with the stage's progress told."""
        most = self.recipe.data.batch_size
        count = len(calibration_sizes(self.calibration.samples, most))
        batches = track(calibration_batches(self.calibration, most), stage, count)
        return self.unpadded(batches)

    def unpadded(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, without their padding where a mask tells it."""
        masks = self.recipe.data.mask
        return self._unpadded(batches, masks) if masks else batches

    def _unpadded(self, batches: Iterable[Batch], masks: Sequence[str]) -> Iterator[Batch]:
        axes = self.network.open_axes
        with located(self.loaded, "data", "mask"):
            cut = cut_inputs(self.example, masks, axes)
            told = (f"axis {axis} of {name}" for name in cut for axis in cut[name])
            log.info("ranges are of samples without padding: %s cut", ", ".join(told))
            found = unpadded(batches, masks, axes)
            # Before the pass: while it runs, whatever the network computes is seen.
            first = next(found)
            self._try(first)

        def all_of_them() -> Iterator[Batch]:
            yield first
            with located(self.loaded, "data", "mask"):
                yield from found

        return all_of_them()

    def _try(self, batch: Batch) -> None:
        """DataError where the network takes no samples of these sizes, as it does the example's."""
        try:
            self.network.outputs(batch)
        except ModelError as err:
            shapes = ", ".join(f"{name} {list(x.shape[1:])}" for name, x in batch.items())
            raise DataError(
                f"the network takes no samples without their padding, as of {shapes}: {err}; where "
                "it takes one length alone, leave data.mask out and give samples without padding"
            ) from err


def open_calibration(loaded: Loaded, network: Network) -> Batches:
    """The calibration data of a recipe, for its network."""
    data = loaded.recipe.data
    with located(loaded, "data", "calibration"):
        return open_data(
            data.calibration,
            min(data.batch_size, SAME_BITS),
            data.seed,
            "calibration",
            network.input_names,
            network.open_axes,
        )


def calibration_batches(calibration: Batches, most: int) -> Iterator[Batch]:
    """All of the data in batches of calibration_sizes."""
    # Samples of several shapes make more batches than these sizes are.
    return rebatched(calibration, chain(calibration_sizes(calibration.samples, most), repeat(most)))
