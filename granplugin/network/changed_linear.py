"""Linear layers as algorithms change them: the input multiplied by a scale for each channel, another
weight, and where that is a residual, the product of low rank that it lacks. They compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from granplugin.network.copying import Model, copy_of
from granplugin.network.modules import LowRankFactor

SCALE = "input_scale"
"""The buffer that a layer's scale is in."""

BRANCH = "low_rank"
"""The module inside a layer that computes what its weight lacks."""


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What becomes of linear(x, weight): linear(x * scale, weight) + linear(linear(x * scale, down),
    up). scale: (in,), weight: (out, in), down: (rank, in), up: (out, rank); None without a branch.
    """

    scale: Tensor
    weight: Tensor
    down: Tensor | None = None
    up: Tensor | None = None


class ScaledInput:
    """A hook in front of such a layer; it holds no tensor, so copies of a network have their own."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] * getattr(module, SCALE), *args[1:])


class AddedBranch:
    """A hook behind such a layer, which is given what ScaledInput put in front of it."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output + getattr(module, BRANCH)(args[0])


def change(layer: nn.Linear, change: Change) -> None:
    """Let a linear layer compute what the change says."""
    layer.weight.data.copy_(change.weight)
    layer.register_buffer(SCALE, change.scale.detach().clone().to(layer.weight))
    layer.register_forward_pre_hook(ScaledInput())
    if change.down is not None and change.up is not None:
        factors = (_factor(each, layer.weight) for each in (change.down, change.up))
        layer.add_module(BRANCH, nn.Sequential(*factors).train(layer.training))
        layer.register_forward_hook(AddedBranch())


def _factor(weight: Tensor, like: Tensor) -> LowRankFactor:
    rows, columns = weight.shape
    made = LowRankFactor(columns, rows, bias=False, device=like.device, dtype=like.dtype)
    made.weight.data.copy_(weight)
    return made


def with_changed(model: Model, layers: Mapping[str, Change]) -> Model:
    """A copy of which these layers are changed."""
    changed = copy_of(model)
    for name, found in layers.items():
        change(changed.get_submodule(name), found)
    return changed
