"""What a module alone says of the layer that it is: its type, its weight, what that is like."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from granplugin.network.weight_facts import WeightFacts, weight_facts
from granplugin.quant.folding import Norm, channel_ranges, fold, spread
from granplugin.quant.layers import PASSIVE, PRODUCTS, WEIGHTED, Layer, sites_of


class LowRankFactor(nn.Linear):
    """One of two that compute what a layer's weight lacks, which svdquant keeps out of rounding."""


def sited(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that are layers, by name: not those whose own forward says what they multiply."""
    own = {name for name, module in weighted(model).items() if has_own_forward(module)}
    return {name: m for name, m in model.named_modules() if name not in own and _is_layer(m)}


def has_own_forward(module: nn.Module) -> bool:
    """Whether a module with sites computes by a forward that is not torch's."""
    return "forward" in vars(module) or type(module).forward is not _sited_class(module).forward


def weighted(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that are convolutions or linear layers by their class, whatever they compute."""
    found = {name: m for name, m in model.named_modules() if _is_layer(m)}
    return {name: m for name, m in found.items() if layer_type(m) in WEIGHTED}


def _is_layer(module: nn.Module) -> bool:
    return _registered(module) is not None


def untraced(model: nn.Module) -> tuple[Layer, ...]:
    """What the modules alone say, in the order of their registration: types, weights' shapes and
    their traits. Nothing is run, so of a Layer's other facts none is known, and no batch norm."""
    own = {**sited(model), **weighted(model)}
    return tuple(
        describe(name, module, None) for name, module in model.named_modules() if name in own
    )


def describe(name: str, module: nn.Module, bn: nn.Module | None) -> Layer:
    """What the module alone says, with the spread of its weight behind its batch norm."""
    base, unusable = _sited_class(module), None
    type_ = base.__name__
    if "forward" in vars(module):
        unusable = "its forward is set on the instance, so modelopt's would not be called"
    elif isinstance(module, LowRankFactor):
        unusable = "low-rank branch of svdquant"
    elif has_own_forward(module):
        unusable = (
            f"its class {type(module).__name__} has its own forward, which modelopt does not "
            "quantize"
        )
    if type_ not in WEIGHTED:
        return Layer(name, type_, unusable=unusable)
    if module._parameters.get("weight") is None:
        unusable = "its weight is no parameter, but computed before each call"
        return Layer(name, type_, unusable=unusable)
    if type_ == "Embedding" and module.max_norm is not None:
        unusable = unusable or "it changes its weight at each call (max_norm)"
    groups = getattr(module, "groups", 1)
    traits = set()
    if groups > 1:
        traits.add("depthwise" if groups == module.in_channels else "grouped")
    if type_.startswith("Conv") and set(module.kernel_size) == {1}:
        traits.add("pointwise")
    return Layer(
        name,
        type_,
        sites_of(name, type_, {"weight": tuple(module.weight.shape)}, groups),
        groups=groups,
        traits=frozenset(traits),
        spread=stored_of(module).spread(bn),
        unusable=unusable,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """The weight and the bias of a layer as its model holds them, the weight as the layer has it."""

    type: str
    groups: int
    weight: Tensor
    bias: Tensor | None

    @property
    def axis(self) -> int:
        """The weight's output-channel axis, as granplugin.quant.folding takes it."""
        return PRODUCTS[self.type].weight_channels

    @property
    def array(self) -> np.ndarray:
        """The weight, float32."""
        return self.weight.detach().float().cpu().numpy()

    def folded(self, bn: nn.Module) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias (float32) with the batch norm behind the layer folded in."""
        return fold(
            _array(self.weight),
            None if self.bias is None else _array(self.bias),
            norm_of(bn),
            self.axis,
            self.groups,
        )

    def spread(self, bn: nn.Module | None) -> float | None:
        """Layer.spread, with this batch norm folded in where there is one."""
        values = self.array if bn is None else self.folded(bn)[0]
        return spread(channel_ranges(values, self.axis, self.groups))

    def facts(self, bn: nn.Module | None) -> WeightFacts:
        """The weight's facts; `bn` is the batch norm that folding would take in, None without one.

        Reads the weight and the batch norm's five tensors, runs nothing and changes nothing. The
        arithmetic is that of granplugin.quant.folding.fold, so ranges after folding are of the very
        bits that a variant with `bn: fold` holds.
        """
        after = None if bn is None else self.folded(bn)[0]
        return weight_facts(self.array, after, self.axis, self.groups)


def stored_of(module: nn.Module) -> Stored:
    """What a module with a weight holds."""
    groups = getattr(module, "groups", 1)
    return Stored(layer_type(module), groups, module.weight, getattr(module, "bias", None))


def stored(model: nn.Module, layer: Layer) -> Stored | None:
    """What the model holds of a layer with a weight; None where the weight is computed."""
    if not layer.call:
        return stored_of(model.get_submodule(layer.name))
    if not layer.parameters:
        return None
    weight, *bias = (model.get_parameter(name) for name in layer.parameters)
    weight = weight.mT if layer.reversed else weight
    return Stored(layer.type, layer.groups, weight, bias[0] if bias else None)


def weight_of(model: nn.Module, layer: Layer) -> np.ndarray | None:
    """The weight that the model holds of a layer, float32; None where it is computed."""
    held = stored(model, layer)
    return None if held is None else held.array


def norm_of(bn: nn.Module) -> Norm:
    """A module's batch norm, as granplugin.quant.folding takes it."""
    gamma, beta = (None if each is None else _array(each) for each in (bn.weight, bn.bias))
    return Norm(gamma, beta, _array(bn.running_mean), _array(bn.running_var), bn.eps)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def layer_type(module: nn.Module) -> str:
    """The type of the layer that a module with sites is."""
    return _sited_class(module).__name__


def _sited_class(module: nn.Module) -> type[nn.Module]:
    base = _registered(module)
    if base is None:
        raise TypeError(f"{type(module).__name__} has no sites")
    return base


_SITED = frozenset(getattr(nn, name) for name in sorted(WEIGHTED | PASSIVE) if hasattr(nn, name))


def _registered(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch.nn that modelopt would know this module by; None where it has no sites."""
    return next((base for base in type(module).__mro__ if base in _SITED), None)
