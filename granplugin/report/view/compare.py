"""Two engines side by side: both in all, then the layers that differ, most bytes first."""

from __future__ import annotations

from granplugin.report.schema.verbs import ChangedLayer, ComparedSide, CompareOutput, EngineTotals
from granplugin.report.view.elements import (
    Column,
    Item,
    Row,
    Section,
    Table,
    cells,
    columns,
    items,
)
from granplugin.report.view.moved import moved_told

_LISTED = 30
"""Changed layers that are told one by one: those that change most bytes."""


def compare_view(output: CompareOutput) -> Section:
    """What one engine does otherwise than the other."""
    changed = [layer for layer in output.layers if layer.changed]
    changed.sort(key=lambda layer: -abs((layer.b.bytes or 0) - (layer.a.bytes or 0)))
    more = len(changed) - _LISTED
    same = len(output.layers) - len(changed)
    table = (
        Table(
            columns(
                Column("layer", "name", fills=True), "kernels", "MB A", "MB B",
                Column("arithmetic"), "ms A", "ms B",
            ),
            tuple(map(_row, changed[:_LISTED])),
        ).known,
    )  # fmt: skip
    listed = (Item(f"and {more} more; --json lists them all"),) if more > 0 else ()
    return Section(
        "",
        (
            Item(f"A: {_totals(output.a)}"),
            Item(f"B: {_totals(output.b)}"),
            *_difference(output.a, output.b),
            *((Section("", (*table, *listed)),) if changed else ()),
            Section(
                "",
                (
                    Item(f"{len(changed)} layers differ, {same} are the same"),
                    *items(f"note: {note}" for note in output.notes),
                ),
            ),
        ),
    )


def _difference(a: EngineTotals, b: EngineTotals) -> tuple[Item, ...]:
    if not a.moved.total or b.moved.total is None:
        return ()
    moved = b.moved.total - a.moved.total
    share = 100 * moved / a.moved.total
    told = f"B - A: {b.kernels - a.kernels:+d} kernels, {moved / 1e6:+.2f} MB ({share:+.1f} %)"
    return (Item(told),)


def _totals(engine: EngineTotals) -> str:
    batch = f", batch {engine.batch}" if engine.batch else ""
    return f"{engine.name}{batch}: {engine.kernels} kernels, {moved_told(engine.moved)}"


def _row(layer: ChangedLayer) -> Row:
    a, b = layer.a, layer.b
    kernels = f"{a.kernels}" if a.kernels == b.kernels else f"{a.kernels} > {b.kernels}"
    arithmetic = (
        a.arithmetic if a.arithmetic == b.arithmetic else f"{a.arithmetic} | {b.arithmetic}"
    )
    return Row(cells(layer.layer, kernels, _mb(a), _mb(b), arithmetic, _ms(a), _ms(b)))


def _mb(side: ComparedSide) -> str | None:
    return None if side.bytes is None else f"{side.bytes / 1e6:.3f}"


def _ms(side: ComparedSide) -> str | None:
    return None if side.time_ms is None else f"{side.time_ms:.3f}"
