"""The layers of a model and how values flow between them, seen in one eager forward pass.

Module hooks say which layer reads and writes which tensor; a TorchFunctionMode sees every function
call between them. (torch.fx cannot trace most transformers models; this can.) It does not see
inside TorchScript and torch.vmap: that is what granplugin.prepare's proof is for.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from granplugin.errors import DataError, ModelError, UserError
from granplugin.network.call_layers import COMPUTED_ONCE, CallLayer, find_call_layers
from granplugin.network.computed import way_out
from granplugin.network.flow import Flow
from granplugin.network.foldable import BatchNorms, find_batch_norms
from granplugin.network.forward import (
    Example,
    batched_shape,
    call,
    copied,
    finite,
    flatten_outputs,
    left_out,
    named_inputs,
)
from granplugin.network.frames import Frames
from granplugin.network.modules import Stored, describe, layer_type, sited, weighted
from granplugin.network.multiplied import Multiplied
from granplugin.network.role_traits import Product
from granplugin.network.standing import CallValues, Standing, find_standings
from granplugin.network.values import Values
from granplugin.network.watch import LayerCall, Watch
from granplugin.quant.layers import LOOKUPS, PRODUCTS, WEIGHTED, Layer
from granplugin.quant.multiplications import Multiplication
from granplugin.quant.site import Operand, Shape

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Traced:
    """What one forward pass shows of a model.

    `layers` are in the order of their first call, those that never run at the end. `batch_norms`
    maps a layer to the batch norm that can be folded into it. `inputs` and `outputs` map names to
    shapes with 1 on axis 0 (the batch). `products` are all that is multiplied, by layers or not.
    `values` are the outputs, and `left_out` what of them is no tensor, with its type's name;
    `computed` has what layers hold whose weights are computed from others.
    """

    layers: tuple[Layer, ...]
    batch_norms: dict[str, str]
    inputs: dict[str, Shape]
    outputs: dict[str, Shape]
    products: tuple[Multiplication, ...] = ()
    values: Mapping[str, Tensor] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    computed: Mapping[str, Stored] = field(default_factory=dict)


def trace(model: nn.Module, example: Example) -> Traced:
    """Run the model once, in eval mode and without gradients, and describe it.

    All activations of this pass are held in memory: give it a small batch. The model is left as it
    was. Raises ModelError for a model that cannot run, has a weight that torch computes, or whose layers
    put out NaN or Inf (naming the first), and DataError where these are in the example.
    """
    modules = sited(model)
    _check_computed(modules)
    frames = Frames(model)
    watch = Watch(Values(frames))
    given = copied(example)
    inputs = named_inputs(model, given)
    starts = {watch.values.number(tensor, data=True) for tensor in inputs.values()}
    multiplied = Multiplied(model, watch.values, frames)
    with frames.hooked():
        output = _run(model, given, modules, inputs, watch, multiplied)
    outputs = flatten_outputs(output)
    ends = {watch.values.number(tensor) for tensor in outputs.values()}
    products = {name for name, module in modules.items() if layer_type(module) in WEIGHTED}
    called = find_call_layers(model, watch.values, products, watch.calls.keys())
    calls = _in_order(watch, called)
    weights = {name: found for name in calls if (found := _foldable(modules, called, name))}
    norms = find_batch_norms(model, modules, weights, calls, watch.values, ends)
    held = {watch.values.number(tensor) for tensor in (*model.parameters(), *model.buffers())}
    read = watch.values.flow.behind(ends, starts | held)
    standings = _standings(modules, called, calls, watch.values.flow, norms, starts, ends)
    described = {name: _describe(name, modules, called, norms) for name in calls}
    ran = {
        name: _placed(layer, calls[name], standings[name], name in watch.exchanged)
        for name, layer in described.items()
    }
    data = watch.values.flow.data
    ran = {name: _of_constants(layer, calls[name], data) for name, layer in ran.items()}
    if read is not None:
        ran = {name: _left_out(layer, calls[name], read) for name, layer in ran.items()}
    idle = [
        _describe_idle(name, module, watch)
        for name, module in {**modules, **weighted(model)}.items()
        if name not in ran and not any(each.startswith(f"{name}.") for each in ran)
    ]
    layers = (*ran.values(), *idle)
    log.info("%d layers, %d with a batch norm that can be folded", len(layers), len(norms.folded))
    return Traced(
        layers=layers,
        batch_norms=norms.folded,
        inputs={name: batched_shape(tensor) for name, tensor in inputs.items()},
        outputs={name: batched_shape(tensor) for name, tensor in outputs.items()},
        products=multiplied.products(
            _samples(inputs),
            {made.running_at: name for name, layer in called.items() for made in layer.calls},
        ),
        values=outputs,
        left_out=left_out(output),
        computed={
            name: of_layer
            for name, layer in called.items()
            if not layer.parameters and (of_layer := layer.stored)
        },
    )


def _in_order(watch: Watch, called: Mapping[str, CallLayer]) -> dict[str, list[LayerCall]]:
    """The calls of all layers, in the order in which the first of them put something out."""
    calls = {**watch.calls, **{name: layer.layer_calls for name, layer in called.items()}}
    last = len(watch.values.flow.data)

    def begins(name: str) -> int:
        output = calls[name][0].output
        op = None if output is None else watch.values.flow.producer[output]
        return last if op is None else op.at

    return {name: calls[name] for name in sorted(calls, key=begins)} if called else calls


def _foldable(
    modules: Mapping[str, nn.Module],
    called: Mapping[str, CallLayer],
    name: str,
) -> tuple[Tensor, Tensor | None] | None:
    """The weight and the bias of a layer as the model holds or computes them."""
    if name in called:
        return called[name].foldable
    module = modules[name]
    weight = module._parameters.get("weight")  # not there: computed by a hook
    if weight is None or layer_type(module) not in WEIGHTED:
        return None
    return weight, getattr(module, "bias", None)


def _samples(inputs: Mapping[str, Tensor]) -> int:
    """How many samples the example has."""
    first = next((tensor for tensor in inputs.values() if tensor.ndim), None)
    return 1 if first is None else max(len(first), 1)


def _check_computed(modules: Mapping[str, nn.Module]) -> None:
    for name, module in modules.items():
        if layer_type(module) in WEIGHTED and (call := way_out(module, "weight")):
            raise ModelError(
                f"the weight of layer {name!r} is computed before each call, which modelopt cannot "
                f"convert; call {call} first"
            )


def _run(
    model: nn.Module,
    example: Example,
    modules: Mapping[str, nn.Module],
    inputs: Mapping[str, Tensor],
    watch: Watch,
    multiplied: Multiplied,
) -> Any:
    """What forward returns in one watched pass; its tensors are finite."""
    with watch.hooked(modules), multiplied:
        try:
            output = call(model, example, watch.values)
            outputs = flatten_outputs(output)
        except ModelError as err:
            if watch.broken:
                raise _not_finite(watch.broken[0], modules, inputs) from err.__cause__
            raise
    if watch.broken:
        raise _not_finite(watch.broken[0], modules, inputs)
    for name, tensor in outputs.items():
        if not finite(tensor):
            raise ModelError(
                f"the model's output {name!r} holds NaN or Inf, although every layer before it "
                "is finite; it cannot be compared"
            )
    return output


def _standings(
    modules: Mapping[str, nn.Module],
    called: Mapping[str, CallLayer],
    calls: Mapping[str, Sequence[LayerCall]],
    flow: Flow,
    norms: BatchNorms,
    starts: set[int],
    ends: set[int],
) -> dict[str, Standing]:
    """Where each layer that ran stands in the flow of values."""
    passed = {
        name: [CallValues(made.input, made.output, made.other) for made in of_layer]
        for name, of_layer in calls.items()
    }
    products = dict(_products(modules, called, calls, norms))
    return find_standings(flow, passed, products, starts, ends)


def _describe(
    name: str,
    modules: Mapping[str, nn.Module],
    called: Mapping[str, CallLayer],
    norms: BatchNorms,
) -> Layer:
    """What a layer's module or calls say of it."""
    bn = norms.folded.get(name)
    norm = None if bn is None else modules[bn]
    layer = called[name].describe(norm) if name in called else describe(name, modules[name], norm)
    return dataclasses.replace(layer, bn=bn, unfolded=norms.kept.get(name))


