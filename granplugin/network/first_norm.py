"""Whether a network gets what it was trained on: its first batch norm remembers what that was."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from granplugin.network.forward import call
from granplugin.network.norm_seen import NormSeen, norm_seen


class _Enough(Exception):
    """What the first norm gets was seen; the rest of the network need not run."""


def first_norm(model: nn.Module, tensors: Mapping[str, Tensor]) -> NormSeen | None:
    """Of the first batch norm that runs and has counted batches of training; None without one.
    Raises ModelError with what forward raised before it came to one."""
    found: list[NormSeen] = []
    names = {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and module.running_var is not None
        and module.num_batches_tracked is not None
        and int(module.num_batches_tracked) > 0
    }

    def see(module: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(module, _BatchNorm)
        found.append(_seen(names[module], module, args[0].detach().float()))
        raise _Enough

    hooks = [module.register_forward_pre_hook(see) for module in names]
    try:
        if names:
            with suppress(_Enough):
                call(model, {name: tensor.clone() for name, tensor in tensors.items()})
    finally:
        for hook in hooks:
            hook.remove()
    return next(iter(found), None)


def _seen(name: str, norm: _BatchNorm, x: Tensor) -> NormSeen:
    assert norm.running_mean is not None and norm.running_var is not None
    mean, variance = (each.float().cpu().numpy() for each in (norm.running_mean, norm.running_var))
    return norm_seen(name, x.cpu().numpy(), mean, variance, norm.eps)
