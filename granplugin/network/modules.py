"""What a module alone says of the layer that it is: its type, its weight, what that is like."""

from __future__ import annotations

from functools import cache

import numpy as np
from torch import Tensor, nn

from granplugin.network.weight_facts import WeightFacts, weight_facts
from granplugin.quant.folding import channel_ranges, fold, spread
from granplugin.quant.layers import PASSIVE, PRODUCTS, WEIGHTED, Layer, sites_of


def sited(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that have sites, by name."""
    return {name: m for name, m in model.named_modules() if _registered(type(m))}


def untraced(model: nn.Module) -> tuple[Layer, ...]:
    """What the modules alone say, in the order of their registration: types, weights' shapes and
    their traits. Nothing is run, so of a Layer's other facts none is known, and no batch norm."""
    return tuple(describe(name, module, None) for name, module in sited(model).items())


def describe(name: str, module: nn.Module, bn: nn.Module | None) -> Layer:
    """What the module alone says, with the spread of its weight behind its batch norm."""
    base, unusable = _sited_class(module), None
    type_ = base.__name__
    if type(module).forward is not base.forward:
        unusable = (
            f"its class {type(module).__name__} has its own forward, which modelopt does not "
            "quantize"
        )
    elif "forward" in vars(module):
        unusable = "its forward is set on the instance, so modelopt's would not be called"
    if type_ not in WEIGHTED:
        return Layer(name, type_, unusable=unusable)
    if module._parameters.get("weight") is None:
        unusable = "its weight is no parameter, but computed before each call"
        return Layer(name, type_, unusable=unusable)
    groups = getattr(module, "groups", 1)
    traits = set()
    if groups > 1:
        traits.add("depthwise" if groups == module.in_channels else "grouped")
    if base is not nn.Linear and set(module.kernel_size) == {1}:
        traits.add("pointwise")
    return Layer(
        name,
        type_,
        sites_of(name, type_, {"weight": tuple(module.weight.shape)}, groups),
        groups=groups,
        traits=frozenset(traits),
        spread=_spread(module, bn),
        unusable=unusable,
    )


def _spread(module: nn.Module, bn: nn.Module | None) -> float | None:
    weight = module.weight.detach().float().cpu().numpy() if bn is None else folded(module, bn)[0]
    return spread(channel_ranges(weight, weight_axis(module), getattr(module, "groups", 1)))


def weight_axis(module: nn.Module) -> int:
    """The output-channel axis of a layer's weight, as granplugin.quant.folding takes it."""
    axis = PRODUCTS[layer_type(module)].weight_channels
    return 0 if axis is None else axis


def folded(module: nn.Module, bn: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """The weight and bias (float32) of `module` with the batch norm behind it folded in."""
    groups = getattr(module, "groups", 1)
    return fold(
        _array(module.weight),
        None if module.bias is None else _array(module.bias),
        None if bn.weight is None else _array(bn.weight),
        None if bn.bias is None else _array(bn.bias),
        _array(bn.running_mean),
        _array(bn.running_var),
        bn.eps,
        weight_axis(module),
        groups,
    )


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def module_facts(module: nn.Module, bn: nn.Module | None, layer: Layer) -> WeightFacts:
    """The facts of one weighted layer: `module` as the model has it (not folded yet), `bn` the
    batch norm behind it that folding would take in (the module called `layer.bn`), or None.

    Reads the weight and the batch norm's five tensors, and runs nothing; neither module is changed.
    `layer` tells the number of groups. The arithmetic is that of granplugin.quant.folding.fold, so
    `ranges_after` are of the very bits that a variant with `bn: fold` holds.
    """
    weight = module.weight.detach().float().cpu().numpy()
    after = None if bn is None else folded(module, bn)[0]
    return weight_facts(weight, after, weight_axis(module), layer.groups)


def layer_type(module: nn.Module) -> str:
    """The type of the layer that a module with sites is."""
    return _sited_class(module).__name__


def _sited_class(module: nn.Module) -> type[nn.Module]:
    base = _registered(type(module))
    if base is None:
        raise TypeError(f"{type(module).__name__} has no sites")
    return base


@cache
def _registered(cls: type[nn.Module]) -> type[nn.Module] | None:
    """The class of torch.nn that modelopt would know these modules by; None where they have no
    sites."""
    for base in cls.__mro__:
        if base.__name__ in WEIGHTED | PASSIVE and getattr(nn, base.__name__, None) is base:
            return base
    return None
