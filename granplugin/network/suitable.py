"""Which modules cannot be quantized, and which only wrap one that can."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import nn

from granplugin.errors import ModelError
from granplugin.words import counted, first

log = logging.getLogger(__name__)

_WRAPPED = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}
"""Classes of torch that compute what a module of theirs does -> what they call it."""


def unsuitable(model: nn.Module) -> str | None:
    """Why the model cannot be quantized, and the way out; None where it can be: TorchScript has no
    modules that modelopt knows, and float16 is a file's precision."""
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            return (
                f"{f'its {name!r}' if name else 'it'} is a TorchScript module, which cannot be "
                "quantized; return the nn.Module that it was made of"
            )
    if older := [name for name in quantizers_in(model) if _is_older(modules[name])]:
        others = len(quantizers_in(model)) - len(older)
        both = f", beside {others} of modelopt" if others else ""
        return (
            f"it holds {counted(older, 'quantizer')} of pytorch-quantization ({first(older)}){both}; "
            "save its state_dict, make a recipe of that with granplugin convert, and return the "
            "float network"
        )
    for name, parameter in model.named_parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            precision = "fp16" if parameter.dtype == torch.float16 else "bf16"
            kind = str(parameter.dtype).removeprefix("torch.")
            return (
                f"its parameter {name!r} is {kind}; load it as float32 (model.float()), and write "
                f"precision: {precision} for a file in {kind}"
            )
    return None


def refuse_quantizers(quantizers: Sequence[str]) -> None:
    """ModelError where there are any of these: they would be lost."""
    if quantizers:
        raise ModelError(
            f"the model holds {counted(quantizers, 'quantizer')} of modelopt already "
            f"({first(quantizers)}), which would be lost; write model.quantized: keep to take them "
            "over, or return it as it was before mtq.quantize"
        )


def quantizers_in(model: nn.Module) -> list[str]:
    """The names of modelopt's or pytorch-quantization's quantizers in a model."""
    return [name for name, module in model.named_modules() if is_quantizer(module)]


def is_quantizer(module: nn.Module) -> bool:
    """Whether this is one of modelopt's, which is not imported to tell."""
    return any(cls.__name__ == "TensorQuantizer" for cls in type(module).__mro__)


def _is_older(quantizer: nn.Module) -> bool:
    return type(quantizer).__module__.startswith("pytorch_quantization.")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without what only wraps it or a module of it, of which neither layers' names nor
    results depend; parts of the model are changed in place."""
    while (inner := _inner(model)) is not None:
        log.info("took %s off the model", type(model).__name__)
        model = inner
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module._compiled_call_impl is not None:
            # What module.compile() made runs without the hooks of the modules in it.
            module._compiled_call_impl = None
        for child, wrapper in list(module.named_children()):
            part = wrapper
            while (inner := _inner(part)) is not None:
                part = inner
            if part is not wrapper:
                setattr(module, child, part)
                log.info("took %s off %s", type(wrapper).__name__, f"{name}.{child}".lstrip("."))
    return model


def wrapped(model: nn.Module) -> str | None:
    """Why a model that only wraps another is not quantized in place; None where it wraps none."""
    if _inner(model) is None:
        return None
    if type(model).__name__ == "OptimizedModule":
        return (
            "the model is compiled (torch.compile), and quantizers go into the modules that it was "
            "made of: give that model, and compile the result, which gains nothing"
        )
    return f"the model is wrapped in {type(model).__name__}: quantize its module, and wrap that"


def _inner(module: nn.Module) -> nn.Module | None:
    for cls in type(module).__mro__:
        if cls.__module__.startswith("torch.") and cls.__name__ in _WRAPPED:
            inner: nn.Module = getattr(module, _WRAPPED[cls.__name__])
            return inner
    return None
