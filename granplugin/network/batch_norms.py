"""Folding batch norms in a torch model, with the proof that its outputs did not change."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from granplugin.errors import ModelError
from granplugin.network.foldable import lets_through
from granplugin.network.folded_calls import fold_call
from granplugin.network.forward import Example, call, copied, flatten_outputs
from granplugin.network.modules import stored
from granplugin.network.trace import Traced
from granplugin.quant.layers import Layer

log = logging.getLogger(__name__)

# Folding changes the order of float32 roundings (2^-24 each). On MobileNetV2, ResNet-50 and
# EfficientNet with random statistics that moved outputs by 1.2e-6, 2.4e-7 and 4.1e-7 of the largest
# value; folding what must not be folded moves them by a sizeable part of it.
TOLERANCE = 1e-4
_LAST_BITS = 16
"""So many times what one last bit of each folded weight does to the outputs is rounding still."""


def fold_batch_norms(
    model: nn.Module, traced: Traced, names: Collection[str], example: Example
) -> nn.Module:
    """Fold the batch norms of the named layers, in place: a new weight and bias for each layer,
    nn.Identity for its batch norm, or one that lets values through where its class does more than
    normalize. Layers that are folded already stay as they are.

    The model's outputs on `example` are compared before and after. Raises ModelError, and leaves
    the model as it was, where one moves by more than TOLERANCE times its largest value, naming
    the layer; and for a name that has no batch norm in `traced`.
    """
    _proven(model, traced, names, example)
    return model


def check_folding(
    model: nn.Module, traced: Traced, names: Collection[str], example: Example
) -> None:
    """Raises what fold_batch_norms would; leaves the model as it was."""
    for step in _proven(model, traced, names, example):
        step()


def fold_behind(model: nn.Module, layers: Iterable[Layer]) -> None:
    """Fold each layer's batch norm `bn`, in place, as fold_batch_norms does, of which it was proven
    before. Raises ModelError where the model has no such layer or batch norm."""
    for layer in layers:
        if not is_folded(norm_of(model, layer)):
            _fold(model, layer, str(layer.bn))


def freeze_batch_norms(model: nn.Module) -> None:
    """Let every batch norm that is left normalize by the statistics it has, also in training; its
    weight and bias are trained all the same."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and _frozen not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_frozen)


def _frozen(norm: nn.Module, args: Any) -> None:
    norm.training = False


def norm_of(model: nn.Module, layer: Layer) -> nn.Module:
    """The batch norm behind the layer, or what folding put in its place. Raises ModelError where
    the model has none."""
    modules = dict(model.named_modules())
    norm = modules.get(str(layer.bn))
    if norm is None or not (is_folded(norm) or isinstance(norm, _BatchNorm)):
        raise ModelError(
            f"{layer.name}: the model has no batch norm {layer.bn!r} behind it to fold; is this the "
            "model that the config was made for?"
        )
    return norm


def _proven(
    model: nn.Module, traced: Traced, names: Collection[str], example: Example
) -> list[Callable[[], None]]:
    """Fold, with the proof; how to undo it, the last step first."""
    for name in names:
        if name not in traced.batch_norms:
            raise ModelError(f"layer {name!r} has no batch norm that can be folded into it")
    pairs = {
        name: traced.batch_norms[name]
        for name in traced.batch_norms
        if name in set(names) and not is_folded(model.get_submodule(traced.batch_norms[name]))
    }
    if not pairs:
        return []
    before = _outputs(model, example)
    layers = {layer.name: layer for layer in traced.layers}
    undo = [_fold(model, layers[name], bn) for name, bn in pairs.items()][::-1]
    moved = _moved(model, before, example)
    allowed = TOLERANCE
    if TOLERANCE < moved < math.inf:
        allowed = max(
            TOLERANCE, _LAST_BITS * _by_last_bits(model, [layers[name] for name in pairs], example)
        )
    if moved <= allowed:
        log.info("folded %d batch norms; outputs moved by %.1e of their range", len(pairs), moved)
        return undo
    for step in undo:
        step()
    by_layer = {}
    for name, bn in pairs.items():
        step = _fold(model, layers[name], bn)
        by_layer[name] = _moved(model, before, example)
        step()
    worst = max(by_layer, key=lambda name: by_layer[name])
    raise ModelError(
        f"folding {pairs[worst]!r} into {worst!r} changes the model's outputs (by "
        f"{by_layer[worst]:.1e} of their largest value); something else reads the output of "
        f"{worst!r}: set bn: keep for it"
    )


def _by_last_bits(model: nn.Module, layers: Iterable[Layer], example: Example) -> float:
    """How far a last bit of each weight of these layers moves the outputs: what a network makes of
    rounding. The model is left as it was."""
    before = _outputs(model, example)
    known = dict(model.named_parameters())
    weights = [known.get((layer.parameters or (f"{layer.name}.weight",))[0]) for layer in layers]
    kept = {weight: weight.detach().clone() for weight in weights if weight is not None}
    with torch.no_grad():
        try:
            for weight in kept:
                signs = 1 - 2 * (torch.arange(weight.numel(), device=weight.device) % 2)
                step = torch.finfo(weight.dtype).eps * signs.reshape(weight.shape)
                weight.mul_(1 + step.to(weight.dtype))
            return _moved(model, before, example)
        finally:
            for weight, values in kept.items():
                weight.copy_(values)


