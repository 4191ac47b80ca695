"""A row as JSON, and back: what plan.json, modelopt's state, exports and audits hold of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from granplugin.planning.rows import FloatRow, Plan, QuantizedRow, Row
from granplugin.quant import calibrators, granularity
from granplugin.quant.site import Site
from granplugin.recipe.settings import FLOAT
from granplugin.store.keys import content_key


def row_to_json(row: Row) -> dict[str, Any]:
    """JSON values: granularity and calibrator as they are shown, and in `setting` as a recipe has
    them, which is what is read back."""
    return {
        "layer": row.layer,
        "type": row.type,
        "role": row.operand,
        "shape": list(row.shape),
        "format": row.format,
        "granularity": str(row.granularity) if row.quantized else None,
        "block": list(row.block) if row.quantized else None,
        "scales": row.scales,
        "calibrator": str(row.calibrator) if row.quantized else None,
        "amax": row.amax if row.quantized else None,
        "dynamic": row.dynamic,
        "on_unsupported": list(row.on_unsupported) if row.on_unsupported else None,
        "bn": row.bn,
        "rule": row.rule,
        "where": row.where,
        "note": row.note,
        "share": row.share if row.quantized else None,
        "given": row.given if row.quantized else None,
        "setting": {
            "granularity": granularity.written(row.granularity),
            "calibrator": calibrators.written(row.calibrator),
        }
        if row.quantized
        else None,
        "bn_name": row.bn_name,
        "channel_axis": row.at.channel_axis,
        "tensor": row.at.tensor,
        "concat": row.at.concat,
    }


def decided(row: Row) -> dict[str, Any]:
    """What is decided, without who decided it."""
    written = row_to_json(row)
    return {key: written[key] for key in written if key not in ("rule", "where", "note")}


def plan_key(network: str, plan: Plan) -> str:
    """A hash of all decisions about a network, whose own key is `network`."""
    return content_key(network, [decided(row) for row in plan.rows])


def row_from_json(data: Mapping[str, Any]) -> Row:
    """The inverse of row_to_json; LookupError, TypeError or ValueError for what it did not write."""
    said = data["on_unsupported"]
    common: dict[str, Any] = {
        "at": Site(
            data["layer"],
            data["role"],
            tuple(data["shape"]),
            data["channel_axis"],
            data["tensor"],
            data["concat"],
        ),
        "on_unsupported": tuple(said) if said else None,
        **{key: data[key] for key in ("type", "bn", "bn_name", "rule", "where", "note")},
    }
    if data["format"] == FLOAT:
        return FloatRow(**common)
    return QuantizedRow(
        **common,
        format=data["format"],
        granularity=granularity.parse_granularity(data["setting"]["granularity"]),
        calibrator=calibrators.parse_calibrator(data["setting"]["calibrator"]),
        amax=data["amax"],
        share=data["share"],
        given=data["given"],
    )
