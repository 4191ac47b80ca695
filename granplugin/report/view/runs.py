"""The run folders there are, and what was freed of them."""

from __future__ import annotations

from granplugin.report.schema.verbs import CleanOutput, RunsOutput
from granplugin.report.view.elements import (
    Column,
    Item,
    Paragraph,
    Row,
    Section,
    Table,
    cells,
    columns,
)
from granplugin.words import size


def runs_view(output: RunsOutput) -> Section:
    """A row for each run, and how to free what is kept."""
    if not output.runs:
        return Section("", (Paragraph(f"{output.folder}: no runs"),))
    heads = columns(Column("run", "name", fills=True), Column("of"), "variants", "results", "kept")
    rows = tuple(
        Row(
            cells(
                each.run,
                each.created or "no report",
                str(each.variants),
                size(each.result_bytes),
                size(each.cache_bytes),
            )
        )
        for each in output.runs
    )
    kept = sum(each.cache_bytes for each in output.runs)
    told = (
        f"{size(kept)} are kept so that a next run does only what a change needs; "
        "granplugin clean RUN frees them"
    )
    return Section("", (Table(heads, rows), Paragraph(told)))


def clean_view(output: CleanOutput) -> Section:
    """What was freed, run by run."""
    freed = [Item(f"{run}: freed {size(count)}") for run, count in output.freed.items()]
    busy = [Item(f"{run}: in use by a run; left as it is", sense="doubtful") for run in output.busy]
    return Section("", (*freed, *busy))
