"""What a forward pass multiplies, counted where torch dispatches it: functions that no layer is
called for are seen as well."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from granplugin.network.torch_calls import name_of, tensors_in
from granplugin.network.values import Values
from granplugin.quant.multiplications import Multiplication


def _convolution(args: tuple, result: Tensor) -> int:
    """input, weight, bias, stride, padding, dilation, transposed, ..."""
    positions = (args[0] if args[6] else result).shape
    return int(args[1].numel() * positions[0] * math.prod(positions[2:]))


def _attention(args: tuple, result: Any) -> int:
    """query, key, value: scores and their products with the values."""
    query, key, value = args[:3]
    return int(math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _recurrence(args: tuple, result: Any) -> int:
    """input [time, batch, features], then the weights, or a list of them and of biases."""
    weights = sum(each.numel() for each in tensors_in(args[1:3]) if each.ndim == 2)
    return int(math.prod(args[0].shape[:-1]) * weights)


_aten = torch.ops.aten
_MACS: dict[Any, Callable[[tuple, Any], int]] = {
    _aten.mm: lambda args, result: args[0].numel() * args[1].shape[-1],
    _aten.bmm: lambda args, result: args[0].numel() * args[1].shape[-1],
    _aten.addmm: lambda args, result: args[1].numel() * args[2].shape[-1],
    _aten.baddbmm: lambda args, result: args[1].numel() * args[2].shape[-1],
    _aten.mv: lambda args, result: args[0].numel(),
    _aten.addmv: lambda args, result: args[1].numel(),
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


@dataclass(slots=True)
class _Product:
    """One product, as far as it was seen: its module, its function, and what it multiplied."""

    module: nn.Module
    function: str
    macs: int = 0
    weights: dict[str, int] = field(default_factory=dict)


class Multiplied(TorchDispatchMode):
    """Counts the products of a model's forward, of which `values` sees the functions."""

    def __init__(self, model: nn.Module, values: Values) -> None:
        super().__init__()
        self._model, self._values = model, values
        self._parameters: dict[int, list[tuple[str, int]]] = defaultdict(list)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                known = self._parameters[parameter.untyped_storage()._cdata]
                known.append((name, parameter.numel()))
        # In each module that is being called: function's call -> its position among the products.
        self._inside: list[tuple[str, nn.Module, dict[int, int]]] = [("", model, {})]
        self._found: dict[tuple[str, int], _Product] = {}

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Sees which module calls what."""
        hooks = []
        try:
            for name, module in self._model.named_modules():
                if isinstance(module, torch.jit.ScriptModule):
                    continue

                def enter(module: nn.Module, args: tuple, name: str = name) -> None:
                    self._inside.append((name, module, {}))

                def leave(module: nn.Module, args: tuple, output: Any) -> None:
                    self._inside.pop()

                hooks.append(module.register_forward_pre_hook(enter))
                hooks.append(module.register_forward_hook(leave))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        count = _MACS.get(getattr(func, "overloadpacket", func))
        if count is not None:
            self._add(func, count(args, result), args)
        return result

    def _add(self, operator: Any, macs: int, args: tuple) -> None:
        place, module, positions = self._inside[-1]
        called = self._values.running
        # What TorchScript runs is no function's call: each operator is a product then.
        call = len(positions) if called is None else -1 - self._values.running_at
        at = place, positions.setdefault(call, len(positions))
        if at not in self._found:
            name = name_of(operator.overloadpacket if called is None else called)
            self._found[at] = _Product(module, name.strip("_"))
        product = self._found[at]
        product.macs += macs
        for tensor in tensors_in(args):
            product.weights.update(self._parameters.get(_storage(tensor), ()))

    def products(self, samples: int) -> tuple[Multiplication, ...]:
        """In the order of their first call, for one sample of a pass over so many."""
        return tuple(
            Multiplication(
                place,
                type(found.module).__name__,
                found.function,
                found.macs // samples,
                tuple((found.weights or _own(place, found.module)).items()),
            )
            for (place, _), found in self._found.items()
        )


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except NotImplementedError:  # sparse
        return 0


def _own(place: str, module: nn.Module) -> dict[str, int]:
    """The weight of a module that multiplies what it computes from it."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.ndim < 2:
        return {}
    return {f"{place}.weight": weight.numel()}
