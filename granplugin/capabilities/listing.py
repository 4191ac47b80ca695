"""A table as lines to print: one for each op and granularity, with what is promised."""

from __future__ import annotations

from dataclasses import dataclass, replace

from granplugin.capabilities.cells import cells
from granplugin.capabilities.promise import Promise, cell_promise
from granplugin.capabilities.table import OPS, Table


@dataclass(frozen=True)
class Line:
    """What one op is promised with these scales, in all `formats` and `graphs` alike. A weight
    that is not `stored` in its format is float in the file, with Q/DQ behind it."""

    op: str
    formats: tuple[str, ...]
    graphs: tuple[str, ...]
    weight: str
    input: str
    other: str
    output: str
    size: int | None
    stored: bool
    engine: str
    promise: Promise


def listing(table: Table) -> tuple[Line, ...]:
    """Every cell of the table, those that differ in format and graph only on one line."""
    found: dict[Line, tuple[list[str], list[str]]] = {}
    for cell in cells(OPS):
        line = Line(
            cell.op,
            (),
            (),
            cell.weight,
            cell.input,
            cell.other,
            cell.output,
            cell.size,
            cell.stored,
            table.rule(cell).engine,
            cell_promise(table, cell),
        )
        formats, graphs = found.setdefault(line, ([], []))
        formats += [cell.format] * (cell.format not in formats)
        graphs += [cell.graph] * (cell.graph not in graphs)
    return tuple(
        replace(line, formats=tuple(formats), graphs=tuple(graphs))
        for line, (formats, graphs) in found.items()
    )
