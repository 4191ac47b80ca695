"""Whose forward is running, and what its calls of products are called within it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, count, filterfalse, islice
from typing import Any

from torch import Tensor, nn

from granplugin.network.forward import following
from granplugin.network.product_calls import Product
from granplugin.quant.site import Operand

QUANTIZER = "_quantizer"
"""What follows an operand in the name of the quantizer that it goes through."""


FOLDED_NORM = "folded_norm"
"""The child of what a call is that multiplies a batch norm into the weight which it computes."""


FACTOR = "factor"
"""The child of what a call is that multiplies in its place: what an analysis changes the weight of."""


class Call(nn.Module):
    """One call of a function within a module's forward, as a child of that module: the quantizers
    of its operands are children of it. `function` and `number` say which call of the forward."""

    def forward(self, given: Any) -> Any:
        """What a Product puts out, its operands quantized; whatever else comes - a Sequential runs
        all of its children - is passed on."""
        return quantized(self, given) if isinstance(given, Product) else given


def passing(holder: nn.Module, operand: str) -> nn.Module | None:
    """The child through which this operand of what `holder` is goes, if it does."""
    return holder._modules.get(f"{operand}{QUANTIZER}")


def quantized(holder: nn.Module, product: Product) -> Tensor:
    """What the product puts out with its operands sent through the quantizers that `holder` has,
    its weight with the batch norm in it that is folded there."""
    if norm := holder._modules.get(FOLDED_NORM):
        product = product.with_weight(*norm(product.laid(product.second, "weight"), product.bias))
    first, second = product.first, product.second
    if quantizer := passing(holder, "input"):
        first = quantizer(first)
    operand: Operand = "weight" if passing(holder, "weight") else "other"
    if quantizer := passing(holder, operand):
        second = product.laid(quantizer(product.laid(second, operand)), operand)
    factor = holder._modules.get(FACTOR)
    result = factor(first, product) if factor else product.with_factors(first, second)
    quantizer = passing(holder, "output")
    return quantizer(result) if quantizer else result


def call_name(module: nn.Module, function: str, number: int) -> str:
    """What the `number`-th call (from 0) of a function in one forward of a module is called: matmul,
    matmul_1, ...; names that the module has for something else are left out."""
    names = chain([function], (f"{function}_{n}" for n in count(1)))
    free = filterfalse(
        lambda name: hasattr(module, name) and not isinstance(getattr(module, name), Call), names
    )
    return next(islice(free, number, None))


@dataclass(slots=True, eq=False)
class Frame:
    """One call of a module, which is called `name` in its model."""

    module: nn.Module
    name: str = ""
    called: Counter[str] = field(default_factory=Counter)
    positions: dict[int, int] = field(default_factory=dict)
    """What was called in it -> its position among the products."""

    def next(self, function: str) -> str:
        """The name of the next call of this function."""
        self.called[function] += 1
        return call_name(self.module, function, self.called[function] - 1)


class Frames:
    """The frames of a model's forward, while `hooked`."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._running = [Frame(model)]

    @property
    def current(self) -> Frame:
        """That of the innermost module that is no Call."""
        return next(f for f in reversed(self._running) if not isinstance(f.module, Call))

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Sees which module calls what."""
        with following(
            self._model,
            lambda module, name: self._running.append(Frame(module, name)),
            self._running.pop,
        ):
            yield
