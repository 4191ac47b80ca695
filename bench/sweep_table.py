"""What the sweep found, as text: one network a line, and what the columns say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sweep_networks import NAMES, shapes_of

_LEGEND = """
size: of one sample of the first input, smaller than these networks' own: it changes neither the
  products nor what engines do with them. Weights and samples are random, batch norms are warmed.
found, there: products of layers that the trace finds; operators that multiply as torch dispatches
  them, counted without granplugin, a grouped one once for each of its groups.
quantized: products in 8 bits by `tensorrt@11`, of all. The last column lists the others, as `apply`
  does, with its reason.
dB: outputs of the engine against FP32. onnxruntime is the reference, with optimizations off; it has
  no plan to read.
rows honoured: that the engine's own plan shows computed as asked, of those it tells of; behind ~,
  rows of which `plan` had said that this engine has no kernel and simulates them in float.
  tensorrt_rtx builds here and does not run: there is no GPU, hence no dB. !1: so many products that
  the engine computes wrongly are found and left float for it; WRONG: its outputs are farther from
  FP32 than the reference's by more than `apply` accepts, and what does it was not found in time.
analyze: layers ranked (+ other sites: of products of two activations, skips and lookups; of calls
  with a weight too but in gpt2, nf_resnet26 and xcit, whose runs are later), and what it says of the loss by the
  recipe, of 8 samples, with 1 % tolerated: within, above, or cannot tell where the interval has the
  tolerance in it (8 samples tell little: it says how many would). Behind "above": how many changes
  it advises, and what it promises with them on samples that nothing was chosen by; none: what it
  tried, here on the two worst layers alone, won nothing there.
"""


def table(results: dict[str, Any], engines: Sequence[str]) -> str:
    """The results as text; these engines beside the reference."""
    head = f"{'network':29} {'size':>11} {'found':>5} {'there':>5} {'quantized':>9}"
    head += f" {'onnxruntime dB':>14}" + "".join(
        f" {f'{name} dB, rows':>{_width(name)}}" for name in engines
    )
    head += f"  {'analyze':34} float, or failed"
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
        line = f"{name:29} {size:>11} {told['found']:5} {told['there']:5}"
        line += f" {told['quantized']:4}/{told['of']:4}"
        line += f" {_cell(told['engines'].get('onnxruntime')):>14}"
        for engine in engines:
            line += f" {_cell(told['engines'].get(engine)):>{_width(engine)}}"
        line += f"  {_analyzed(told.get('analyze')):34}"
        lines.append(f"{line} {'; '.join(told['floats'])}".rstrip())
    return "\n".join(lines) + "\n" + _LEGEND


def _width(engine: str) -> int:
    return len(engine) + len(" dB, rows")


def _cell(of: dict[str, Any] | None) -> str:
    if of is None:
        return "-"
    db = "" if of["db"] is None else f"{of['db']:.1f}"
    rows = f"{of['honoured']}/{of['told']}" if of["told"] else ""
    if rows and of.get("simulated"):
        rows += f" ~{of['simulated']}"
    rows += f" !{len(of['left_float'])}" if of.get("left_float") else ""
    return " ".join(part for part in (db, rows, "WRONG" if of["wrong"] else "") if part) or "-"


def _analyzed(of: dict[str, Any] | None) -> str:
    if of is None:
        return "not run"
    if "verdict" not in of:
        return f"exit {of['exit']}: {of.get('said', '')}"
    said = f"{of['layers']}"
    said += f"+{of['sites']}" if of.get("sites") else ""
    said += f" {of['verdict']}"
    if of["verdict"] != "above":
        return said
    return f"{said}, {of['changed']} changes: {of['promise']}" if of["changed"] else f"{said}, none"
