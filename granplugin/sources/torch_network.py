"""A network that the user's callable makes: a torch module, converted by modelopt when needed."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import nn

from granplugin.calibration.statistics import Need, Statistics, ranged
from granplugin.errors import UserError
from granplugin.measures.samples import Output
from granplugin.network.batch_norms import fold_batch_norms
from granplugin.network.carried import check_carried
from granplugin.network.changed_linear import Change, with_changed
from granplugin.network.copying import copy_of
from granplugin.network.export import export_float
from granplugin.network.first_norm import first_norm
from granplugin.network.forward import call, flatten_outputs
from granplugin.network.models import build_model, device, input_names, model_key
from granplugin.network.modules import Stored, stored, untraced, weight_of
from granplugin.network.nested import hold_inputs, nested
from granplugin.network.norm_seen import NormSeen
from granplugin.network.repeatable import check_repeatable
from granplugin.network.taken import Quantizers, take
from granplugin.network.trace import Traced, trace
from granplugin.network.unexportable import chosen_by_values
from granplugin.planning.rows import Plan, QuantizedRow
from granplugin.quant.layers import Layer
from granplugin.recipe.algorithms import Algorithm
from granplugin.recipe.loaded import Loaded, located
from granplugin.recipe.model import CallableModel, FileForm
from granplugin.sources.described import described
from granplugin.sources.protocol import (
    Batch,
    FakeQuantize,
    LayerFacts,
    NetworkFacts,
    Outputs,
    Ran,
    Unsited,
)
from granplugin.sources.sizes import of_other_sizes, shapes_of, varying
from granplugin.store.keys import content_key

log = logging.getLogger(__name__)


class TorchNetwork:
    """A module on its device. What modelopt makes of it is made once, when first needed: importing
    modelopt takes 7 s, and most second runs need no conversion."""

    libraries: ClassVar[tuple[str, ...]] = (
        "nvidia-modelopt",
        "torch",
        "onnx",
        "onnx_ir",
        "onnxscript",
    )
    analyst: ClassVar[str] = "granplugin.analysis.by_torch:TorchAnalyst"

    def __init__(
        self,
        model: nn.Module,
        key: str,
        form: FileForm = FileForm(),
        quantizers: Quantizers | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.model, self.form, self._quantizers, self.notes = model, form, quantizers, notes
        self.key = key if quantizers is None else content_key(key, quantizers.key)
        hold_inputs(model)
        self.input_names, self.open_axes = input_names(model), form.dynamic
        self._converted: nn.Module | None = None

    @classmethod
    def open(cls, loaded: Loaded) -> Self:
        spec = cast(CallableModel, loaded.recipe.model)
        with located(loaded, "device"):
            where = device(loaded.recipe.device)
        with located(loaded, "model", "callable"):
            model, quantizers = build_model(spec, where, _take_apart, loaded.live)
        return cls(model, model_key(spec, model), spec.form, quantizers)

    def alone(self) -> None:
        """None: only a pass shows the order, the shapes and what reads what."""
        return None

    def traced(self, example: Batch, most: int) -> Ran:
        traced = trace(self.model, self.tensors(example))
        check_carried(traced.values, traced.inputs)
        check_repeatable(self.model, self.tensors(example), traced.values)
        layers = self._varying(traced.layers, example) if self.form.dynamic else traced.layers
        if self._quantizers is not None:
            layers, _ = take(self._quantizers, layers, partial(weight_of, self.model))
        outputs = {name: tensor.detach().cpu().numpy() for name, tensor in traced.values.items()}
        return Ran(
            layers,
            traced.products,
            (
                *described(outputs, self.outputs, example, most),
                *(Output(name, kind, None, None) for name, kind in traced.left_out.items()),
            ),
        )

    def ranges(self, layers: Sequence[Layer]) -> Mapping[str, np.ndarray]:
        return (
            {}
            if self._quantizers is None
            else take(self._quantizers, layers, partial(weight_of, self.model))[1]
        )

    def _varying(self, layers: tuple[Layer, ...], example: Batch) -> tuple[Layer, ...]:
        """The layers, varying where they see other shapes with other sizes of the dynamic axes; all
        of them where the model takes no other that is tried."""
        shapes = None
        for other in of_other_sizes(example, self.form):
            try:
                shapes = shapes_of(trace(self.model, self.tensors(other)).layers)
                break
            except UserError as err:
                log.debug("no pass with other sizes: %s", err)
        return varying(layers, shapes)

    def untraced(self) -> tuple[Layer, ...]:
        return untraced(self.model)

    def facts(self, layers: Sequence[Layer], example: Batch | None = None) -> NetworkFacts:
        computed: Mapping[str, Stored] = {}
        called = {name for layer in layers for name in layer.parameters}
        if example is not None and any(map(_is_computed, layers)):
            traced = trace(self.model, self.tensors(example))
            computed = traced.computed
            # Of several matrices in one parameter each is a layer's weight.
            names = {layer.name for layer in layers}
            multiplied = [each for each in traced.products if each.place in names]
            called |= {name for each in multiplied for name, _ in each.weights}
        known = {layer.name: self._facts(layer, computed.get(layer.name)) for layer in layers}
        others: dict[str, list[int]] = defaultdict(list)
        for name, module in self.model.named_modules():
            own = {
                f"{name}.{key}".lstrip("."): p for key, p in module.named_parameters(recurse=False)
            }
            count = sum(p.numel() for key, p in own.items() if key not in called)
            if name not in known and count:
                others[type(module).__name__].append(count)
        return NetworkFacts(
            sum(parameter.numel() for parameter in self.model.parameters()),
            known,
            tuple(Unsited(cls, len(counts), sum(counts)) for cls, counts in others.items()),
        )

    def _facts(self, layer: Layer, computed: Stored | None) -> LayerFacts:
        bn = self.model.get_submodule(layer.bn) if layer.bn else None
        held = computed or (stored(self.model, layer) if layer.site("weight") else None)
        module = dict(self.model.named_modules()).get(layer.name)
        if module is not None:
            own = _parameters(module)
        else:
            own = sum(self.model.get_parameter(name).numel() for name in layer.parameters)
        return LayerFacts(own, None if held is None else held.facts(bn))

    def chosen(self, example: Batch) -> str | None:
        return chosen_by_values(self.model, self.tensors(example))

    def outputs(self, batch: Batch) -> Outputs:
        return self._outputs(self.model, batch)

    def first_norm(self, batch: Batch) -> NormSeen | None:
        return first_norm(self.model, self.tensors(batch))

    def collect(
        self, needs: Collection[Need], layers: Sequence[Layer], batches: Iterable[Batch]
    ) -> Statistics:
        from granplugin import modelopt_bridge

        def loop(model: nn.Module) -> None:
            for batch in batches:
                call(model, self.tensors(batch))

        self._converted, seen = modelopt_bridge.convert(self.model, needs, loop, layers)
        return seen

    def moved(
        self,
        rows: Sequence[QuantizedRow],
        algorithm: Algorithm,
        batches: Callable[[], Iterable[Batch]],
    ) -> dict[str, dict[str, np.ndarray]]:
        """Linear layer -> the tensors of a Change, by name, as an algorithm of modelopt's chose them
        for these rows and batches, of which it takes more than one pass. Raises ModelError."""
        from granplugin.modelopt_bridge.algorithms import moved

        def loop(model: nn.Module) -> None:
            for batch in batches():
                call(model, self.tensors(batch))

        found = moved(self.model, rows, algorithm.told, loop)
        return {
            name: {
                part.name: tensor.detach().float().cpu().numpy()
                for part in fields(change)
                if (tensor := getattr(change, part.name)) is not None
            }
            for name, change in found.items()
        }

    def with_moved(
        self, layers: Mapping[str, Mapping[str, np.ndarray]], key: str, notes: Sequence[str]
    ) -> TorchNetwork:
        """The network with what `moved` found in place: the same outputs, under another key."""
        found = {
            name: Change(**{part: torch.from_numpy(array) for part, array in parts.items()})
            for name, parts in layers.items()
        }
        model = with_changed(self.model, found)
        return TorchNetwork(model, key, self.form, notes=(*self.notes, *notes))

    def export(self, layers: Sequence[Layer], example: Batch, path: Path) -> None:
        from granplugin import modelopt_bridge

        converted = self._convert(layers)
        with modelopt_bridge.marked(converted):
            export_float(converted, self.tensors(example), path, form=self.form)

    def quantized(
        self,
        plan: Plan,
        amax: Mapping[str, np.ndarray],
        layers: Sequence[Layer],
        example: Batch,
    ) -> Callable[[Batch], Outputs]:
        """The proof that folding did not change outputs is part of it (fold_batch_norms)."""
        from granplugin import modelopt_bridge

        # Folding puts in parameters of its own, and quantizers change none.
        model = copy_of(self._convert(layers), sharing=True)
        norms = {layer.name: layer.bn for layer in layers if layer.bn}
        traced = Traced(tuple(layers), norms, {}, {})
        fold_batch_norms(model, traced, plan.folded, self.tensors(example))
        rows = [replace(row, bn=None) for row in ranged(plan.rows, amax)]
        modelopt_bridge.load_amax(model, rows, amax, passing=True)
        return lambda batch: self._outputs(model, batch)

    def fake_quantize(self) -> FakeQuantize | None:
        from granplugin.modelopt_bridge import fake_quantize

        return fake_quantize

    def module(self) -> nn.Module:
        return self.model

    def tensors(self, batch: Batch) -> dict[str, Any]:
        """A batch where the model is, by argument of forward."""
        where = next(self.model.parameters(), torch.empty(0)).device
        return nested({name: torch.as_tensor(array).to(where) for name, array in batch.items()})

    def _convert(self, layers: Sequence[Layer]) -> Any:
        if self._converted is None:
            self.collect((), layers, ())
        return self._converted

    def _outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        tensors = flatten_outputs(call(model, self.tensors(batch)))
        return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def _is_computed(layer: Layer) -> bool:
    return layer.call and layer.site("weight") is not None and not layer.parameters


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))


def _take_apart(model: nn.Module) -> tuple[nn.Module, Quantizers]:
    from granplugin import modelopt_bridge

    return modelopt_bridge.take_apart(model)
