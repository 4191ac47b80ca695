"""The float network with some layers rounded: what each choice of settings changes in it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from granplugin.analysis.local import Tried, key
from granplugin.analysis.replay import Change, Diverged
from granplugin.analysis.rounding import Rounding, rounding
from granplugin.errors import ModelError, UserError
from granplugin.plan import Row
from granplugin.recipe.schema import FLOAT
from granplugin.residuals import SKIP_QUANTIZER, SkipInputs, tensors_in
from granplugin.trace import evaluating

Pair = tuple[int | None, int | None]
"""Which weight and which input setting of a layer; None: float."""
Choice = Mapping[str, Pair]
"""Layer -> its settings. Layers that are not named are float; `others` of the recipe are rounded
but where their site is named, with FLOATING."""
FLOATING: Pair = (None, None)


def analysis_copy(model: nn.Module, skips: Iterable[str]) -> nn.Module:
    """A copy of the model in which the skip inputs of these layers go through a child module."""
    # A recurrent layer holds this module, of which there is no copy.
    copied = copy.deepcopy(model, {id(torch._VF): torch._VF}).eval()
    skips = list(skips)
    for name in skips:
        copied.get_submodule(name).add_module(SKIP_QUANTIZER, nn.Identity())
    if skips:
        SkipInputs(copied, skips)
    return copied


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
class Other:
    """A row of the recipe that is no weight and no input of an analyzed layer."""

    row: Row
    rounding: Rounding


class Network:
    """Changes of modules, by settings. `others` belong to the recipe as a whole: each goes with the
    layer it is of."""

    def __init__(self, model: nn.Module, tried: Sequence[Tried], others: Sequence[Other]) -> None:
        self.model = model
        self.tried = {each.name: each for each in tried}
        self.others = others

    def start(self) -> dict[str, Pair]:
        """What the recipe quantizes."""
        choice: dict[str, Pair] = {}
        for name, each in self.tried.items():
            roles = {row.role for row in each.asked.start}
            pair = (0 if "weight" in roles else None, 0 if "input" in roles else None)
            if pair != (None, None):
                choice[name] = pair
        return choice

    def modules_of(self, layer: str) -> set[nn.Module]:
        """The modules that change where this layer is quantized: it, and what goes with it."""
        found = {self.tried[layer].module}
        if self.tried[layer].bn is not None:
            found.add(self.tried[layer].bn)
        found |= {self.module_of(o.row) for o in self.others if o.row.layer == layer}
        return found

    def changes(self, choice: Choice, others: bool = True) -> dict[nn.Module, Change]:
        """What is called in place of modules; `others`: with the recipe's other rows, those of
        layers that are not analyzed too."""
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
        for other in self.others:
            of_layer = other.row.layer in self.tried
            if choice.get(other.row.site) != FLOATING and (
                other.row.layer in choice if of_layer else others
            ):
                role = "output" if other.row.role == "output" else "input"
                steps.setdefault(self.module_of(other.row), {})[role] = other.rounding
        return {module: _change(module, **said) for module, said in steps.items()}

    def names(self, choice: Choice) -> list[tuple[str, str, str]]:
        """A choice in JSON-able words that tell it from others."""
        found = []
        for layer, (weight, given) in sorted(choice.items()):
            if layer not in self.tried:
                found.append((layer, FLOAT, ""))
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

    def module_of(self, row: Row) -> nn.Module:
        """The module whose input, or for role output whose output, the row's tensor is."""
        if row.role == "skip":
            return self.model.get_submodule(row.layer).get_submodule(SKIP_QUANTIZER)
        return self.model.get_submodule(row.observed.rpartition(".")[0])


def other_rows(
    rows: Iterable[Row],
    analyzed: set[str],
    ranges: Mapping[str, np.ndarray | None],
    device: torch.device,
) -> tuple[Other, ...]:
    """The quantized rows that are not a weight or an input of an analyzed layer, with the ranges
    (site -> amax) that have one."""
    found = []
    for row in rows:
        own = row.layer in analyzed and row.role in ("weight", "input")
        if not own and row.role != "weight" and (row.dynamic or ranges.get(row.site) is not None):
            found.append(Other(row, rounding(row, ranges.get(row.site), device)))
    return tuple(found)


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
