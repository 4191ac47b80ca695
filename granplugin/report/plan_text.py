"""A plan as text of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from granplugin.plan import Plan, Row


def plan_lines(plan: Plan) -> Iterator[str]:
    """A line per layer and one per site below it; then the rules, and what to know of them.

    An output that is float, which most are, has no line unless a rule says so.
    """
    for _, group in groupby(plan.rows, key=lambda row: row.layer):
        rows = [row for row in group if row.quantized or row.role != "output" or ":" in row.rule]
        first = rows[0]
        bn = f"  bn {first.bn} ({first.bn_name})" if first.bn else ""
        yield f"{first.layer}  {first.type}{bn}"
        for row in rows:
            yield _site(row)
    floats = sum(not row.quantized for row in plan.rows)
    yield ""
    yield (
        f"{len(plan.quantized)} sites quantized with {sum(r.scales for r in plan.quantized):,} "
        f"scales, {floats} float"
    )
    for use in plan.uses:
        yield f"{use.where}  {use.rule}: matches {use.matched} layers, decides {use.decides} keys"
    for note in plan.notes:
        yield f"note: {note}"


def _site(row: Row) -> str:
    first = [] if row.role == "weight" else ["N"]
    shape = "x".join([*first, *map(str, row.shape[len(first) :])])
    head = f"  {row.role:<6} {shape:<14} {row.format:<5}"
    where = f"{row.where.rpartition(':')[0]} {row.rule}"
    if not row.quantized:
        return f"{head} {where:>51}".rstrip()
    scales = f"{row.scales:,}"
    what = f"{row.granularity:<12} {scales:>6} {row.calibrator}"
    if row.amax is not None:
        what += f" amax {row.amax:g}"
    line = f"{head} {what:<26} {where}"
    return f"{line}\n         {row.note}" if row.note else line
