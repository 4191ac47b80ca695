"""The float network with some layers rounded: what each choice of settings changes in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from granplugin.analysis.factors import Factor, layer_module
from granplugin.analysis.replay import Change, Diverged
from granplugin.analysis.rounding import Rounding, rounding
from granplugin.analysis.tensors import module_of
from granplugin.analysis.tried import Choice, RoundedNetwork
from granplugin.errors import ModelError, UserError
from granplugin.network.batch_norms import fold_batch_norms
from granplugin.network.call_quantizers import CallQuantizers, place_of, stands
from granplugin.network.copying import copy_of
from granplugin.network.forward import evaluating
from granplugin.network.frames import FACTOR, QUANTIZER
from granplugin.network.skip_inputs import SKIP_QUANTIZER, SkipInputs
from granplugin.network.torch_calls import tensors_in
from granplugin.network.trace import Traced
from granplugin.planning.rows import QuantizedRow
from granplugin.quant.layers import Layer


def analysis_copy(
    model: nn.Module,
    rows: Sequence[QuantizedRow],
    layers: Sequence[Layer],
    norms: Mapping[str, str],
    example: Mapping[str, Tensor],
) -> nn.Module:
    """A copy of the model in which the skip inputs, and all operands of the layers that are calls or
    lookups, go through a child module where these rows quantize them; a call with a weight has a
    Factor that multiplies. Into calls these batch norms are folded: their weights are tried as they are
    then, and no other way."""
    copied = copy_of(model).eval()
    products = [layer for layer in layers if layer.multiplied and not layer.unusable]
    calls = {layer.name for layer in products if layer.call or not layer.weighs}
    fold_batch_norms(copied, Traced(tuple(layers), dict(norms), {}, {}), norms, example)
    for row in rows:
        if row.layer in calls:
            place_of(copied, row.layer).add_module(f"{row.operand}{QUANTIZER}", nn.Identity())
        elif row.operand == "skip":
            copied.get_submodule(row.layer).add_module(SKIP_QUANTIZER, nn.Identity())
    factors = [layer.name for layer in products if layer.call and layer.weighs]
    for name in factors:
        place_of(copied, name).add_module(FACTOR, Factor())
    skips = {row.layer: copied.get_submodule(row.layer) for row in rows if row.operand == "skip"}
    if factors or calls.intersection(row.layer for row in rows):
        CallQuantizers(copied)
    if skips:
        SkipInputs(copied, [name for name, layer in skips.items() if not stands(layer)])
    if factors:
        run(copied, example)
    return copied


def weights_of_calls(
    model: nn.Module, rows: Sequence[QuantizedRow], example: Mapping[str, Tensor]
) -> dict[str, np.ndarray]:
    """Site -> the weight (float32) that goes through a child module of an analysis copy."""
    found: dict[str, np.ndarray] = {}

    def watch(site: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            found[site] = args[0].detach().float().cpu().numpy()

        return hook

    constant = [row for row in rows if row.at.constant]
    hooks = [module_of(model, row).register_forward_pre_hook(watch(row.site)) for row in constant]
    if constant:
        run(model, example)
    for hook in hooks:
        hook.remove()
    return found


def run(model: nn.Module, tensors: Mapping[str, Tensor]) -> Any:
    """The model's output for a batch, of which it gets a copy: it may work in place.

    Raises ModelError with what forward raised, unless that was for lack of memory.
    """
    try:
        with evaluating(model):
            return model(**{name: tensor.clone() for name, tensor in tensors.items()})
    except (UserError, Diverged, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as err:
        if isinstance(err, RuntimeError) and "memory" in str(err):
            raise
        raise ModelError(f"the model's forward raised {type(err).__name__}: {err}") from err


@dataclass(frozen=True, eq=False)
class Changes:
    """What choices of settings change in an analysis copy `model`."""

    model: nn.Module
    network: RoundedNetwork

    def module_of(self, layer: str) -> nn.Module:
        """What multiplies for a layer."""
        return layer_module(self.model, layer)

    def modules_of(self, layer: str) -> set[nn.Module]:
        """The modules that change where this layer is quantized: it, and what goes with it."""
        found = {self.module_of(layer)}
        of = self.network.tried[layer].asked.layer
        if of.bn is not None and not of.call:
            found.add(self.module_of(of.bn))
        sites = self.network.sites.values()
        return found | {module_of(self.model, s.own) for s in sites if s.own.layer == layer}

    def of(self, choice: Choice, others: bool = True) -> dict[nn.Module, Change]:
        """What is called in place of modules; `others`: with those sites too whose layers are not
        analyzed."""
        where = next(self.model.parameters()).device
        steps: dict[nn.Module, dict[str, Any]] = {}
        for layer, (weight, given) in choice.items():
            if layer not in self.network.tried:
                continue
            tried, module = self.network.tried[layer], self.module_of(layer)
            of_layer = steps.setdefault(module, {})
            if given is not None and (ranged := tried.inputs[given]) is not None:
                of_layer["input"] = rounding(ranged.row, ranged.amax, where)
            if weight is not None and tried.weights[weight] is not None:
                values = {"weight": tried.weights[weight]}
                # That of a call is in its weight already.
                if tried.asked.weights[weight].bn == "fold" and not tried.asked.layer.call:
                    values["bias"] = tried.held.folded[1]
                    bn = tried.asked.layer.bn
                    assert bn is not None, f"{layer} has no batch norm to fold"
                    steps.setdefault(self.module_of(bn), {})["folded"] = True
                of_layer["values"] = {
                    name: nn.Parameter(torch.from_numpy(array).to(where), requires_grad=False)
                    for name, array in values.items()
                }
        for ranged in self.network.chosen_sites(choice, others):
            role = "output" if ranged.row.operand == "output" else "input"
            module = module_of(self.model, ranged.row)
            steps.setdefault(module, {})[role] = rounding(ranged.row, ranged.amax, where)
        return {module: _change(module, **said) for module, said in steps.items()}


def _change(
    module: nn.Module,
    input: Rounding | None = None,
    values: Mapping[str, nn.Parameter] | None = None,
    folded: bool = False,
    output: Rounding | None = None,
) -> Change:
    def changed(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if input is not None:
            args, kwargs = _first(args, kwargs, input)
        if folded:
            result = next(tensors_in((args, kwargs)))
        elif values:
            own = {name: module._parameters[name] for name in values}
            module._parameters.update(values)
            try:
                result = forward(*args, **kwargs)
            finally:
                module._parameters.update(own)
        else:
            result = forward(*args, **kwargs)
        return result if output is None else output(result)

    return changed


def _first(
    args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with the first tensor among them changed."""
    for at, value in enumerate(args):
        if isinstance(value, Tensor):
            return (*args[:at], change(value), *args[at + 1 :]), kwargs
    name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
    return args, {**kwargs, name: change(kwargs[name])}
