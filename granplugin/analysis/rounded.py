"""The float network with some layers rounded: what each choice of settings changes in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from granplugin.analysis.local import Tried, key, try_settings
from granplugin.analysis.questions import Questions
from granplugin.analysis.replay import Change, Diverged
from granplugin.analysis.rounding import Rounding, rounding
from granplugin.analysis.tensors import TriedSite, module_of
from granplugin.errors import ModelError, UserError
from granplugin.network.batch_norms import fold_batch_norms
from granplugin.network.call_quantizers import CallQuantizers, place_of, stands
from granplugin.network.copying import copy_of
from granplugin.network.forward import evaluating
from granplugin.network.frames import QUANTIZER
from granplugin.network.skip_inputs import SKIP_QUANTIZER, SkipInputs
from granplugin.network.torch_calls import tensors_in
from granplugin.network.trace import Traced
from granplugin.planning.rows import QuantizedRow
from granplugin.quant.layers import Layer
from granplugin.recipe.settings import FLOAT

Pair = tuple[int | None, int | None]
"""Which weight and which input setting of a layer; None: float."""
Choice = Mapping[str, Pair]
"""Layer -> its settings; layers that are not named are float, with all that goes with them. Site of something else that the
recipe quantizes -> (None, which of its settings); those not named have the recipe's own."""
FLOATING: Pair = (None, None)


def analysis_copy(
    model: nn.Module,
    rows: Sequence[QuantizedRow],
    layers: Sequence[Layer],
    example: Mapping[str, Tensor],
) -> nn.Module:
    """A copy of the model in which the skip inputs, and all operands of the layers that are calls,
    go through a child module where these rows quantize them. Batch norms behind calls are folded
    where rows say so: their weights are tried as they are then, and no other way."""
    copied = copy_of(model).eval()
    calls = {layer.name for layer in layers if layer.call}
    norms = {
        row.layer: row.bn_name
        for row in rows
        if row.layer in calls and row.bn == "fold" and row.bn_name
    }
    fold_batch_norms(copied, Traced(tuple(layers), norms, {}, {}), norms, example)
    for row in rows:
        if row.layer in calls:
            place_of(copied, row.layer).add_module(f"{row.operand}{QUANTIZER}", nn.Identity())
        elif row.operand == "skip":
            copied.get_submodule(row.layer).add_module(SKIP_QUANTIZER, nn.Identity())
    skips = {row.layer: copied.get_submodule(row.layer) for row in rows if row.operand == "skip"}
    if calls.intersection(row.layer for row in rows):
        CallQuantizers(copied)
    if skips:
        SkipInputs(copied, [name for name, layer in skips.items() if not stands(layer)])
    return copied


def weights_of_calls(
    model: nn.Module, rows: Sequence[QuantizedRow], example: Mapping[str, Tensor]
) -> dict[str, np.ndarray]:
    """Site -> the weight (float32) that goes through a child module of an analysis copy."""
    found: dict[str, np.ndarray] = {}

    def watch(site: str) -> Callable[[nn.Module, tuple], None]:
        def hook(module: nn.Module, args: tuple) -> None:
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


class RoundedNetwork:
    """Changes of modules, by settings. `sites` are what else the recipe quantizes: each goes with
    the layer it is of."""

    def __init__(
        self, model: nn.Module, tried: Sequence[Tried], sites: Sequence[TriedSite]
    ) -> None:
        self.model = model
        self.tried = {each.name: each for each in tried}
        self.sites = {each.own.site: each for each in sites}

    def start(self) -> dict[str, Pair]:
        """What the recipe quantizes."""
        choice: dict[str, Pair] = {}
        for name, each in self.tried.items():
            roles = {row.operand for row in each.asked.start}
            pair = (0 if "weight" in roles else None, 0 if "input" in roles else None)
            if pair != (None, None):
                choice[name] = pair
        return choice

    def modules_of(self, layer: str) -> set[nn.Module]:
        """The modules that change where this layer is quantized: it, and what goes with it."""
        found = {self.tried[layer].module}
        if self.tried[layer].bn is not None:
            found.add(self.tried[layer].bn)
        found |= {each.module for each in self.sites.values() if each.own.layer == layer}
        return found

    def changes(self, choice: Choice, others: bool = True) -> dict[nn.Module, Change]:
        """What is called in place of modules; `others`: with those sites too whose layers are not
        analyzed."""
        steps: dict[nn.Module, dict[str, Any]] = {}
        for layer, (weight, given) in choice.items():
            if layer not in self.tried:
                continue
            tried = self.tried[layer]
            of_layer = steps.setdefault(tried.module, {})
            if given is not None and tried.inputs[given] is not None:
                of_layer["input"] = tried.inputs[given]
            if weight is not None and tried.weights[weight] is not None:
                row = tried.asked.weights[weight]
                values = {"weight": tried.weights[weight]}
                if row.bn == "fold":
                    values["bias"] = tried.folded[1]
                    steps.setdefault(tried.bn, {})["folded"] = True
                where = tried.module.weight.device
                of_layer["values"] = {
                    name: nn.Parameter(torch.from_numpy(array).to(where), requires_grad=False)
                    for name, array in values.items()
                }
        for name, site in self.sites.items():
            chosen = choice.get(name, (None, 0))[1]
            layer = site.own.layer
            goes = choice.get(layer, FLOATING) != FLOATING if layer in self.tried else others
            if goes and chosen is not None and site.roundings[chosen] is not None:
                role = "output" if site.own.operand == "output" else "input"
                steps.setdefault(site.module, {})[role] = site.roundings[chosen]
        return {module: _change(module, **said) for module, said in steps.items()}

    def names(self, choice: Choice) -> list[tuple[str, str, str]]:
        """A choice in JSON-able words that tell it from others."""
        found = []
        for layer, (weight, given) in sorted(choice.items()):
            if layer not in self.tried:
                rows = self.sites[layer].rows
                found.append((layer, "", FLOAT if given is None else key(rows[given])))
                continue
            asked = self.tried[layer].asked
            found.append(
                (
                    layer,
                    "" if weight is None else key(asked.weights[weight]),
                    "" if given is None else key(asked.inputs[given]),
                )
            )
        return found


def round_all(
    questions: Questions, model: nn.Module, ranges: Mapping[QuantizedRow, np.ndarray | None]
) -> RoundedNetwork:
    """Everything that is asked about, rounded by these ranges."""
    device = next(model.parameters()).device
    sites = []
    for rows in questions.sites.values():
        roundings = tuple(
            rounding(row, ranges.get(row), device)
            if row.dynamic or ranges[row] is not None
            else None
            for row in rows
        )
        axis = rows[0].at.channel_axis
        axis = len(rows[0].shape) - 1 if axis is None else axis
        sites.append(TriedSite(rows, roundings, module_of(model, rows[0]), axis))
    return RoundedNetwork(model, try_settings(questions.layers, model, ranges, device), sites)


def _change(
    module: nn.Module,
    input: Rounding | None = None,
    values: Mapping[str, nn.Parameter] | None = None,
    folded: bool = False,
    output: Rounding | None = None,
) -> Change:
    def changed(forward: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
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


def _first(args: tuple, kwargs: dict, change: Callable[[Tensor], Tensor]) -> tuple[tuple, dict]:
    """The arguments with the first tensor among them changed."""
    for at, value in enumerate(args):
        if isinstance(value, Tensor):
            return (*args[:at], change(value), *args[at + 1 :]), kwargs
    name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
    return args, {**kwargs, name: change(kwargs[name])}
