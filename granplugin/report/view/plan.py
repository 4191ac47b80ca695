"""A plan: what each site gets and who decided it, what engines promise, what the rules did."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

from granplugin.capabilities import KINDS
from granplugin.recipe.settings import FLOAT
from granplugin.report.schema.verbs import LastRun, PlanOutput, SitePromise, SiteRow, WhyOutput
from granplugin.report.view.coverage import coverage_line
from granplugin.report.view.elements import (
    Column,
    Item,
    Row,
    Section,
    Table,
    Verbatim,
    cells,
    columns,
    items,
)
from granplugin.words import counted

_COLUMN = re.compile(r"(?<=\d):\d+$")
"""Of a place `file:line:column`; one in a dict, `<recipe>:rules[0]`, has none."""
_LISTED = 5
"""Sites of an engine that are told one by one."""


def plan_view(plan: PlanOutput) -> Section:
    """The sites under their layers; then the rules, and what to know of them.

    What is float because no rule says otherwise is only counted.
    """
    rules = {use.rule for use in plan.rules}
    quantized = [row for row in plan.rows if row.format != FLOAT]
    scales = sum(row.scales for row in quantized)
    told = [
        Item(
            f"{len(quantized)} sites quantized with {scales:,} scales, "
            f"{len(plan.rows) - len(quantized)} float"
        )
    ]
    if plan.coverage:
        told.append(Item(f"the recipe {coverage_line(plan.coverage)}"))
    none = "no table says what it has" if quantized else "nothing is quantized"
    for engine, promises in plan.promises.items():
        told += _promises(engine, promises, none)
        if did := plan.last.get(engine):
            told.append(_last(did))
    told += items(
        f"{use.where} {use.rule}: matches {counted(use.matched, 'layer')}, "
        f"decides {counted(use.decides, 'key')}"
        for use in plan.rules
    )
    told += items(f"note: {note}" for note in plan.notes)
    table = _table(plan, rules)
    sites = (Section("", (table,)),) if table.rows else ()
    return Section("", (*sites, Section("", tuple(told))))


def _table(plan: PlanOutput, rules: set[str]) -> Table:
    rows = []
    for _, of_layer in groupby(plan.rows, key=lambda row: row.layer):
        shown = [row for row in of_layer if row.format != FLOAT or row.rule in rules]
        rows += [_row(row, shown[0], row.rule in rules) for row in shown]
    texts = [Column(head) for head in ("site", "shape", "format", "granularity")]
    return Table(columns(*texts, "scales", Column("range"), Column("by")), tuple(rows)).known


def _row(row: SiteRow, first: SiteRow, by_rule: bool) -> Row:
    batch = [] if row.role == "weight" else ["N"]
    shape = "x".join([*batch, *map(str, row.shape[len(batch) :])])
    by = Path(_COLUMN.sub("", row.where)).name if by_rule else row.rule
    bn = f", bn {first.bn} ({first.bn_name})" if first.bn else ""
    quantized = row.format != FLOAT
    return Row(
        cells(
            row.role,
            shape,
            row.format,
            row.granularity,
            f"{row.scales:,}" if quantized else None,
            _range(row) if quantized else None,
            by,
        ),
        under=f"{row.layer}: {row.type}{bn}",
        notes=(row.note,) if row.note else (),
    )


def _range(row: SiteRow) -> str:
    """How its ranges are found, and what pins them."""
    told = "at run time" if row.dynamic else row.calibrator or ""
    told = "as given" if row.given else told
    return told if row.amax is None else f"{told} amax {row.amax:g}"


def _promises(engine: str, promises: Mapping[str, SitePromise], none: str) -> Iterator[Item]:
    """What is promised; `none` says why where that is nothing."""
    words = {site: promise.made or promise.kind for site, promise in promises.items()}
    # "coarsened to per_channel" is counted as coarsened.
    counts = Counter(word.partition(" to ")[0] for word in words.values())
    order = [*KINDS, *(word for word in counts if word not in KINDS)]
    kinds = ", ".join(f"{counts[word]} {word}" for word in order if counts[word])
    yield Item(f"{engine} promises: {kinds or f'nothing, for {none}'}")
    others = [site for site in promises if words[site] != "native"]
    yield from items((f"{s}: {words[s]}: {promises[s].reason}" for s in others[:_LISTED]), 1)
    if len(others) > _LISTED:
        yield Item(f"and {len(others) - _LISTED} more; --json lists them all", 1)


def _last(did: LastRun) -> Item:
    told = f"the last run: {did.version} ran {did.int8_layers} of {did.layers} layers in 8 bits"
    if did.native_in_float:
        broken = len(did.native_in_float)
        told += f", and {broken} of {did.native_layers} native promises in float:"
    return Item(told, 1, tuple(did.native_in_float), sense="doubtful")


def why_view(output: WhyOutput) -> Section:
    """What each rule said of one layer."""
    return Section(output.layer, (Verbatim(tuple(output.story)),))
