"""What a forward pass multiplies, counted where torch dispatches it: functions that no layer is
called for are seen as well."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from granplugin.network.frames import Frames
from granplugin.network.raised import passed_on
from granplugin.network.torch_calls import name_of, storage_of, tensors_in
from granplugin.network.values import Values
from granplugin.quant.multiplications import Multiplication


def _convolution(args: tuple[Any, ...], result: Tensor) -> int:
    """input, weight, bias, stride, padding, dilation, transposed, ..."""
    positions = (args[0] if args[6] else result).shape
    return int(args[1].numel() * positions[0] * math.prod(positions[2:]))


def _attention(args: tuple[Any, ...], result: Any) -> int:
    """query, key, value: scores and their products with the values."""
    query, key, value = args[:3]
    return int(math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _recurrence(args: tuple[Any, ...], result: Any) -> int:
    """input [time, batch, features], then the weights, or a list of them and of biases."""
    weights = sum(each.numel() for each in tensors_in(args[1:3]) if each.ndim == 2)
    return int(math.prod(args[0].shape[:-1]) * weights)


def _conv_tbc(args: tuple[Any, ...], result: Tensor) -> int:
    """input [time, batch, in], weight [kernel, in, out]."""
    return int(math.prod(result.shape[:2]) * args[1].numel())


_aten = torch.ops.aten
_MACS: dict[Any, Callable[[tuple[Any, ...], Any], int]] = {
    _aten.mm: lambda args, result: args[0].numel() * args[1].shape[-1],
    _aten.bmm: lambda args, result: args[0].numel() * args[1].shape[-1],
    _aten.addmm: lambda args, result: args[1].numel() * args[2].shape[-1],
    _aten.baddbmm: lambda args, result: args[1].numel() * args[2].shape[-1],
    _aten.mv: lambda args, result: args[0].numel(),
    _aten.addmv: lambda args, result: args[1].numel(),
    _aten.addbmm: lambda args, result: args[1].numel() * args[2].shape[-1],
    _aten.dot: lambda args, result: args[0].numel(),
    _aten._euclidean_dist: lambda args, result: args[0].numel() * args[1].shape[-2],
    _aten.conv_tbc: _conv_tbc,
    _aten._trilinear: lambda args, result: args[0].numel() // args[1].shape[1] * args[1].numel(),
    _aten.convolution: _convolution,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention: _attention,
    _aten._scaled_dot_product_efficient_attention: _attention,
    _aten._scaled_dot_product_cudnn_attention: _attention,
    _aten.mkldnn_rnn_layer: _recurrence,
    _aten._cudnn_rnn: _recurrence,
}
"""Operator -> the multiply-accumulates of one call, by its arguments and its result."""
_IN_PLACE = {
    getattr(_aten, f"{name}_"): getattr(_aten, name)
    for name in ("addmm", "baddbmm", "addbmm", "addmv")
}
"""Operator that adds a product to what it is given -> the one that returns the sum."""


@dataclass(slots=True)
class _Product:
    """One product, as far as it was seen: its module, its function, and what it multiplied."""

    module: nn.Module
    function: str
    running_at: int
    macs: int = 0
    weights: dict[str, int] = field(default_factory=dict)


class Multiplied(TorchDispatchMode):
    """Counts the products of a model's forward, of which `values` sees the functions."""

    def __init__(self, model: nn.Module, values: Values, frames: Frames) -> None:
        super().__init__()
        self._values, self._frames = values, frames
        self._parameters: dict[int, list[tuple[str, int]]] = defaultdict(list)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                known = self._parameters[storage_of(parameter)]
                known.append((name, parameter.numel()))
        self._found: dict[tuple[str, int], _Product] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = passed_on(func, args, kwargs)
        self._values.computed((args, kwargs), result)
        operator = getattr(func, "overloadpacket", func)
        count = _MACS.get(_IN_PLACE.get(operator, operator))
        if count is not None:
            self._add(func, count(args, result), args)
        return result

    def _add(self, operator: Any, macs: int, args: tuple[Any, ...]) -> None:
        frame = self._frames.current
        positions = frame.positions
        called = self._values.running
        # What TorchScript runs is no function's call: each operator is a product then.
        call = len(positions) if called is None else -1 - self._values.running_at
        at = frame.name, positions.setdefault(call, len(positions))
        if at not in self._found:
            name = name_of(operator.overloadpacket if called is None else called)
            self._found[at] = _Product(frame.module, name.strip("_"), self._values.running_at)
        product = self._found[at]
        product.macs += macs
        for tensor in tensors_in(args):
            product.weights.update(self._parameters.get(storage_of(tensor), ()))

    def products(self, samples: int, layers: Mapping[int, str]) -> tuple[Multiplication, ...]:
        """In the order of their first call, for one sample of a pass over so many; `layers` has
        those that are calls, by the number of the function's call. What is called within a module
        that is a layer, as by a hook of it, has a place of its own there."""
        own = {place for (place, _), found in self._found.items() if _multiplies(place, found)}

        def named(place: str, product: _Product) -> str:
            theirs = place in own and not _multiplies(place, product)
            return f"{place}.{product.function}" if theirs else place

        return tuple(
            Multiplication(
                layers.get(found.running_at, named(place, found)),
                type(found.module).__name__,
                found.function,
                found.macs // samples,
                tuple((found.weights or _own(place, found.module)).items()),
            )
            for (place, _), found in self._found.items()
        )


def _multiplies(place: str, product: _Product) -> bool:
    """Whether it is with the weight of the module that calls it."""
    return f"{place}.weight" in product.weights


def _own(place: str, module: nn.Module) -> dict[str, int]:
    """The weight of a module that multiplies what it computes from it."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.ndim < 2:
        return {}
    return {f"{place}.weight": weight.numel()}
