"""Batch norms folded into calls whose weight a forward computes: multiplied into it at each call.

No parameter has such a weight - it is standardized, or a sum - so what is folded goes between what
computes it and its quantizer, and an exported graph has the product as a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from granplugin.network.call_quantizers import CallQuantizers, clear_place, place_of
from granplugin.network.frames import FOLDED_NORM
from granplugin.network.modules import norm_of
from granplugin.quant.folding import multiplied, shifted
from granplugin.quant.layers import PRODUCTS, Layer


class FoldedNorm(nn.Module):
    """Makes of a weight and a bias (None, or [out]) those of the layer with its batch norm in it,
    by the arithmetic of granplugin.quant.folding.fold, to the bit. Its statistics stay as they are,
    also in training."""

    def __init__(self, layer: Layer, bn: Any) -> None:
        super().__init__()
        self.axis, self.groups = PRODUCTS[layer.type].weight_channels, layer.groups
        factor = torch.from_numpy(norm_of(bn).factor)
        self.register_buffer("factor", factor.to(bn.running_mean.device))
        for name, values in {"mean": bn.running_mean, "beta": bn.bias}.items():
            self.register_buffer(name, None if values is None else values.detach().double().clone())

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        folded = multiplied(weight.double(), self.factor, self.axis, self.groups)
        own = None if bias is None else bias.double()
        shift = shifted(own, self.factor, self.mean, self.beta)
        return folded.to(weight.dtype), shift.to(weight.dtype)


def fold_call(model: nn.Module, layer: Layer, bn: nn.Module) -> Callable[[], None]:
    """Let this batch norm be multiplied into the weight of a call; the function that is returned
    takes it out again. What stood behind the call is the caller's to take out."""
    name, new = layer.name, CallQuantizers.missing(model)
    place = place_of(model, name)
    place.add_module(FOLDED_NORM, FoldedNorm(layer, bn))
    if new:
        CallQuantizers(model)

    def undo() -> None:
        del place._modules[FOLDED_NORM]
        clear_place(model, name)
        if new:
            CallQuantizers.remove(model)

    return undo


def folded_calls(model: nn.Module) -> list[str]:
    """The layers into whose calls batch norms are folded."""
    return [name for name, module in model.named_modules() if FOLDED_NORM in module._modules]


def run_folded(model: nn.Module, layers: Iterable[str]) -> None:
    """Let the calls of these layers, which have batch norms in them, take them."""
    for name in layers:
        place_of(model, name)
        CallQuantizers(model)