def _placed(layer: Layer, calls: Sequence[LayerCall], standing: Standing, exchanged: bool) -> Layer:
    """The layer with what its calls in this pass show and where it stands."""
    first = calls[0]
    shapes: dict[Operand, Shape | None] = {
        "weight": layer.shape("weight"),
        "input": None if layer.multiplied == ("weight",) else first.input_shape,
        "other": first.other_shape,
        "output": first.output_shape,
    }
    why = _not_in_float32(calls) if layer.type in WEIGHTED - LOOKUPS else None
    if exchanged:
        why = "it runs with another weight than it holds (torch.func.functional_call)"
    return dataclasses.replace(
        standing.of(layer, shapes),
        calls=len(calls),
        unusable=layer.unusable or why,
        varying=len({(made.input_shape, made.output_shape) for made in calls}) > 1,
    )


def _products(
    modules: Mapping[str, nn.Module],
    called: Mapping[str, CallLayer],
    calls: Mapping[str, Sequence[LayerCall]],
    norms: BatchNorms,
) -> Iterator[tuple[str, Product]]:
    """The layers with a weight, as far as their roles depend on them."""
    for name, of_layer in calls.items():
        if name in called:
            type, weight = called[name].type, called[name].weight
        else:
            type, weight = layer_type(modules[name]), getattr(modules[name], "weight", None)
        if type in WEIGHTED and weight is not None:
            yield (
                name,
                Product(
                    PRODUCTS[type].operation,
                    tuple(made.input for made in of_layer),
                    tuple(made.output for made in of_layer if made.output is not None),
                    len(weight),
                    name not in norms.folded and name not in norms.kept,
                ),
            )


