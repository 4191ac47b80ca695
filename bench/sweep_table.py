"""What the sweep found, as text: one network a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sweep_networks import NAMES, shapes_of


def table(results: dict[str, Any], engines: Sequence[str]) -> str:
    """The results as text; these engines beside the reference."""
    head = f"{'network':29} {'size':>8} {'found':>5} {'there':>5} {'quantized':>9}"
    head += "".join(f" {name:>22}" for name in ("onnxruntime dB", *engines))
    head += f" {'analyze':>16}  float, or failed"
    lines = [results.get("with", ""), "", head]
    for name in NAMES:
        told = results.get(name)
        if told is None:
            lines.append(f"{name:29} not run")
            continue
        if "failed" in told or "engines" not in told:
            lines.append(f"{name:29} failed: {told.get('failed', told.get('exit'))}")
            continue
        size = "x".join(str(n) for n in next(iter(shapes_of(name).values())))
        line = f"{name:29} {size:>8} {told['found']:5} {told['there']:5}"
        line += f" {told['quantized']:4}/{told['of']:4}"
        for engine in ("onnxruntime", *engines):
            line += f" {_cell(told['engines'].get(engine)):>22}"
        line += f" {_analyzed(told.get('analyze')):>16}"
        lines.append(f"{line}  {'; '.join(told['floats'])}".rstrip())
    return "\n".join(lines) + "\n"


def _cell(of: dict[str, Any] | None) -> str:
    if of is None:
        return "-"
    db = "" if of["db"] is None else f"{of['db']:.1f}"
    told = f"{of['honoured']}/{of['told']}" if of["told"] else ""
    return " ".join(part for part in (db, told, "WRONG" if of["wrong"] else "") if part) or "-"


def _analyzed(of: dict[str, Any] | None) -> str:
    if of is None:
        return "-"
    return f"{of['layers']} {of['verdict']}" if "verdict" in of else f"exit {of['exit']}"
