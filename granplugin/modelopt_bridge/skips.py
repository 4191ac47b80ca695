"""Quantizers for skip inputs: residual adds are no modules, so modelopt gives them none."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from granplugin.modelopt_bridge.library import CUSTOM_MODEL_PLUGINS, TensorQuantizer
from granplugin.modelopt_bridge.saved import saved_quantizers
from granplugin.network.skip_inputs import SKIP_QUANTIZER, SkipInputs

_MARK = "_granplugin_skips"


def want_skip_quantizers(model: nn.Module, layers: Iterable[str]) -> None:
    """Let the next conversion of the model give each of these layers a quantizer, off, that its
    skip input goes through from then on. (modelopt converts no model that has quantizers.)
    """
    setattr(model, _MARK, tuple(layers))


def _add(model: nn.Module) -> None:
    layers = getattr(model, _MARK, ())
    if saved := saved_quantizers(model):
        ours = [name for name in sorted(saved) if name.endswith(f".{SKIP_QUANTIZER}")]
        layers = [name.removesuffix(f".{SKIP_QUANTIZER}") for name in ours]
    for name in layers:
        quantizer = TensorQuantizer()
        quantizer.disable()
        model.get_submodule(name).add_module(SKIP_QUANTIZER, quantizer)
    if layers:
        SkipInputs(model, layers)


# modelopt calls this when it converts or restores a model, before it puts in its quantizers.
CUSTOM_MODEL_PLUGINS.add(_add)
