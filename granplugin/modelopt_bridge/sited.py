"""Conversion of the layers that have sites, and of no other module.

modelopt converts every module that it knows a class for: it takes recurrences apart step by step,
and lets fused experts run code that cannot be exported, also where all their quantizers are off.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from granplugin.modelopt_bridge.library import (
    CUSTOM_MODEL_PLUGINS,
    CUSTOM_POST_CONVERSION_PLUGINS,
    QuantModuleRegistry,
)
from granplugin.modelopt_bridge.saved import saved_quantizers
from granplugin.network.modules import sited
from granplugin.planning.quantize_config import METHOD

_MARK = "_granplugin_sited"
_CLASS = "_granplugin_class"


def convert_only(model: nn.Module, layers: Iterable[str]) -> None:
    """Let the next conversion of the model leave every module as it is that is none of these."""
    setattr(model, _MARK, frozenset(layers))


class _Left(nn.Module):
    """The class, during a conversion, of a module that is left as it is."""


def _before(model: nn.Module) -> None:
    layers = getattr(model, _MARK, None)
    if saved := saved_quantizers(model, f"{METHOD}_calibrate"):
        layers = {name.rpartition(".")[0] for name in saved}.intersection(sited(model))
    if layers is None:
        for plugin in _THEIRS:
            plugin(model)
        return
    for name, module in model.named_modules():
        if name not in layers and type(module) in QuantModuleRegistry:
            module.__dict__[_CLASS], module.__class__ = type(module), _Left


def _after(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, _Left):
            module.__class__ = module.__dict__.pop(_CLASS)


# modelopt calls these when it converts or restores a model, before and after it puts in its
# quantizers; its own, which register classes and change a model's config, are for the modules that
# are left as they are.
_THEIRS = frozenset(CUSTOM_MODEL_PLUGINS)
CUSTOM_MODEL_PLUGINS.difference_update(_THEIRS)
CUSTOM_MODEL_PLUGINS.add(_before)
CUSTOM_POST_CONVERSION_PLUGINS.add(_after)
