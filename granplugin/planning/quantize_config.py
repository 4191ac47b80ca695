"""The plan as modelopt takes it: one complete, exactly named entry per quantized row.

modelopt's later entries win and replace every attribute, and a pattern that matches nothing is
silent, so nothing is left to patterns. Block shapes become an `axis` and an amax that is as long
as the tensor where scales vary: modelopt's own `block_sizes` would fix the batch of an input and
cut convolutions along the kernel's width, and its `axis` over all dims is silently per tensor.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from granplugin.planning.row_json import row_to_json
from granplugin.planning.rows import QuantizedRow, Row
from granplugin.quant.formats import FORMATS
from granplugin.quant.granularity import PerTensor
from granplugin.quant.layers import Layer, layer_to_json

METHOD = "granplugin"
_MOST_ENTRIES = 500
"""modelopt matches every entry with every module: 4,000 take two minutes. Beyond this many the
calibration mode alone sets the quantizers, from the same sites."""


def config(
    rows: Iterable[Row],
    folded: Iterable[Layer] = (),
    training: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The config for `mtq.quantize`: everything off, then the quantized rows; plain JSON values
    but for the tuples in `num_bits` and `axis`. The batch norms behind the layers `folded` are
    folded when the ranges have been found; `training` has the keys of a recipe's section `qat`."""
    quantized = [row for row in rows if row.quantized]
    entries = [
        {"quantizer_name": glob.escape(quantizer_name(row)), "cfg": attributes(row)}
        for row in quantized
    ]
    return {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            *(entries if len(entries) <= _MOST_ENTRIES else ()),
        ],
        "algorithm": {
            "method": METHOD,
            "sites": [site_entry(row) for row in quantized],
            "folded": [layer_to_json(replace(layer, sites=(), given=None)) for layer in folded],
            "training": dict(training),
        },
    }


def quantizer_name(row: QuantizedRow) -> str:
    """Where modelopt keeps the row's quantizer; the model itself has the layer name ''.

    A weight's is weight_quantizer, an input's input_quantizer, an output's output_quantizer.
    """
    return f"{row.site}_quantizer".removeprefix(".")


def attributes(row: QuantizedRow) -> dict[str, Any]:
    """num_bits, and the axes on which the scale varies; None for one scale. What is found at run
    time is so sample by sample: modelopt's own per-tensor default would span the batch."""
    axis = tuple(i for i, cells in enumerate(row.grid) if cells > 1)
    num_bits = FORMATS[row.format].num_bits
    if row.dynamic:
        return {"num_bits": num_bits, "axis": (0, *axis), "type": "dynamic"}
    return {"num_bits": num_bits, "axis": axis or None}


def site_entry(row: QuantizedRow) -> dict[str, Any]:
    """The row as JSON values, with the name of its quantizer; row_from_json reads it."""
    return {"quantizer": quantizer_name(row), **row_to_json(row)}


def native_attributes(row: QuantizedRow) -> dict[str, Any] | str:
    """The attributes with which modelopt's own quantizer, calibrated by modelopt, does the same; or why
    none do."""
    fmt = FORMATS[row.format]
    told: dict[str, Any] = {"num_bits": fmt.num_bits}
    if row.amax is not None:
        told["constant_amax"] = row.amax
    axes = [axis for axis, cells in enumerate(row.grid) if cells > 1]
    if row.dynamic:
        if isinstance(row.granularity, PerTensor):
            return told | {"axis": [0], "type": "dynamic"}
        return told | {"block_sizes": {-1: None, "type": "dynamic"}}
    if fmt.block is not None:
        axis = next(at for at, size in enumerate(row.block) if size == fmt.block)
        blocks = {axis - len(row.shape): fmt.block, "type": "dynamic", "scale_bits": [8, 0]}
        return told | {"block_sizes": blocks}
    whole = all(cells in (1, row.shape[axis]) for axis, cells in enumerate(row.grid))
    if whole and (len(axes) <= 1 or not row.at.constant):
        return told | {"axis": axes[0] if len(axes) == 1 else tuple(axes) or None}
    if not row.at.constant:
        return "blocks of an input or output would fix the batch in modelopt; it stays float"
    cut = [axis for axis, size in enumerate(row.block) if size > 1]
    if len(cut) > 1:
        return told | {"block_sizes": dict(enumerate(row.block))}
    axis = cut[0] if cut else len(row.shape) - 1
    return told | {"block_sizes": {axis - len(row.shape): row.block[axis]}}