def _not_in_float32(calls: Sequence[LayerCall]) -> str | None:
    """Why a product in other numbers than float32 stays as it is."""
    kinds = (made.kind for made in calls if made.kind is not None and made.kind.is_floating_point)
    other = next((kind for kind in kinds if kind != torch.float32), None)
    if other is None:
        return None
    return f"it multiplies in {str(other).removeprefix('torch.')}, and not in float32"


def _left_out(layer: Layer, calls: Sequence[LayerCall], read: set[int]) -> Layer:
    """The layer, unusable where none of its results is among the values that outputs depend on: a
    graph has no such node."""
    if any(made.output is None or made.output in read for made in calls):
        return layer
    return dataclasses.replace(
        layer, unusable=layer.unusable or "no output of the model depends on it"
    )


def _of_constants(layer: Layer, calls: Sequence[LayerCall], data: Sequence[bool]) -> Layer:
    """The layer, unusable where no data reach what it multiplies."""
    if not layer.weighs or any(made.input is None or data[made.input] for made in calls):
        return layer
    return dataclasses.replace(layer, unusable=layer.unusable or COMPUTED_ONCE)


def _describe_idle(name: str, module: nn.Module, watch: Watch) -> Layer:
    """A layer that was never called."""
    layer, weight = describe(name, module, None), getattr(module, "weight", None)
    if weight is not None and watch.values.flow.consumers[watch.values.number(weight)]:
        why = "the module is never called: its weight is read directly"
    else:
        why = "never runs in the forward pass"
    return dataclasses.replace(layer, unusable=layer.unusable or why)


def _not_finite(
    layer: str, modules: Mapping[str, nn.Module], inputs: Mapping[str, Tensor]
) -> UserError:
    """Why `layer` is the first whose output is not finite."""
    for name, tensor in inputs.items():
        if not finite(tensor):
            return DataError(
                f"the model's input {name!r} holds NaN or Inf, and so does the output of {layer!r}"
            )
    for name, tensor in modules[layer].state_dict().items():
        if not finite(tensor):
            return ModelError(f"the weights hold NaN or Inf: '{layer}.{name}'")
    return ModelError(
        f"the output of layer {layer!r} holds NaN or Inf, the first to do so; its weights and the "
        "model's inputs are finite"
    )
