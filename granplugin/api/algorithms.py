"""run_algorithm: a float network whose weights one of modelopt's algorithms changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from granplugin.errors import ModelError, RecipeError
from granplugin.network.changed_linear import with_changed
from granplugin.network.forward import Example, call, flatten_outputs
from granplugin.network.trace import trace
from granplugin.planning.moving import misfit, rows_of
from granplugin.planning.plan import make_plan
from granplugin.recipe.algorithms import parse_algorithm
from granplugin.recipe.forms import RecipeForm
from granplugin.recipe.load import load_part
from granplugin.recipe.match import Match, nearest, select
from granplugin.runs.moved import check_same
from granplugin.words import first


def run_algorithm(
    model: nn.Module,
    recipe: RecipeForm,
    example: Example,
    forward_loop: Callable[[nn.Module], object],
    algorithm: str | Mapping[str, Any],
    match: str | list[str] = "**",
) -> nn.Module:
    """A float copy of `model` with the weights that modelopt's `smoothquant`, `awq_lite` or
    `svdquant` chose for its linear layers named by `match`: their inputs are multiplied by a scale
    for each channel, their weights divided by it. svdquant's lose their part of low rank besides,
    which two float linear layers, LAYER.low_rank.0 and .1, compute beside them.

    What these layers are quantized to is what `recipe` says, of which rules and defaults count. An
    `algorithm` with parameters is `{"method": "awq_lite", "alpha_step": 0.1}`. `forward_loop(model)`
    runs calibration data through it. The copy computes what `model` does, which is checked on
    `example`, and is a network as any other: return it from a recipe's callable, or `prepare` it.

    Raises RecipeError for an algorithm that is none of these and for layers that it does not fit,
    ModelError where outputs differ.
    """
    from granplugin.modelopt_bridge.algorithms import moved

    try:
        told = parse_algorithm(algorithm)
    except ValueError as err:
        raise RecipeError(f"algorithm: {err}") from err
    traced = trace(model, example)
    plan = make_plan(load_part(recipe), traced.layers)
    wanted = Match(name=[match] if isinstance(match, str) else match)
    layers = [traced.layers[at] for at in select(wanted, traced.layers)]
    if not layers:
        raise RecipeError(f"algorithm {told}: {nearest(wanted, traced.layers)}")
    rows = {row.site: row for row in plan.rows}
    fitting = {layer.name for layer in layers if misfit(layer, told, rows) is None}
    for layer in layers if wanted.name != ["**"] or not fitting else ():
        if said := misfit(layer, told, rows):
            raise RecipeError(f"algorithm {told}: {layer.name!r} {said}")
    found = moved(model, rows_of(fitting, plan.quantized), told.told, forward_loop)
    if missed := sorted(fitting - found.keys()):
        raise ModelError(f"modelopt's {told} changed nothing in {first(missed)}")
    changed = with_changed(model, found)
    with torch.no_grad():
        before, after = (flatten_outputs(call(each, example)) for each in (model, changed))
    check_same(f"the weights of {told}", _arrays(before), _arrays(after))
    return changed


def _arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
