"""A layer whose input is multiplied by a scale for each channel first, and whose weight was divided
by it: the same product, other ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from granplugin.network.copying import Model, copy_of

SCALE = "input_scale"
"""The buffer that a layer's scale is in."""


class ScaledInput:
    """A hook in front of such a layer; it holds no tensor, so copies of a network have their own."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] * getattr(module, SCALE), *args[1:])


def scale_input(layer: nn.Linear, scale: Tensor, weight: Tensor) -> None:
    """Let a linear layer compute `linear(x * scale, weight)`; scale: (in,), weight: (out, in)."""
    layer.weight.data.copy_(weight)
    layer.register_buffer(SCALE, scale.detach().clone().to(layer.weight))
    layer.register_forward_pre_hook(ScaledInput())


def with_scaled_inputs(model: Model, layers: Mapping[str, tuple[Tensor, Tensor]]) -> Model:
    """A copy of which these layers have such a scale and weight."""
    changed = copy_of(model)
    for name, (scale, weight) in layers.items():
        scale_input(changed.get_submodule(name), scale, weight)
    return changed
