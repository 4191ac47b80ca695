"""A plan as Python for pytorch-quantization: default descriptors of its classes, the layers that
differ, its calibrators, and ranges of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from granplugin.convert.compact import Unsaid, compacted
from granplugin.planning.rows import Plan, QuantizedRow
from granplugin.quant.formats import FORMATS
from granplugin.quant.layers import Layer
from granplugin.words import first

_REPLACED = {
    *(f"Conv{rank}d" for rank in (1, 2, 3)),
    *(f"ConvTranspose{rank}d" for rank in (1, 2, 3)),
    *(f"{kind}Pool{rank}d" for kind in ("Avg", "AdaptiveAvg") for rank in (1, 2, 3)),
    "Linear",
}
"""What quant_modules.initialize() replaces, but for recurrent layers."""
_CUSTOM = {
    *(f"MaxPool{rank}d" for rank in (1, 2, 3)),
    *(f"InstanceNorm{rank}d" for rank in (1, 2, 3)),
}
"""What it has a class for, and replaces where it is told so."""


@dataclass(frozen=True, slots=True)
class _Descriptor:
    """The arguments of a QuantDescriptor; how its histogram, if any, becomes a range, and the range
    where it is given."""

    arguments: str
    method: str | None = None
    amax: float | None = None

    def __str__(self) -> str:
        return f"QuantDescriptor({self.arguments})"


def program(plan: Plan, layers: Sequence[Layer], source: str) -> tuple[str, list[str]]:
    """The text of the module, and what it does not say."""
    usable = [each for each in layers if each.type in _REPLACED | _CUSTOM and not each.call]
    found = compacted(plan, usable, _said, "pytorch-quantization")
    types = {kind for kind, _ in found.common}
    defaults: list[str] = []
    for (kind, operand), given in found.common.items():
        if given is not None:
            defaults.append(f"    quant_nn.Quant{kind}.set_default_quant_desc_{operand}({given})")
    differing: list[str] = []
    for layer in usable:
        told: list[str] = []
        for operand in ("input", "weight") if layer.type in types else ():
            common = found.common.get((layer.type, operand))
            given = found.others.get((layer, operand), common)
            # A class without a default of ours has one of its own.
            if (given is None or given != common) and layer.site(operand):
                told.append(f'"{operand}": {given}')
        if told:
            differing.append(f"    {layer.name!r}: {{{', '.join(told)}}},\n")
    named = {layer.name for layer in usable}
    unknown = [row.site for row in plan.quantized if row.layer not in named]
    lost = list(found.lost)
    if unknown:
        lost.append(f"{first(unknown)}: it has no class for such layers; they stay float")
    descriptors = {
        row.site: said
        for row in plan.quantized
        if row.layer in named and isinstance(said := _said(row), _Descriptor)
    }
    methods = [
        f"    {site!r}: {{{said.method}}},\n" for site, said in descriptors.items() if said.method
    ]
    ranges = [f"    {site!r}: {said.amax!r},\n" for site, said in descriptors.items() if said.amax]
    text = _TEXT.format(
        source=source,
        defaults="\n".join(defaults) or "    pass",
        layers=_lines(differing),
        float_types=sorted({*_REPLACED, "LSTM", "LSTMCell"} - types),
        custom=", ".join(
            f'(torch.nn, "{kind}", quant_nn.Quant{kind})' for kind in sorted(types & _CUSTOM)
        ),
        methods=_lines(methods),
        ranges=_lines(ranges),
    )
    return text, lost


def _lines(items: Sequence[str]) -> str:
    return "".join(["\n", *items]) if items else ""


def _said(row: QuantizedRow) -> _Descriptor | Unsaid:
    fmt = FORMATS[row.format]
    if row.operand == "output":
        return Unsaid("its layers have no output quantizer; it stays float")
    if not fmt.integer:
        return Unsaid(f"{row.format}: its formats are integers; it stays float")
    if row.dynamic:
        return Unsaid("scales of run time would span the batch there; it stays float")
    if any(cells not in (1, row.shape[axis]) for axis, cells in enumerate(row.grid)):
        return Unsaid(f"{row.granularity}: it has axes and no blocks; it stays float")
    axes = tuple(axis for axis, cells in enumerate(row.grid) if cells > 1)
    arguments = [f"num_bits={fmt.bits}"]
    arguments += [f"axis={axes}"] if axes else []
    method = None
    if row.amax is None and str(row.calibrator) != "max" and not axes:
        arguments.append('calib_method="histogram"')
        name, value = row.calibrator.kind, row.calibrator.percentile
        method = f'"method": "{name}"' + ("" if value is None else f', "percentile": {value}')
    return _Descriptor(", ".join(arguments), method, row.amax)


_TEXT = '''"""The quantization of {source} for pytorch-quantization.

    model = quantize(make)            # make() builds the network, with nn.Conv2d and the like
    model.load_state_dict(weights)
    load_amax(model, "amax.json")     # granplugin apply ... --set statistics.export=amax.json
    # or: calibrate(model, lambda model: [model(batch) for batch in batches])
