"""The plan as modelopt takes it: one complete, exactly named entry per quantized row.

modelopt's later entries win and replace every attribute, and a pattern that matches nothing is
silent, so nothing is left to patterns. Block shapes become an `axis` and an amax that is as long
as the tensor where scales vary: modelopt's own `block_sizes` would fix the batch of an input and
cut convolutions along the kernel's width, and its `axis` over all dims is silently per tensor.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from granplugin.planning.plan import Row
from granplugin.quant.calibrators import Calibrator

NUM_BITS = {"int8": 8, "int4": 4, "fp8": (4, 3)}
METHOD = "granplugin"
_MOST_ENTRIES = 500
"""modelopt matches every entry with every module: 4,000 take two minutes. Beyond this many the
calibration mode alone sets the quantizers, from the same sites."""


def config(rows: Iterable[Row]) -> dict[str, Any]:
    """The config for `mtq.quantize`: everything off, then the quantized rows; plain JSON values
    but for the tuples in `num_bits` and `axis`."""
    rows = [row for row in rows if row.quantized]
    entries = [
        {"quantizer_name": glob.escape(quantizer_name(row)), "cfg": attributes(row)} for row in rows
    ]
    return {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            *(entries if len(entries) <= _MOST_ENTRIES else ()),
        ],
        "algorithm": {"method": METHOD, "sites": [site_of(row) for row in rows]},
    }


def quantizer_name(row: Row) -> str:
    """Where modelopt keeps the row's quantizer; the model itself has the layer name ''.

    A weight's is weight_quantizer, an input's input_quantizer, an output's output_quantizer.
    """
    return f"{row.site}_quantizer".removeprefix(".")


def attributes(row: Row) -> dict[str, Any]:
    """num_bits, and the axes on which the scale varies; None for one scale. What is found at run
    time is so sample by sample: modelopt's own per-tensor default would span the batch."""
    axis = tuple(i for i, cells in enumerate(row.grid) if cells > 1)
    if row.dynamic:
        return {"num_bits": NUM_BITS[row.format], "axis": (0, *axis), "type": "dynamic"}
    return {"num_bits": NUM_BITS[row.format], "axis": axis or None}


def site_of(row: Row) -> dict[str, Any]:
    """The row as JSON values, with the name of its quantizer."""
    site = asdict(row)
    calibrator = site.pop("calibrator")
    return {
        "quantizer": quantizer_name(row),
        **{key: list(value) if isinstance(value, tuple) else value for key, value in site.items()},
        "calibrator": calibrator["kind"],
        "percentile": calibrator["percentile"],
    }


def row_of(site: Mapping[str, Any]) -> Row:
    """The inverse of site_of."""
    values = {key: site[key] for key in Row.__slots__}
    return Row(
        **{
            **values,
            "shape": tuple(site["shape"]),
            "block": tuple(site["block"]),
            "on_unsupported": site["on_unsupported"] and tuple(site["on_unsupported"]),
            "calibrator": Calibrator(site["calibrator"], site["percentile"]),
        }
    )
