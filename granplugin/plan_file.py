"""plan.json: the layers of a model, and every variant's rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from granplugin.layers import Layer, layer_to_json
from granplugin.plan import Plan, Row


def plan_file(
    model_key: str, text_key: str, layers: Sequence[Layer], plans: Mapping[str, Plan]
) -> str:
    """The file's text; `check` reads the layers again where `text_key` still holds."""
    return json.dumps(
        {
            "version": 1,
            "model_key": model_key,
            "text_key": text_key,
            "layers": [layer_to_json(layer) for layer in layers],
            "variants": {
                name: [row_json(row) for row in plan.rows] for name, plan in plans.items()
            },
        },
        indent=1,
    )


def row_json(row: Row) -> dict[str, Any]:
    """A row as JSON."""
    return {
        "layer": row.layer,
        "type": row.type,
        "role": row.role,
        "shape": list(row.shape),
        "format": row.format,
        "granularity": row.granularity,
        "block": list(row.block) if row.block else None,
        "scales": row.scales,
        "calibrator": str(row.calibrator) if row.calibrator else None,
        "amax": row.amax,
        "dynamic": row.dynamic,
        "on_unsupported": list(row.on_unsupported) if row.on_unsupported else None,
        "bn": row.bn,
        "rule": row.rule,
        "where": row.where,
        "note": row.note,
        "share": row.share,
    }