"""

import json
from pathlib import Path

import torch
from pytorch_quantization import nn as quant_nn
from pytorch_quantization import quant_modules
from pytorch_quantization.tensor_quant import QuantDescriptor

# Layers that differ from the defaults of their class; None is float.
LAYERS = {{{layers}}}
# Ranges that are given, and not calibrated. (As `amax` of a descriptor one would be missing in
# every state dict of the float network.)
RANGES = {{{ranges}}}
# How histograms become ranges; all others are by max.
METHODS = {{{methods}}}


def set_defaults():
{defaults}


def quantize(make):
    """What make() returns, with the layers of torch.nn replaced that are quantized."""
    set_defaults()
    quant_modules.initialize({float_types}, [{custom}])
    try:
        model = make()
    finally:
        quant_modules.deactivate()
    for name, said in LAYERS.items():
        layer = model.get_submodule(name)
        for role, descriptor in said.items():
            if descriptor is not None:
                if not hasattr(layer, f"_{{role}}_quantizer"):
                    raise TypeError(f"{{name}}: make() does not build it with a class of torch.nn")
                setattr(layer, f"_{{role}}_quantizer", quant_nn.TensorQuantizer(descriptor))
            elif hasattr(layer, f"_{{role}}_quantizer"):
                getattr(layer, f"_{{role}}_quantizer").disable()
    return model


def quantizers(model):
    """The quantizers that are on, by their site: fc.weight."""
    return {{
        name.removesuffix("_quantizer").replace("._", "."): each
        for name, each in model.named_modules()
        if isinstance(each, quant_nn.TensorQuantizer) and not each._disabled
    }}


def put(quantizer, values):
    amax = torch.tensor(values)
    if hasattr(quantizer, "_amax"):
        del quantizer._amax
    quantizer.register_buffer("_amax", amax if amax.numel() > 1 else amax.reshape(()))


def load_amax(model, path):
    """Ranges as granplugin wrote them, to the bit; returns the sites that have none here."""
    sites = json.loads(Path(path).read_text())["sites"]
    found = quantizers(model)
    for site, quantizer in found.items():
        put(quantizer, sites[site]["amax"])
    return sorted(sites.keys() - found.keys())


def calibrate(model, run):
    """Ranges by pytorch-quantization's own calibrators; run(model) runs data through it."""
    found = quantizers(model)
    for site, amax in RANGES.items():
        put(found.pop(site), amax)
    for quantizer in found.values():
        quantizer.disable_quant()
        quantizer.enable_calib()
    with torch.no_grad():
        run(model)
    for site, quantizer in found.items():
        quantizer.load_calib_amax(**METHODS.get(site, {{}}))
        quantizer.enable_quant()
        quantizer.disable_calib()
'''
