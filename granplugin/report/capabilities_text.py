"""What an engine has, as text of 80 columns or JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from granplugin.capabilities import Table
from granplugin.report.schema.verbs import CapabilitiesOutput, CapabilityRow, ProbedCell


def table_lines(table: Table, lines: Sequence[Any]) -> Iterator[str]:
    """One paragraph for each operation and promise: the scales it holds for, and why."""
    yield f"{table.backend} {table.version}"
    if table.note:
        yield table.note
    for op, of_op in groupby(lines, key=lambda line: line.op):
        yield ""
        yield op
        groups: dict[tuple[str, str], list[Any]] = {}
        for line in of_op:
            groups.setdefault((line.promise.kind, line.promise.reason), []).append(line)
        for (kind, reason), found in groups.items():
            scales = dict.fromkeys(_scales(line) for line in found)
            yield from _wrapped(f"{kind}: {reason}", "  ")
            yield from _wrapped("; ".join(scales), "      ")


def probe_lines(cells: Sequence[Any]) -> Iterator[str]:
    """The cells that differ from the table, or that none does."""
    differing = [cell for cell in cells if cell.differs]
    for cell in differing:
        yield from _wrapped(
            f"{cell.cell.op} {cell.cell.format}, weight {cell.cell.weight}, input "
            f"{cell.cell.input}, {cell.cell.graph} graph: the table says {cell.table}, observed "
            f"{cell.observed} ({cell.detail})",
            "",
        )
    yield f"{len(cells)} cells rebuilt, {len(differing)} differ from the table"


def table_json(table: Table, lines: Sequence[Any]) -> str:
    """The same as JSON."""
    rows = [
        CapabilityRow(
            op=line.op,
            formats=list(line.formats),
            graphs=list(line.graphs),
            weight=line.weight,
            input=line.input,
            output=line.output,
            size=line.size,
            stored=line.stored,
            engine=line.engine,
            promise=line.promise.kind,
            reason=line.promise.reason,
            source=line.promise.source,
        )
        for line in lines
    ]
    output = CapabilitiesOutput(backend=table.backend, table=table.version, rows=rows)
    return output.model_dump_json(indent=1)


def probe_json(table: Table, cells: Sequence[Any]) -> str:
    """The cells that differ, as JSON."""
    differing = [
        ProbedCell(
            op=found.cell.op,
            format=found.cell.format,
            weight=found.cell.weight,
            input=found.cell.input,
            graph=found.cell.graph,
            table=found.table,
            observed=found.observed,
            detail=found.detail,
        )
        for found in cells
        if found.differs
    ]
    output = CapabilitiesOutput(
        backend=table.backend, table=table.version, probed=len(cells), differing=differing
    )
    return output.model_dump_json(indent=1)


def _scales(line: Any) -> str:
    formats = "/".join(line.formats)
    if line.output != "float":
        return f"{formats} output {line.output}"
    size = f" of {line.size}" if line.size else ""
    stored = "" if line.stored else " (not stored)"
    return f"{formats} weight {line.weight}{stored} x input {line.input}{size}"


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 80, initial_indent=indent, subsequent_indent=indent + "  ")
