"""A plan as text of 80 columns or JSON."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import MappingProxyType

from granplugin.capabilities import KINDS, Promise
from granplugin.capabilities.legality import Written
from granplugin.planning.plan import Plan, Row
from granplugin.planning.plan_file import row_json
from granplugin.report.schema.verbs import PlanOutput, RuleRow, SitePromise, SiteRow, WhyOutput

_LISTED = 5
"""Sites of an engine that are told one by one."""


def plan_lines(plan: Plan, written: Mapping[str, Written] = MappingProxyType({})) -> Iterator[str]:
    """A line per layer and one per site below it; then the rules, and what to know of them.

    What is float because no rule says otherwise is only counted. `written` has for each
    engine what it promises of the sites as written, and what was made of them there.
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
    for engine, of_engine in written.items():
        yield from _promises(engine, of_engine.promises, of_engine.made)
    for use in plan.uses:
        yield f"{use.where}  {use.rule}: matches {use.matched} layers, decides {use.decides} keys"
    for note in plan.notes:
        yield f"note: {note}"


def _promises(
    engine: str, by_site: Mapping[str, Promise], made: Mapping[str, str]
) -> Iterator[str]:
    words = {site: made.get(site, promise.kind) for site, promise in by_site.items()}
    # "coarsened to per_channel" is counted as coarsened.
    counts = Counter(word.partition(" to ")[0] for word in words.values())
    order = [*KINDS, *(word for word in counts if word not in KINDS)]
    told = ", ".join(f"{counts[word]} {word}" for word in order if counts[word])
    yield f"{engine} promises: {told or 'nothing, for nothing is quantized'}"
    others = [(site, promise) for site, promise in by_site.items() if words[site] != "native"]
    for site, promise in others[:_LISTED]:
        yield from _wrapped(f"{site}: {words[site]}: {promise.reason}")
    if len(others) > _LISTED:
        yield f"  and {len(others) - _LISTED} more; --json lists them all"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 80, initial_indent="  ", subsequent_indent="    ")


def _site(row: Row, by_rule: bool) -> str:
    first = [] if row.role == "weight" else ["N"]
    shape = "x".join([*first, *map(str, row.shape[len(first) :])])
    where = Path(row.where.rpartition(":")[0]).name if by_rule else row.rule
    what = ""
    if row.quantized:
        what = f"{row.granularity:<11} {row.scales:>5,} {row.ranges}"
    if row.amax is not None:
        what += f" amax {row.amax:g}"
    line = f"  {row.role:<6} {shape:<13} {row.format:<5} {what:<22} {where}"
    return f"{line}\n         {row.note}" if row.note else line


def plan_json(recipe: str, variant: str, plan: Plan, written: Mapping[str, Written]) -> str:
    """The same, whole."""
    output = PlanOutput(
        recipe=recipe,
        variant=variant,
        rows=[SiteRow(**row_json(row)) for row in plan.rows],
        rules=[
            RuleRow(rule=use.rule, where=use.where, matched=use.matched, decides=use.decides)
            for use in plan.uses
        ],
        notes=list(plan.notes),
        promises={engine: _site_promises(of_engine) for engine, of_engine in written.items()},
    )
    return output.model_dump_json(indent=1)


def why_json(layer: str, story: Sequence[str]) -> str:
    """A layer's story as JSON."""
    return WhyOutput(layer=layer, story=list(story)).model_dump_json(indent=1)


def _site_promises(written: Written) -> dict[str, SitePromise]:
    return {
        site: SitePromise(
            kind=promise.kind,
            reason=promise.reason,
            source=promise.source,
            made=written.made.get(site),
        )
        for site, promise in written.promises.items()
    }
