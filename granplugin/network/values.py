"""The flow of values through a torch model's forward, recorded call by call.

A value is what a tensor holds until it is changed in place: then every tensor on the same storage
gets a new value. What runs inside TorchScript and torch.vmap is not seen, but for whether data
reach what it puts out.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from granplugin.network.flow import Flow
from granplugin.network.forward import batched_shape
from granplugin.network.frames import Frame, Frames
from granplugin.network.opened import opened
from granplugin.network.product_calls import Product, product_of
from granplugin.network.raised import passed_on
from granplugin.network.torch_calls import (
    SHAPE_READERS,
    addends,
    in_vmap,
    kind_of,
    name_of,
    storage_of,
    tensors_in,
)
from granplugin.quant.site import Shape

# These return no tensor and yet look at the values.
_READERS = frozenset(
    "item tolist numpy __array__ __float__ __int__ __index__ __bool__ equal allclose".split()
)


class Called(NamedTuple):
    """A torch function and what it was given."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class CalledProduct(NamedTuple):
    """A product that is called `name` in its frame, the `running_at`-th call of any function; the
    values of its factors and of its result, and the latter's shape and type."""

    frame: Frame
    name: str
    product: Product
    running_at: int
    first: int
    second: int
    result: int
    shape: Shape
    kind: torch.dtype


class Values(TorchFunctionMode):
    """Records which function read and wrote which value: `calls[op.at]` is the call behind an
    operation of `flow`. `products` are the calls that multiply two tensors, which `frames` tell
    where they are called."""

    def __init__(self, frames: Frames) -> None:
        super().__init__()
        self.flow = Flow()
        self.calls: list[Called] = []
        self.products: list[CalledProduct] = []
        self._frames = frames
        self.running: Any = None
        """The function that is being called, the `running_at`-th; None outside of any."""
        self.running_at = 0
        self._current: dict[int, int] = {}
        # Kept alive, or Python would give a new tensor an old one's id.
        self._tensors: list[Tensor] = []
        self._on_storage: dict[int, list[int]] = defaultdict(list)
        self._sizes: dict[int, int] = {}
        self._reached: dict[int, Tensor] = {}
        """Storage that data reach -> a tensor on it, kept for the same reason."""

    def computed(self, given: Any, result: Any) -> None:
        """An operator made this of that, whichever function called it: what data reach is known
        even where no function is seen."""
        if name_of(self.running) in SHAPE_READERS:
            return
        if any(storage_of(tensor) in self._reached for tensor in tensors_in(given)):
            for tensor in tensors_in(result):
                self._reached.setdefault(storage_of(tensor), tensor)

    def number(self, tensor: Tensor, data: bool = False) -> int:
        """The value the tensor holds now; `data` where it depends on a model input."""
        known = self._current.get(id(tensor))
        if known is not None:
            return known
        self._tensors.append(tensor)
        storage = storage_of(tensor)
        self._on_storage[storage].append(id(tensor))
        self._sizes[id(tensor)] = tensor.numel()
        if data:
            self._reached.setdefault(storage, tensor)
        return self._new(id(tensor), data or storage in self._reached)

    def _new(self, tensor_id: int, data: bool) -> int:
        number = self._current[tensor_id] = self.flow.value(data)
        return number

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if (whole := opened(func, args, kwargs)) is not None:
            with self:
                return whole(*args, **kwargs)
        given = list(tensors_in((args, kwargs)))
        versions = [_version(tensor) for tensor in given]
        self.running_at += 1
        running_at = self.running_at
        called = self._called(func, args, kwargs)
        result = self._run(func, args, kwargs)
        numbers = [self.number(tensor) for tensor in given]
        changed = [t for t, version in zip(given, versions, strict=True) if _version(t) != version]
        new = [t for t in tensors_in(result) if id(t) not in self._current]
        if not changed and not new and name_of(func) not in _READERS:
            return result  # a shape, a flag, or the very tensor that was given
        # Whatever shares the changed storage is read and written too.
        touched = [
            tensor_id for tensor in changed for tensor_id in self._on_storage[storage_of(tensor)]
        ]
        reads = tuple(dict.fromkeys([*numbers, *(self._current[i] for i in touched)]))
        data = any(map(self.flow.data.__getitem__, reads)) and name_of(func) not in SHAPE_READERS
        most = max((tensor.numel() for tensor in changed), default=0)
        writes = [self._new(i, data) for i in dict.fromkeys(touched)]
        wider = [self._current[i] for i in touched if self._sizes[i] > most]
        writes += [self.number(tensor, data) for tensor in new]
        self.calls.append(Called(func, args, kwargs))
        shape = _sum(func, args, kwargs)
        self.flow.record(kind_of(func, args, kwargs), reads, writes, shape, wider)
        if called is not None:
            frame, name, product = called
            first, second, put_out = map(self.number, (product.first, product.second, result))
            shape = batched_shape(result)
            self.products.append(
                CalledProduct(
                    frame, name, product, running_at, first, second, put_out, shape, result.dtype
                )
            )
        return result

    def _called(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Frame, str, Product] | None:
        """A product with its frame and what it is called there; None for any other call."""
        product = product_of(func, args, kwargs)
        if product is None:
            return None
        frame = self._frames.current
        return frame, frame.next(product.name), product

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inside = any(in_vmap(tensor) for tensor in tensors_in((args, kwargs)))
        before, self.running = self.running, torch.vmap if inside else func
        try:
            return passed_on(func, args, kwargs)
        finally:
            self.running = before


def _sum(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Shape | None:
    """The shape of two floats of one shape that are added."""
    added = addends(function, args, kwargs)
    if added is None or added[0].shape != added[1].shape or not added[0].is_floating_point():
        return None
    return batched_shape(added[0])


def _version(tensor: Tensor) -> int:
    # Tensors made in inference mode have no version: changes in place go unseen there.
    return 0 if tensor.is_inference() else tensor._version
