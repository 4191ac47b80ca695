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


def runs_view(found: RunsOutput) -> Section:
    """A row for each run, and how to free what is kept."""
    if not found.runs:
        return Section("", (Paragraph(f"{found.folder}: no runs"),))
    heads = columns(
        Column("run", "name", fills=True), Column("of"), "variants", "results MB", "kept MB"
    )
    rows = tuple(
        Row(
            cells(
                each.run,
                each.created or "no report",
                str(each.variants),
                _megabytes(each.result_bytes),
                _megabytes(each.cache_bytes),
            )
        )
        for each in found.runs
    )
    kept = sum(each.cache_bytes for each in found.runs)
    told = (
        f"{_megabytes(kept)} MB are kept so that a next run does only what a change needs: "
        "granplugin clean RUN frees them, results stay"
    )
    return Section("", (Table(heads, rows), Paragraph(told)))


def clean_view(found: CleanOutput) -> Section:
    """What was freed, run by run."""
    freed = [Item(f"{run}: freed {_megabytes(count)} MB") for run, count in found.freed.items()]
    busy = [Item(f"{run}: in use by a run; left as it is", sense="doubtful") for run in found.busy]
    return Section("", (*freed, *busy))


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f}"
