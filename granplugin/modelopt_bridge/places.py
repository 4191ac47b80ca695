"""Quantizers where modelopt puts none: at the skip inputs of residual adds, and at the operands of
calls in modules' forwards. What these are is no module, or one that modelopt does not know."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from granplugin.modelopt_bridge.library import CUSTOM_MODEL_PLUGINS, TensorQuantizer
from granplugin.modelopt_bridge.saved import saved_quantizers
from granplugin.modelopt_bridge.sited import convert_only
from granplugin.network.call_quantizers import CallQuantizers, place_of, stands
from granplugin.network.frames import QUANTIZER
from granplugin.network.modules import sited
from granplugin.network.skip_inputs import SKIP_QUANTIZER, SkipInputs
from granplugin.planning.quantize_config import METHOD
from granplugin.quant.layers import Layer
from granplugin.quant.site import OPERANDS

_MARK = "_granplugin_quantizers"


@dataclass(frozen=True)
class _Wanted:
    """The operands that calls have, by name, but for skip inputs, and which layers have those."""

    calls: Mapping[str, Collection[str]] = field(default_factory=dict)
    skips: Collection[str] = ()


def want_quantizers(model: nn.Module, layers: Iterable[Layer]) -> None:
    """Let the next conversion of the model convert these layers alone, and give those that are
    calls, and the skip inputs of all, quantizers, off, that their tensors go through from then on.
    (modelopt converts no model that has quantizers.)
    """
    usable = [layer for layer in layers if not layer.unusable]
    convert_only(model, [layer.name for layer in usable if not layer.call])
    wanted = _Wanted(
        {layer.name: {*layer.operands} - {"skip"} for layer in usable if layer.call},
        [layer.name for layer in usable if layer.site("skip")],
    )
    setattr(model, _MARK, wanted)


def _add(model: nn.Module) -> None:
    wanted = getattr(model, _MARK, _Wanted())
    if saved := saved_quantizers(model, f"{METHOD}_calibrate"):
        wanted = _of_names(model, saved)
    calls = {name: place_of(model, name) for name in wanted.calls}
    for name, place in calls.items():
        for operand in sorted(wanted.calls[name]):
            place.add_module(f"{operand}{QUANTIZER}", _off())
    skips = {name: model.get_submodule(name) for name in wanted.skips}
    for layer in skips.values():
        layer.add_module(SKIP_QUANTIZER, _off())
    if calls:
        CallQuantizers(model)
    if skips:
        SkipInputs(model, [name for name, layer in skips.items() if not stands(layer)])


def _off() -> TensorQuantizer:
    quantizer = TensorQuantizer()
    quantizer.disable()
    return quantizer


def _of_names(model: nn.Module, quantizers: Iterable[str]) -> _Wanted:
    """What these quantizers are for, in so far as modelopt does not put them in itself."""
    own, calls, skips = sited(model), dict[str, set[str]](), []
    for name in sorted(quantizers):
        place, _, child = name.rpartition(".")
        operand = child.removesuffix(QUANTIZER)
        if operand == "skip":
            skips.append(place)
        elif operand in OPERANDS and place not in own:
            calls.setdefault(place, set()).add(operand)
    return _Wanted(calls, skips)


# modelopt calls this when it converts or restores a model, before it puts in its quantizers.
CUSTOM_MODEL_PLUGINS.add(_add)
