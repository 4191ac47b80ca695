"""Two runs side by side: what each variant is measured to do in B against A, and what that proves."""

from __future__ import annotations

from granplugin.report.schema.run import MetricValue
from granplugin.report.schema.verbs import ComparedRun, CompareRunsOutput, RunFigure
from granplugin.report.view.elements import (
    Cell,
    Column,
    Item,
    Row,
    Section,
    Table,
    cells,
    columns,
    items,
)
from granplugin.report.view.metric_figures import NONE_MEASURABLE, difference, figure, spec_of
from granplugin.report.view.senses import SENSES


def compare_runs_view(output: CompareRunsOutput) -> Section:
    """Both runs, a row for each metric of each variant that both have, and notes."""
    how = (
        "both on the same samples: differences are paired"
        if output.paired
        else "on different data, or not known to be the same: compared unpaired, which proves less"
    )
    table = Table(
        columns(Column("variant", "name", fills=True), Column("metric"), "A", "B", "B - A (95 %)"),
        tuple(map(_row, output.figures)),
    )
    return Section(
        "",
        (
            Item(f"A: {_told(output.a)}"),
            Item(f"B: {_told(output.b)}"),
            Item(how, sense="plain" if output.paired else "doubtful"),
            *((Section("", (table,)),) if output.figures else ()),
            *items(["= no measurable difference"] if output.figures else []),
            *items(f"note: {note}" for note in output.notes),
        ),
    )


def _told(run: ComparedRun) -> str:
    return f"{run.run}, {run.created}: {run.samples} samples, {run.engine}"


def _row(each: RunFigure) -> Row:
    known = [x for x in (each.a, each.b) if x is not None]
    spec = spec_of(MetricValue(value=x, unit=each.unit) for x in known)
    told = [None if x is None else figure(x, spec) for x in (each.a, each.b)]
    name = f"{each.metric} {each.unit}".strip()
    if each.difference is None:
        return Row(cells(each.variant, name, *told, Cell("not known", "doubtful")))
    verdict = each.difference.verdict
    same = " =" if verdict == NONE_MEASURABLE else ""
    cell = Cell(difference(each.difference, spec) + same, SENSES.get(verdict, "plain"))
    return Row(cells(each.variant, name, *told, cell))
