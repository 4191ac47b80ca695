"""A call's weight as a module that multiplies by it, so that an analysis changes it as a layer's."""

from __future__ import annotations

from torch import Tensor, nn

from granplugin.network.frames import FACTOR
from granplugin.network.modules import Stored
from granplugin.network.product_calls import Product
from granplugin.quant.layers import PRODUCTS


class Factor(nn.Module):
    """Has no weight until it is first called: it keeps that of the call then, as a layer has it.
    `alone` tells that nothing is added to its product."""

    weight: nn.Parameter | None
    stored: Stored
    alone = False

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("weight", None)

    def forward(self, x: Tensor, product: Product) -> Tensor:
        """What the call puts out of this first factor."""
        if self.weight is None:
            weight = product.laid(product.second, "weight").detach().clone()
            self.weight = nn.Parameter(weight, requires_grad=False)
            self.stored = Stored(product.type(True), product.groups, weight, product.bias)
        if self.alone:
            return product.alone(x, self.weight)
        return product.with_factors(x, product.laid(self.weight, "weight"))

    @property
    def out_features(self) -> int:
        """Its output channels."""
        held = self.stored
        axis = PRODUCTS[held.type].weight_channels
        return held.weight.shape[axis] * (held.groups if axis else 1)


def layer_module(model: nn.Module, name: str) -> nn.Module:
    """The module that multiplies for a layer of an analysis copy: its own, or a call's factor."""
    module = model.get_submodule(name)
    return module._modules.get(FACTOR) or module
