"""Two engines side by side, as text of 80 columns or JSON."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from granplugin.report.findings_text import WIDTH, wrapped
from granplugin.report.schema.verbs import ChangedLayer, ComparedSide, CompareOutput, EngineTotals

_LISTED = 30
"""Changed layers that are told one by one: those that change most bytes."""


def lines(found: Any) -> Iterator[str]:
    """Both engines in all, then the layers that differ, the largest difference first."""
    for word, name, plan in zip("AB", found.names, found.plans, strict=True):
        yield from wrapped(f"{word}: {name}: {len(plan.kernels)} kernels, {_mb(plan.traffic)}", "")
    a, b = found.plans
    if a.traffic and b.traffic is not None:
        more = len(b.kernels) - len(a.kernels)
        share = 100 * (b.traffic - a.traffic) / a.traffic
        moved = (b.traffic - a.traffic) / 1e6
        yield f"B - A: {more:+d} kernels, {moved:+.2f} MB ({share:+.1f} %)"
    changed = [layer for layer in found.layers if layer.changed]
    changed.sort(key=lambda layer: -abs((layer.b.bytes or 0) - (layer.a.bytes or 0)))
    timed = any(side.time_ms is not None for x in found.layers for side in (x.a, x.b))
    if changed:
        yield ""
        shown = changed[:_LISTED]
        widest = max(len("arithmetic"), *(len(_arithmetic(layer)) for layer in shown))
        room = max(WIDTH - 26 - widest - 15 * timed, len("layer"))
        ms = f"  {'ms A':>6} {'ms B':>6}" if timed else ""
        start = len(os.path.commonprefix([layer.layer for layer in shown]))
        start = max(shown[0].layer.rfind(mark, 0, start) for mark in "./") + 1
        start = start if len(shown) > 1 else 0
        head = f"layer of {shown[0].layer[:start]}" if start else "layer"
        head = head if len(head) <= room else "layer"
        yield f"{head:<{room}} {'kernels':>7} {'MB A':>7} {'MB B':>7}  arithmetic{ms}"
        for layer in shown:
            yield from _lines(layer, layer.layer[start:], room, timed)
        if len(changed) > _LISTED:
            yield f"and {len(changed) - _LISTED} more; --json lists them all"
    same = len(found.layers) - len(changed)
    yield ""
    yield f"{len(changed)} layers differ, {same} are the same"
    for note in found.notes:
        yield from wrapped(f"note: {note}", "")


def _lines(layer: Any, name: str, room: int, timed: bool) -> Iterator[str]:
    a, b = layer.a, layer.b
    if len(name) > room:
        yield name
        name = ""
    kernels = f"{a.kernels}" if a.kernels == b.kernels else f"{a.kernels} > {b.kernels}"
    held = [f"{side.bytes / 1e6:.3f}" if side.bytes is not None else "-" for side in (a, b)]
    line = f"{name:<{room}} {kernels:>7} {held[0]:>7} {held[1]:>7}  {_arithmetic(layer)}"
    if timed:
        told = [f"{s.time_ms:.3f}" if s.time_ms is not None else "-" for s in (a, b)]
        line = f"{line:<{WIDTH - 15}}  {told[0]:>6} {told[1]:>6}"
    yield line.rstrip()


def _arithmetic(layer: Any) -> str:
    a, b = layer.a.arithmetic, layer.b.arithmetic
    return a if a == b else f"{a} | {b}"


def _mb(traffic: int | None) -> str:
    return "bytes unknown (open sizes)" if traffic is None else f"{traffic / 1e6:.2f} MB moved"


def to_json(found: Any) -> str:
    """The same, every layer."""
    sides = [
        EngineTotals(name=name, kernels=len(plan.kernels), traffic_bytes=plan.traffic)
        for name, plan in zip(found.names, found.plans, strict=True)
    ]
    output = CompareOutput(
        a=sides[0],
        b=sides[1],
        layers=[
            ChangedLayer(
                layer=layer.layer,
                nodes=list(layer.nodes),
                changed=layer.changed,
                a=ComparedSide(**vars(layer.a)),
                b=ComparedSide(**vars(layer.b)),
            )
            for layer in found.layers
        ],
        notes=list(found.notes),
    )
    return output.model_dump_json(indent=1)
