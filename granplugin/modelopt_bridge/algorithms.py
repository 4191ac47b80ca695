"""modelopt's algorithms that move ranges from inputs into weights, run on a copy of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from granplugin.modelopt_bridge.chatter import quiet
from granplugin.modelopt_bridge.library import mtq
from granplugin.modelopt_bridge.observe import ForwardLoop
from granplugin.network.copying import copy_of
from granplugin.network.forward import evaluating


def moved(
    model: nn.Module, config: Mapping[str, Any], forward_loop: ForwardLoop
) -> dict[str, tuple[Tensor, Tensor]]:
    """Linear layer -> the scale of its input (in,) and its weight (out, in), as the algorithm of
    this config for mtq.quantize chose them. The model stays as it is."""
    with quiet(), evaluating(model):
        found = mtq.quantize(copy_of(model), dict(config), forward_loop)
    layers: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in found.named_modules():
        scale = getattr(getattr(module, "input_quantizer", None), "_pre_quant_scale", None)
        if isinstance(scale, torch.Tensor):
            layers[name] = scale.detach(), module.weight.detach()
    return layers
