"""What an engine has: for each operation and promise the scales it holds for, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from granplugin.report.schema.verbs import (
    CapabilitiesOutput,
    CapabilityCase,
    CapabilityRow,
    FasterForm,
    ProbedCell,
)
from granplugin.report.view.elements import Block, Item, Paragraph, Section, items


def capabilities_view(output: CapabilitiesOutput) -> Section:
    """A table of capabilities, or what became of its cells when they were rebuilt."""
    if output.probed is not None:
        return Section("", items([*_probed(output.probed, output.differing), *_structures(output)]))
    note = (Paragraph(output.note),) if output.note else ()
    return Section(
        f"{output.backend} {output.table}",
        (*note, *_ops(output.rows), *_cases(output.cases), *_faster(output.faster)),
    )


def _cases(cases: Sequence[CapabilityCase]) -> Iterator[Block]:
    told: list[Item] = []
    for case in cases:
        way = f"written in the equal form {case.form}" if case.form else "left float"
        told += [Item(f"{case.engine}, {way}: {case.why}", 1)]
        told += [Item("; ".join(case.structures), 3)]
    if told:
        yield Section("structures of several layers", tuple(told))


def _faster(forms: Sequence[FasterForm]) -> Iterator[Block]:
    lines = tuple(Item(f"{each.form}: {each.why}", 1) for each in forms)
    if lines:
        yield Section("written in an equal form that runs sooner", lines)


def _structures(output: CapabilitiesOutput) -> Iterator[str]:
    for each in output.differing_structures:
        form = "" if each.repaired else f", and {each.form} is no way out"
        yield (
            f"{each.structure}: the table says {each.table}, observed {each.observed}{form} "
            f"({each.detail})"
        )
    if output.structures:
        differ = len(output.differing_structures)
        yield f"{output.structures} structures rebuilt, {differ} differ from the table"


def _probed(cells: int, differing: Sequence[ProbedCell]) -> Iterator[str]:
    for cell in differing:
        yield (
            f"{cell.op} {cell.format}, {_second(cell)}, input {cell.input}, {cell.graph} "
            f"graph: the table says {cell.table}, observed {cell.observed} ({cell.detail})"
        )
    yield f"{cells} cells rebuilt, {len(differing)} differ from the table"


def _ops(rows: Sequence[CapabilityRow]) -> Iterator[Block]:
    for op, of_op in groupby(rows, key=lambda row: row.op):
        groups: dict[tuple[str, str], list[CapabilityRow]] = {}
        for row in of_op:
            groups.setdefault((row.promise, row.reason), []).append(row)
        told: list[Item] = []
        for (promise, reason), found in groups.items():
            scales = dict.fromkeys(map(_scales, found))
            told += [Item(f"{promise}: {reason}", 1), Item("; ".join(scales), 3)]
        yield Section(op, tuple(told))


def _scales(row: CapabilityRow) -> str:
    formats = "/".join(row.formats)
    if row.output != "float":
        return f"{formats} output {row.output}"
    size = f" of {row.size}" if row.size else ""
    stored = "" if row.stored else " (not stored)"
    return f"{formats} {_second(row)}{stored} x input {row.input}{size}"


def _second(cell: CapabilityRow | ProbedCell) -> str:
    """What the input is multiplied by."""
    return f"other {cell.other}" if cell.weight == "none" else f"weight {cell.weight}"
