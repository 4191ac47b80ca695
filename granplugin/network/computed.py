"""Weights that a layer computes from other parameters before each call - weight norm, spectral norm,
pruning, any parametrization - computed once, so that they are plain parameters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from granplugin.words import counted, first

log = logging.getLogger(__name__)


def _remove_parametrizations(module: nn.Module, tensor: str) -> None:
    # With torch's own removal some become buffers, and an original is written over that may be
    # another module's too.
    held = module.parametrizations[tensor]
    trained = any(parameter.requires_grad for parameter in held.parameters())
    value = nn.Parameter(getattr(module, tensor).detach().clone(), trained)
    if hasattr(held, "original"):
        held.original = nn.Parameter(held.original.clone())
    parametrize.remove_parametrizations(module, tensor, leave_parametrized=True)
    delattr(module, tensor)
    module.register_parameter(tensor, value)


def _remove_pruning(module: nn.Module, tensor: str) -> None:
    # What was pruned is written over too.
    held = module._parameters[f"{tensor}_orig"]
    module._parameters[f"{tensor}_orig"] = nn.Parameter(held.clone(), held.requires_grad)
    prune.remove(module, tensor)


_HOOKS: dict[type, tuple[str, Callable[..., Any]]] = {
    WeightNorm: ("name", remove_weight_norm),
    SpectralNorm: ("name", remove_spectral_norm),
    prune.BasePruningMethod: ("_tensor_name", _remove_pruning),
}
"""Hooks of torch that compute a tensor -> where they keep its name, and what takes them off."""
_CALLS = {
    _remove_parametrizations: "parametrize.remove_parametrizations",
    _remove_pruning: "prune.remove",
    remove_weight_norm: "remove_weight_norm",
    remove_spectral_norm: "remove_spectral_norm",
}
"""What takes them off -> what torch calls it."""


def compute_once(model: nn.Module) -> None:
    """Let every tensor of the model that torch computes before a call be a parameter of the values
    that it has in eval mode: outputs are the same bits. The model is in eval mode afterwards."""
    model.eval()  # in training, spectral norm takes a step
    done = []
    with torch.no_grad():
        for name, module in model.named_modules():
            for tensor, remove in list(_computed(module)):
                remove(module, tensor)
                done.append(f"{name}.{tensor}".lstrip("."))
    if done:
        log.info("computed %s once: %s", counted(done, "tensor"), first(done))


def way_out(module: nn.Module, tensor: str) -> str | None:
    """The call that makes a parameter of a tensor that torch computes; None for any other."""
    for name, remove in _computed(module):
        if name == tensor:
            return f"torch.nn.utils.{_CALLS[remove]}(layer, {tensor!r})"
    return None


def _computed(module: nn.Module) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The tensors that torch computes for a module, and what makes parameters of them."""
    if parametrize.is_parametrized(module):
        yield from dict.fromkeys(module.parametrizations, _remove_parametrizations).items()
    for hook in module._forward_pre_hooks.values():
        for kind, (attribute, remove) in _HOOKS.items():
            if isinstance(hook, kind):
                yield getattr(hook, attribute), remove
