"""A model that modelopt has quantized, taken apart: the float model, and what its quantizers do."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from granplugin.errors import ModelError
from granplugin.modelopt_bridge.library import ModeloptStateManager, QuantModule, TensorQuantizer
from granplugin.network import batch_norms
from granplugin.network.call_quantizers import CallQuantizers
from granplugin.network.copying import copy_of
from granplugin.network.folded_calls import folded_calls, run_folded
from granplugin.network.frames import FOLDED_NORM, Call
from granplugin.network.skip_inputs import SkipInputs
from granplugin.network.suitable import is_quantizer
from granplugin.network.taken import Quantizers, arrays_of, quantizers_of

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_OURS = (CallQuantizers, SkipInputs)


def take_apart(model: nn.Module) -> tuple[nn.Module, Quantizers]:
    """A float copy of the model, with the weights it trained, and its quantizers. Raises
    ModelError where some are not modelopt's."""
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if is_quantizer(module) and not isinstance(module, TensorQuantizer):
            raise ModelError(
                f"{name} is a quantizer of {type(module).__module__.partition('.')[0]}, and not of "
                "modelopt; save the model's state_dict and see `granplugin convert`"
            )
    states = {
        name: module.get_modelopt_state()
        for name, module in modules.items()
        if hasattr(module, "get_modelopt_state")
    }
    modes = (
        ModeloptStateManager(model).state_dict() if ModeloptStateManager.is_converted(model) else []
    )
    # Attributes may have been set since modelopt recorded its state.
    quantizers = quantizers_of(
        [*modes, ("", {"metadata": {"quantizer_state": states}})], arrays_of(model.state_dict())
    )
    return _without(copy_of(model)), quantizers


def _without(model: nn.Module) -> nn.Module:
    """The model without quantizers, and without what runs them, changed in place; batch norms that
    are folded into calls stay there."""
    folded = folded_calls(model)
    for module in list(model.modules()):
        if isinstance(module, QuantModule):
            module.export()
        for child, held in list(module._modules.items()):
            call = isinstance(held, Call) and FOLDED_NORM not in held._modules
            if call or (held is not None and is_quantizer(held)):
                del module._modules[child]
        for hooks in _HOOKS:
            kept = OrderedDict(
                (key, hook) for key, hook in getattr(module, hooks).items() if not _is_ours(hook)
            )
            setattr(module, hooks, kept)
        for key in [key for key in vars(module) if key.startswith(("_granplugin_", "_modelopt_"))]:
            delattr(module, key)
    run_folded(model, folded)
    return model


def _is_ours(hook: object) -> bool:
    ours = getattr(hook, "__module__", "") == batch_norms.__name__
    return ours or isinstance(getattr(hook, "__self__", None), _OURS)
