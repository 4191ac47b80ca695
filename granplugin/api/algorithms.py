"""run_algorithm: a float network whose weights one of modelopt's algorithms changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from granplugin.convert.to_quant_cfg import quant_cfg
from granplugin.errors import ModelError, RecipeError
from granplugin.network.copying import copy_of
from granplugin.network.forward import Example, call, flatten_outputs
from granplugin.network.scaled_input import scale_input
from granplugin.network.trace import trace
from granplugin.planning.plan import make_plan
from granplugin.planning.rows import Row
from granplugin.quant.layers import Layer
from granplugin.recipe.forms import RecipeForm
from granplugin.recipe.load import load_part
from granplugin.recipe.match import Match, nearest, select
from granplugin.recipe.quant_cfg import MOVING
from granplugin.suggest import did_you_mean
from granplugin.words import first

_CLOSE = 1e-4
"""Of the largest output: what float32 sums in another order may differ by."""


def run_algorithm(
    model: nn.Module,
    recipe: RecipeForm,
    example: Example,
    forward_loop: Callable[[nn.Module], object],
    algorithm: str | Mapping[str, Any],
    match: str | list[str] = "**",
) -> nn.Module:
    """A float copy of `model` with the weights that modelopt's `smoothquant` or `awq_lite` chose
    for its linear layers named by `match`: their inputs are multiplied by a scale for each channel,
    their weights divided by it.

    What these layers are quantized to is what `recipe` says, of which rules and defaults count. An
    `algorithm` with parameters is `{"method": "awq_lite", "alpha_step": 0.1}`. `forward_loop(model)`
    runs calibration data through it. The copy computes what `model` does, which is checked on
    `example`, and is a network as any other: return it from a recipe's callable, or `prepare` it.

    Raises RecipeError for an algorithm that is none of these and for layers that it does not fit,
    ModelError where outputs differ.
    """
    from granplugin.modelopt_bridge.algorithms import moved

    told = {"method": algorithm} if isinstance(algorithm, str) else dict(algorithm)
    method = str(told.get("method"))
    if method not in MOVING:
        raise RecipeError(f"algorithm: unknown {method!r}{did_you_mean(method, MOVING)}")
    traced = trace(model, example)
    plan = make_plan(load_part(recipe), traced.layers)
    wanted = Match(name=[match] if isinstance(match, str) else match)
    layers = [traced.layers[at] for at in select(wanted, traced.layers)]
    if not layers:
        raise RecipeError(f"algorithm {method}: {nearest(wanted, traced.layers)}")
    rows = {row.site: row for row in plan.rows}
    fitting = [layer for layer in layers if _misfit(layer, method, rows) is None]
    alone = wanted.name != ["**"]
    for layer in layers if alone or not fitting else ():
        if misfit := _misfit(layer, method, rows):
            raise RecipeError(f"algorithm {method}: {layer.name!r} {misfit}")
    names = {layer.name for layer in fitting}
    own = replace(plan, rows=tuple(row for row in plan.rows if row.layer in names))
    config, _ = quant_cfg(own, traced.layers)
    found = moved(model, {**config, "algorithm": told}, forward_loop)
    if missed := sorted(names - found.keys()):
        raise ModelError(f"modelopt's {method} changed nothing in {first(missed)}")
    changed = copy_of(model)
    for name in names:
        scale_input(changed.get_submodule(name), *found[name])
    _check_equal(model, changed, example, method)
    return changed


def _misfit(layer: Layer, method: str, rows: Mapping[str, Row]) -> str | None:
    """Why the algorithm changes nothing of this layer, or None."""
    if layer.type != "Linear" or layer.call:
        return f"is a {layer.type}, and it is for linear layers"
    if layer.unusable:
        return f"cannot be quantized: {layer.unusable}"
    # smoothquant moves ranges from inputs to weights, awq_lite those within weights.
    for operand in ("weight", "input") if method == "smoothquant" else ("weight",):
        row = rows[f"{layer.name}.{operand}"]
        if not row.quantized:
            return f"has a float {operand} by {row.rule} ({row.where})"
    return None


def _check_equal(model: nn.Module, changed: nn.Module, example: Example, method: str) -> None:
    with torch.no_grad():
        before = flatten_outputs(call(model, example))
        after = flatten_outputs(call(changed, example))
    for name, tensor in before.items():
        largest = float(tensor.abs().max()) if tensor.numel() else 0.0
        off = float((after[name] - tensor).abs().max()) if tensor.numel() else 0.0
        if not off <= _CLOSE * largest:
            raise ModelError(
                f"with the weights of {method} output {name!r} of the float network differs by "
                f"{off:.3g} of {largest:.3g}; it is run in float32 alone"
            )
