"""A layer whose input is multiplied by a scale for each channel first, and whose weight was divided
by it: the same product, other ranges."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

SCALE = "input_scale"
"""The buffer that a layer's scale is in."""


class ScaledInput:
    """A hook in front of such a layer; it holds no tensor, so copies of a network have their own."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] * getattr(module, SCALE), *args[1:])


def scale_input(layer: nn.Linear, scale: torch.Tensor, weight: torch.Tensor) -> None:
    """Let a linear layer compute `linear(x * scale, weight)`; scale: (in,), weight: (out, in)."""
    layer.weight.data.copy_(weight)
    layer.register_buffer(SCALE, scale.detach().clone().to(layer.weight))
    layer.register_forward_pre_hook(ScaledInput())
