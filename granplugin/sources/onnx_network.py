"""A network that is an ONNX file: described from its graph, run by ONNX Runtime."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self, cast

import numpy as np
from onnx import helper

from granplugin.calibration.statistics import Need, Statistics, ranged
from granplugin.errors import DataError, ModelError
from granplugin.graph.read.graph import ReadGraph
from granplugin.graph.read.loading import reading
from granplugin.measures.samples import joined
from granplugin.network.norm_seen import NormSeen, norm_seen
from granplugin.network.onnx_export import export_marked
from granplugin.network.onnx_file import content_of, float_model, shaped
from granplugin.network.onnx_layers import UNSHAPED, Placed, attribute, place_layers
from granplugin.network.onnx_prepared import Prepared, Shown, nodes_behind, prepare, to_show
from granplugin.network.onnx_products import products_of
from granplugin.network.onnx_rounded import rounded
from granplugin.network.onnx_running import Running
from granplugin.network.onnx_strip import Stripped
from granplugin.network.onnx_watch import Watch
from granplugin.planning.rows import Plan
from granplugin.quant.layers import BATCH_NORMS, Layer
from granplugin.quant.site import Shape
from granplugin.recipe.loaded import Loaded, located
from granplugin.recipe.model import FileForm, OnnxModel
from granplugin.sources.described import described
from granplugin.sources.onnx_facts import Held
from granplugin.sources.protocol import Batch, FakeQuantize, NetworkFacts, Outputs, Ran
from granplugin.sources.sizes import Shapes, of_other_sizes, shapes_of, varying
from granplugin.store.keys import content_key
from granplugin.words import first

_BY_VALUES = ("NonMaxSuppression", "NonZero", "Unique", "Compress")
"""Operators whose results are as large as values of the data say."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Passed:
    """What a pass over an example of these sizes has shown."""

    sizes: Mapping[str, Shape]
    graph: Shown
    placed: Mapping[str, Placed]


