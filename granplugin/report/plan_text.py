"""A plan as text of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from granplugin.plan import Plan, Row


def plan_lines(plan: Plan) -> Iterator[str]:
    """A line per layer and one per site below it; then the rules, and what to know of them.

    What is float because no rule says otherwise is only counted.
    """
    rules = {use.rule for use in plan.uses}
    for _, group in groupby(plan.rows, key=lambda row: row.layer):
        rows = [row for row in group if row.quantized or row.rule in rules]
        if not rows:
            continue
        first = rows[0]
        bn = f"  bn {first.bn} ({first.bn_name})" if first.bn else ""
        yield f"{first.layer}  {first.type}{bn}"
        for row in rows:
            yield _site(row, row.rule in rules)
    yield ""
    floats = sum(not row.quantized for row in plan.rows)
    yield (
        f"{len(plan.quantized)} sites quantized with {sum(r.scales for r in plan.quantized):,} "
        f"scales, {floats} float"
    )
    for use in plan.uses:
        yield f"{use.where}  {use.rule}: matches {use.matched} layers, decides {use.decides} keys"
    for note in plan.notes:
        yield f"note: {note}"


def _site(row: Row, by_rule: bool) -> str:
    first = [] if row.role == "weight" else ["N"]
    shape = "x".join([*first, *map(str, row.shape[len(first) :])])
    where = Path(row.where.rpartition(":")[0]).name if by_rule else row.rule
    what = ""
    if row.quantized:
        what = f"{row.granularity:<11} {row.scales:>5,} {row.calibrator}"
    if row.amax is not None:
        what += f" amax {row.amax:g}"
    line = f"  {row.role:<6} {shape:<13} {row.format:<5} {what:<22} {where}"
    return f"{line}\n         {row.note}" if row.note else line