def _fold(model: nn.Module, layer: Layer, bn_name: str) -> Callable[[], None]:
    """Fold one batch norm; the function that is returned puts everything back."""
    bn, held = model.get_submodule(bn_name), stored(model, layer)
    places = [(m, key) for m in model.modules() for key, child in m._modules.items() if child is bn]
    if held is None:
        take_out, shift = fold_call(model, layer, bn), None
    else:
        take_out, shift = _into_parameters(model, layer, *held.folded(bn))
    if _has_own_forward(bn):
        put_back = _let_through(bn, shift)
    else:
        put_back = _replace(places, bn, nn.Identity() if shift is None else _Shift(shift))

    def undo() -> None:
        put_back()
        take_out()

    return undo


def _into_parameters(
    model: nn.Module, layer: Layer, weight: np.ndarray, bias: np.ndarray
) -> tuple[Callable[[], None], Tensor | None]:
    """Give a layer this weight and bias; how to undo it, and the bias where it has none to change:
    a call without a bias gets it where the batch norm was."""
    names = layer.parameters or (
        f"{layer.name}.weight".lstrip("."),
        f"{layer.name}.bias".lstrip("."),
    )
    old: dict[tuple[nn.Module, str], Any] = {}
    own = model.get_parameter(names[0])
    tensors = [torch.from_numpy(values).to(own.device) for values in (weight, bias)]
    for name, values in zip(names, tensors, strict=False):
        parent, _, key = name.rpartition(".")
        owner = model.get_submodule(parent)
        old[owner, key] = owner._parameters[key]
        setattr(owner, key, nn.Parameter(values, own.requires_grad))

    def undo() -> None:
        for (owner, key), parameter in old.items():
            setattr(owner, key, parameter)

    return undo, tensors[1] if len(names) == 1 else None


def _replace(
    places: Collection[tuple[nn.Module, str]], bn: nn.Module, behind: nn.Module
) -> Callable[[], None]:
    behind.train(bn.training)
    for parent, key in places:
        parent._modules[key] = behind

    def restore() -> None:
        for parent, key in places:
            parent._modules[key] = bn

    return restore


def _let_through(bn: Any, bias: Tensor | None) -> Callable[[], None]:
    """A batch norm that does more, such as an activation, computes x * 1 + bias in its place: with
    an eps of 0 and a variance of 1 that is exact. It does so in training too, and is not trained."""
    tensors = {
        "running_mean": torch.zeros_like(bn.running_mean) if bias is None else -bias,
        "running_var": torch.ones_like(bn.running_var),
        "weight": None if bn.weight is None else nn.Parameter(torch.ones_like(bn.weight), False),
        "bias": None if bn.bias is None else nn.Parameter(torch.zeros_like(bn.bias), False),
    }
    old = {"eps": bn.eps, **{key: getattr(bn, key) for key in tensors}}
    for key, value in {"eps": 0.0, **tensors}.items():
        setattr(bn, key, value)
    frozen = bn.register_forward_pre_hook(_frozen)

    def restore() -> None:
        frozen.remove()
        for key, value in old.items():
            setattr(bn, key, value)

    return restore


def _has_own_forward(bn: nn.Module) -> bool:
    own = takewhile(lambda cls: cls is not _BatchNorm, type(bn).__mro__)
    return any("forward" in vars(c) and not c.__module__.startswith("modelopt.") for c in own)


def is_folded(bn: Any) -> bool:
    """Whether this stands where a batch norm was that has been folded."""
    return isinstance(bn, (nn.Identity, _Shift)) or lets_through(bn)


class _Shift(nn.Module):
    """Takes one number off each channel, which are on axis 1: an add would be taken for the
    residual one behind the layer."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.shift = nn.Parameter(-bias)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.shift.reshape(-1, *[1] * (x.ndim - 2))


def _outputs(model: nn.Module, example: Example) -> dict[str, Tensor]:
    outputs = flatten_outputs(call(model, copied(example)))
    return {name: tensor.clone() for name, tensor in outputs.items()}


def _moved(model: nn.Module, before: dict[str, Tensor], example: Example) -> float:
    """The largest change of an output since `before`, over that output's largest value.

    Integers (indices, classes) are left out: rounding may flip them where two values tie.
    """
    try:
        after = _outputs(model, example)
    except ModelError:  # some model code reads what a batch norm has and an Identity has not
        return math.inf
    largest = 0.0
    for name, old in before.items():
        if not old.is_floating_point():
            continue
        if name not in after or after[name].shape != old.shape:
            return math.inf
        if old.numel():
            scale = max(float(old.abs().max()), torch.finfo(old.dtype).tiny)
            change = float((after[name] - old).abs().max()) / scale
            largest = max(largest, math.inf if math.isnan(change) else change)
    return largest
