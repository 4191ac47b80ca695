"""A plan as modelopt's quant_cfg: an entry for what most layers of a class have, one by its exact
name for each quantizer that differs."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from granplugin.convert.compact import Unsaid, compacted
from granplugin.planning.quantize_config import native_attributes
from granplugin.planning.rows import Plan, QuantizedRow
from granplugin.quant.layers import Layer

FORMS = (".yaml", ".yml", ".json", ".py")
"""Of the file: one of modelopt's own recipes, JSON, or a module with QUANT_CFG."""


def quant_cfg(plan: Plan, layers: Sequence[Layer]) -> tuple[dict[str, Any], list[str]]:
    """The config for mtq.quantize, and what it does not say. Of a network that these are the layers
    of, it enables the plan's quantizers and no other, on modules with sites."""
    found = compacted(plan, layers, _said, "modelopt")
    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for (kind, operand), setting in found.common.items():
        if setting is not None:
            entries.append(
                {
                    "parent_class": f"nn.{kind}",
                    "quantizer_name": f"*{operand}_quantizer",
                    "cfg": json.loads(setting),
                }
            )
    for (layer, operand), setting in found.others.items():
        name = f"{layer.name}.{operand}_quantizer".removeprefix(".")
        said = {"enable": False} if setting is None else {"cfg": json.loads(setting)}
        entries.append({"quantizer_name": glob.escape(name), **said})
    config = {"quant_cfg": [_in_python(entry) for entry in entries], "algorithm": "max"}
    return config, [*found.lost, *_calibrators(plan)]


def _said(row: QuantizedRow) -> str | Unsaid:
    """The attributes of a row's quantizer as JSON."""
    attributes = native_attributes(row)
    if isinstance(attributes, str):
        return Unsaid(attributes)
    return json.dumps(attributes, sort_keys=True)


def _calibrators(plan: Plan) -> Iterator[str]:
    by_name: dict[str, list[str]] = {}
    for row in plan.quantized:
        if not row.dynamic and row.amax is None and str(row.calibrator) != "max":
            by_name.setdefault(str(row.calibrator), []).append(row.site)
    for name, sites in by_name.items():
        yield f"calibrator {name} of {len(sites)} sites: a config has none of a site; it has max"


def _in_python(value: Any) -> Any:
    """JSON's keys and lists as modelopt has them: whole numbers, and tuples of bits and axes."""
    if isinstance(value, Mapping):
        return {
            int(key) if key.lstrip("-").isdigit() else key: _in_python(inside)
            for key, inside in value.items()
        }
    return tuple(value) if isinstance(value, list) else value


def written(config: Mapping[str, Any], form: str, source: str) -> str:
    """The text of a file of this form (one of FORMS)."""
    if form == ".json":
        return json.dumps(config, indent=1) + "\n"
    if form == ".py":
        lines = [f"# Of {source}, for mtq.quantize(model, QUANT_CFG, forward_loop).", ""]
        lines += ["QUANT_CFG = {", '    "quant_cfg": [']
        lines += [f"        {_python(entry)}," for entry in config["quant_cfg"]]
        lines += ["    ],", f'    "algorithm": "{config["algorithm"]}",', "}"]
        return "\n".join(lines) + "\n"
    lines = [f"# Of {source}, as one of modelopt's recipes.", "metadata: {recipe_type: ptq}"]
    lines += ["quantize:", f"  algorithm: {config['algorithm']}", "  quant_cfg:"]
    lines += [f"  - {_yaml(entry)}" for entry in config["quant_cfg"]]
    return "\n".join(lines) + "\n"


def _python(value: Any) -> str:
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_python(key)}: {_python(each)}" for key, each in value.items())
        return f"{{{inside}}}"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _yaml(value: Any, key: Any = None) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{at}: {_yaml(each, at)}" for at, each in value.items()) + "}"
    if isinstance(value, tuple):
        if key in ("num_bits", "scale_bits"):
            return f"e{value[0]}m{value[1]}"
        return f"[{', '.join(map(str, value))}]"
    return "null" if value is None else json.dumps(value)