class OnnxNetwork:
    """A float file. Its graph, as it is, says what there is; what runs is a prepared copy, made
    when first needed."""

    libraries = ("onnx", "onnx_ir", "onnxruntime")
    analyst = "granplugin.analysis.by_onnx:OnnxAnalyst"

    def __init__(
        self, graph: ReadGraph, stripped: Stripped | None = None, form: FileForm = FileForm()
    ) -> None:
        self.graph, self.key, self.form = graph, content_of(graph), form
        stored = {tensor.name for tensor in graph.model.graph.initializer}
        given = (value.name for value in graph.model.graph.input)
        self.input_names = tuple(name for name in given if name not in stored)
        self.open_axes = {
            value.name: {
                axis: dim.dim_param
                for axis, dim in enumerate(value.type.tensor_type.shape.dim)
                if axis and dim.dim_param
            }
            for value in graph.model.graph.input
            if value.name in self.input_names
        }
        self.notes: tuple[str, ...] = ()
        if stripped is not None:
            self.key, self.notes = content_key(self.key, "stripped"), (stripped.said,)
        with reading(graph.path):
            self._placed = {placed.layer.name: placed for placed in place_layers(graph)}
        self._seen: Passed | None = None
        self._check_open()

    @classmethod
    def open(cls, loaded: Loaded) -> Self:
        with located(loaded, "model", "onnx"):
            spec = cast(OnnxModel, loaded.recipe.model)
            file = float_model(spec.onnx, spec.strip)
            return cls(shaped(file.model, spec.onnx), file.stripped, spec.form)

    def alone(self) -> Ran:
        """What the graph tells; `open` where it leaves more lengths open than the batch's."""
        layers = self.untraced()
        return Ran(
            layers,
            products_of(self.graph, self._samples),
            open=any(
                each.varying or each.unusable == UNSHAPED or not (each.sites or each.unusable)
                for each in layers
            ),
        )

    def sample(
        self, told: Mapping[str, tuple[int, ...]]
    ) -> dict[str, tuple[tuple[int, ...], str]] | None:
        """Shape and type of one sample of each input, of those `told` as they are; None where the
        file leaves a length of another open. Raises ModelError for one that it does not take."""
        found = {}
        for name in told:
            if name not in self.input_names:
                raise ModelError(
                    f"{self.graph.path}: it has no input {name!r}; it has "
                    f"{', '.join(self.input_names)}"
                )
        for value in self.graph.model.graph.input:
            if value.name in self.input_names:
                held = value.type.tensor_type
                lengths = [dim.dim_value for dim in held.shape.dim]
                shape = told.get(value.name, tuple(lengths[1:]))
                if not all(length > 0 for length in shape):
                    return None
                found[value.name] = shape, str(helper.tensor_dtype_to_np_dtype(held.elem_type))
        return found

    def traced(self, example: Batch, most: int) -> Ran:
        ran = self._outputs_twice(example)
        outputs = tuple(described(ran, self.outputs, example, most))
        if self._prepared.opened:
            self._check_several(example, ran, {each.name: each.axis for each in outputs})
        layers = self._shown_layers(example)
        if self.form.dynamic:
            layers = varying(layers, self._shapes_of_others(example))
        sizes = {name: array.shape for name, array in example.items()}
        graph = shaped(self.graph.model, self.graph.path, sizes)
        return Ran(layers, products_of(graph, len(next(iter(example.values())))), outputs)

    @property
    def _samples(self) -> int:
        """Of the shapes that the graph tells by itself."""
        shapes = (self.graph.shape(name) for name in self.input_names)
        return next((shape[0] for shape in shapes if shape and shape[0]), 1)

    def untraced(self) -> tuple[Layer, ...]:
        return tuple(placed.layer for placed in self._placed.values())

    def facts(self, layers: Sequence[Layer], example: Batch | None = None) -> NetworkFacts:
        with reading(self.graph.path):
            return Held(self.graph, self._placed).facts(layers)

    def chosen(self, example: Batch) -> str | None:
        found = [node for node in self.graph.nodes if node.op_type in _BY_VALUES]
        if not found:
            return None
        told = first([f"{node.op_type} at node {node.name}" for node in found])
        return (
            f"what is put out depends on values of the data; it has {told}; export the part in front "
            "of it, or cut the file there (onnx.utils.extract_model)"
        )

    def outputs(self, batch: Batch) -> Outputs:
        self.running.check(batch)
        try:
            return self.running.outputs(batch)
        except ModelError as err:
            if self._prepared.opened and len(next(iter(batch.values()))) > 1:
                raise self._for_one(f"it fails ({err})") from err
            raise

    def ranges(self, layers: Sequence[Layer]) -> Mapping[str, np.ndarray]:
        return {}

    def first_norm(self, batch: Batch) -> NormSeen | None:
        graph = self.running.graph
        norm = next((node for node in graph.nodes if node.op_type in BATCH_NORMS), None)
        if norm is None or not graph.stored.keys() >= {*norm.input[3:5]}:
            return None
        mean, variance = (graph.array(name) for name in norm.input[3:5])
        if not mean.any() and (variance == 1).all():
            return None  # it was never trained
        given = norm.input[0]
        self.running.check(batch)
        found = dict(batch)
        if given not in batch:
            found = self.running.open(nodes_behind(graph, [given]), [given]).run(batch)
        return norm_seen(norm.name, found[given], mean, variance, attribute(norm, "epsilon", 1e-5))

    def collect(
        self, needs: Collection[Need], layers: Sequence[Layer], batches: Iterable[Batch]
    ) -> Statistics:
        watch: Watch | None = None
        for batch in batches:
            if watch is None:
                self.running.check(batch)
                placed = self.shown({name: array[:2] for name, array in batch.items()}).placed
                watch = Watch(self.running, placed, needs)
            watch.see(batch)
        if watch is None:
            raise DataError("there are no calibration samples")
        return watch.statistics()

    def export(self, layers: Sequence[Layer], example: Batch, path: Path) -> None:
        seen = self.shown(example)
        export_marked(seen.graph, seen.placed, layers, seen.sizes, self.form, path)

    def fake_quantize(self) -> FakeQuantize | None:
        """None: the oracle, with which each value of a file is compared, is the only judge."""
        return None

    def quantized(
        self,
        plan: Plan,
        amax: Mapping[str, np.ndarray],
        layers: Sequence[Layer],
        example: Batch,
    ) -> Callable[[Batch], Outputs]:
        seen = self.shown(example)
        rows = ranged(plan.rows, amax)
        change = rounded(seen.graph, seen.placed, rows, amax, plan.folded, when_read=True)
        outputs = list(seen.graph.outputs)
        return lambda batch: self.running.run_in_parts(
            change.nodes, outputs, change.constants, change.sizes, batch
        )

    @cached_property
    def _prepared(self) -> Prepared:
        return prepare(self.graph.model, self.graph.path)

    @cached_property
    def running(self) -> Running:
        """The prepared graph, to be run."""
        return Running(self._prepared.graph)

    def shown(self, example: Batch) -> Passed:
        """The prepared graph with the shapes of a pass over the example, and its layers."""
        sizes = {name: array.shape for name, array in example.items()}
        if self._seen is None or self._seen.sizes != sizes:
            plain = self.running.graph
            graph = Shown(plain, self.running.shapes(to_show(plain), example))
            with reading(graph.path):
                placed = {each.layer.name: each for each in place_layers(graph)}
            self._seen = Passed(sizes, graph, placed)
        return self._seen

    def _shown_layers(self, example: Batch) -> tuple[Layer, ...]:
        return tuple(placed.layer for placed in self.shown(example).placed.values())

    def _shapes_of_others(self, example: Batch) -> Shapes | None:
        """Of a pass with other sizes of the dynamic axes; None where it takes none that is tried."""
        for other in of_other_sizes(example, self.form):
            try:
                return shapes_of(self._shown_layers(other))
            except ModelError as err:
                log.debug("no pass with other sizes: %s", err)
        return None

    def _check_open(self) -> None:
        """Raises ModelError where an axis that shall be dynamic is fixed in the file."""
        for name, axes in self.form.dynamic.items():
            if name not in self.input_names:
                raise ModelError(
                    f"{self.graph.path}: it has no input {name!r}, which model.dynamic names; it has "
                    f"{', '.join(self.input_names)}"
                )
            shape = self.graph.shape(name) or ()
            for axis in axes:
                if axis >= len(shape) or shape[axis] is not None:
                    fixed = f"fixed to {shape[axis]}" if axis < len(shape) else "not there"
                    raise ModelError(
                        f"{self.graph.path}: axis {axis} of {name} is {fixed}, and model.dynamic "
                        "names it; export the file with that axis open"
                    )

    def _outputs_twice(self, example: Batch) -> Outputs:
        """The outputs; ModelError where a second pass gives others."""
        first, second = self.outputs(example), self.outputs(example)
        for name, array in first.items():
            if array.tobytes() != second[name].tobytes():
                raise ModelError(
                    f"{self.graph.path}: its output {name!r} is another each time it runs, so "
                    "nothing could be compared; export it in eval mode, without random numbers"
                )
        return first

    def _check_several(
        self, example: Batch, outputs: Outputs, axes: Mapping[str, int | None]
    ) -> None:
        """ModelError where a file for one sample computes something else of several."""
        alone = [
            self.outputs({name: x[at : at + 1] for name, x in example.items()})
            for at in range(len(next(iter(example.values()))))
        ]
        together = joined([outputs], axes)
        for name, array in joined(alone, axes).items():
            theirs = together[name]
            same = array.shape == theirs.shape and np.allclose(
                array, theirs, rtol=1e-3, atol=1e-5, equal_nan=True
            )
            if not same:
                raise self._for_one(f"output {name!r} is another than for each alone")

    def _for_one(self, why: str) -> ModelError:
        axes = ", ".join(f"{name!r}: {{0: 'batch'}}" for name in self._prepared.opened)
        return ModelError(
            f"{self.graph.path}: it was exported for one sample at a time, and with several {why}; "
            f"export it with a dynamic batch (torch.onnx.export: dynamic_axes={{{axes}}})"
        )
