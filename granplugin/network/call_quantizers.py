"""Quantizers for the operands of calls, put in their way while the model runs.

A product that a function computes is no module, so modelopt gives it no quantizers. They are
children of a Call - a child of the module whose forward calls the function, named after the call -
or of that module itself where it stands for its one product. Where a module reads the weight of a
child of its own instead of calling it, that child's quantizers are the product's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from granplugin.network import skip_inputs
from granplugin.network.frames import FACTOR, QUANTIZER, Call, Frame, passing, quantized
from granplugin.network.opened import opened
from granplugin.network.product_calls import Product, product_of
from granplugin.network.raised import passed_on
from granplugin.quant.site import OPERANDS

_STANDS = "_granplugin_stands"
_WHOLE = "_granplugin_calls"


class _Running(threading.local):
    """The frames of this thread, and the modes that are on with the frame that each began in."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.modes: list[tuple[Frame, _Quantizing]] = []


_RUNNING = _Running()


class CallQuantizers:
    """Lets the operands of a model's calls go through the quantizers there are for them. Its hooks
    are copied with the model, which has them once."""

    def __init__(self, model: nn.Module) -> None:
        if not self.missing(model):
            return
        # On in all of it: torch has fast paths around modules that it takes without a mode.
        setattr(model, _WHOLE, True)
        for module in list(model.modules()):
            if not isinstance(module, (Call, torch.jit.ScriptModule)):
                module.register_forward_pre_hook(self._enter)
                module.register_forward_hook(self._leave, always_call=True)

    @staticmethod
    def missing(model: nn.Module) -> bool:
        """Whether the model has none of these hooks."""
        return _WHOLE not in model.__dict__

    @staticmethod
    def remove(model: nn.Module) -> None:
        """Take the hooks off."""
        delattr(model, _WHOLE)
        for module in model.modules():
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                for key in [key for key, hook in hooks.items() if _is_ours(hook)]:
                    del hooks[key]
                    module._forward_hooks_always_called.pop(key, None)

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        # Of a part that is run alone, such as a checkpoint's, the mode is on within what has calls.
        begins = _WHOLE in module.__dict__ or stands(module) or _has_calls(module)
        if not _RUNNING.modes and not begins:
            return
        frame = Frame(module)
        _RUNNING.frames.append(frame)
        if not _RUNNING.modes:
            mode = _Quantizing()
            mode.__enter__()
            _RUNNING.modes.append((frame, mode))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        frames = _RUNNING.frames
        # An exporter runs stand-ins of modules, which share what these hold.
        if not any(frame.module.__dict__ is module.__dict__ for frame in frames):
            return
        while True:  # frames of modules that raised are left too
            frame = frames.pop()
            if _RUNNING.modes and _RUNNING.modes[-1][0] is frame:
                _RUNNING.modes.pop()[1].__exit__(None, None, None)
            if frame.module.__dict__ is module.__dict__:
                return


@contextmanager
def left_behind() -> Iterator[None]:
    """Leaves what was entered within. An exporter runs no hook behind a forward that raises."""
    frames, modes = len(_RUNNING.frames), len(_RUNNING.modes)
    try:
        yield
    finally:
        while len(_RUNNING.modes) > modes:
            _RUNNING.modes.pop()[1].__exit__(None, None, None)
        del _RUNNING.frames[frames:]


def _is_ours(hook: object) -> bool:
    return isinstance(getattr(hook, "__self__", None), CallQuantizers)


def let_stand(module: nn.Module) -> None:
    """The one product that this module's forward calls goes through quantizers of its own."""
    setattr(module, _STANDS, True)


def stands(module: nn.Module) -> bool:
    """Whether let_stand was called for it."""
    return _STANDS in module.__dict__


def place_of(model: nn.Module, name: str) -> nn.Module:
    """What holds the quantizers of the call of this name, made where there is none: the module that
    stands for it, or a Call."""
    parent, _, child = name.rpartition(".")
    module = model.get_submodule(parent)
    held = module._modules.get(child) if child else module
    if held is None:
        held = Call()
        module.add_module(child, held)
    elif not isinstance(held, Call):
        let_stand(held)
    return held


def clear_place(model: nn.Module, name: str) -> None:
    """Undo place_of where what it gave holds no quantizer."""
    parent, _, child = name.rpartition(".")
    held = model.get_submodule(name)
    if any(passing(held, operand) for operand in OPERANDS):
        return
    if isinstance(held, Call):
        del model.get_submodule(parent)._modules[child]
    else:
        delattr(held, _STANDS)


class _Quantizing(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        frame = _RUNNING.frames[-1]
        holds = _has_calls(frame.module) or stands(frame.module)
        whole = opened(func, args, kwargs) if holds else None
        if whole is not None:
            with self:
                return whole(*args, **kwargs)
        product = product_of(func, args, kwargs)
        if product is None:
            return passed_on(func, args, kwargs)
        held = frame.module._modules.get(frame.next(product.name))
        if isinstance(held, Call):
            return held(product)
        if stands(frame.module):
            result = quantized(frame.module, product)
            skip_inputs.put_out(frame.module, result)
            return result
        read = _read(frame.module, product)
        return passed_on(func, args, kwargs) if read is None else quantized(read, product)


def _has_calls(module: nn.Module) -> bool:
    return any(isinstance(child, Call) for child in module._modules.values())


def _read(module: nn.Module, product: Product) -> nn.Module | None:
    """The child of a module whose weight the product reads, if it has quantizers."""
    for child in module._modules.values():
        if child is not None and child._parameters.get("weight") is product.second:
            ours = {f"weight{QUANTIZER}", FACTOR}
            return None if ours.isdisjoint(child._modules) else child
    return None
