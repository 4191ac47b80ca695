"""The layers of a model: two tables of those with weights, and in words what sticks out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from granplugin.quant.layers import BATCH_NORMS
from granplugin.recipe.settings import FLOAT
from granplugin.report.schema.verbs import ChannelFacts, InspectedLayer, InspectOutput, SiteRow
from granplugin.report.view.coverage import coverage_line
from granplugin.report.view.elements import (
    Column,
    Item,
    Row,
    Section,
    Table,
    cells,
    columns,
    items,
)
from granplugin.words import counted, first, with_lines

_KINDS = ("depthwise", "grouped", "pointwise")
_ENDS = ("first", "last")
_WIDEST = 3
"""Layers named for their spread."""
_WIDE = 10
"""Over this spread a layer is named."""


def inspect_view(output: InspectOutput) -> Section:
    """What the layers with weights are and how even their weights are; what the defaults give,
    what the rules change and what stays float."""
    weighted = [each for each in output.layers if each.weight]
    ends = {end: [x.name for x in weighted if end in x.traits] for end in _ENDS}
    told = "; ".join(f"{end}: {first(ends[end])}" for end in _ENDS if ends[end])
    head = [f"{output.recipe}: {_in_all(output, weighted)}", told]
    tables = (
        Section("", (_shapes(weighted),)),
        Section("", (Item(_ranges_mean(weighted)), _ranges(weighted))),
    )
    rest = [*_notable(weighted), *_decided(output), *_floats(output)]
    if output.coverage:
        rest.append(f"the recipe {coverage_line(output.coverage)}")
    if output.missing:
        rest.append(
            "note: no forward pass could be run, so shapes of inputs and outputs, what can be "
            f"folded and what the rules decide are not known: {output.missing}"
        )
    if not weighted:
        return Section("", items(filter(None, [*head, *rest])))
    return Section("", (*items(filter(None, head)), *tables, Section("", items(rest))))


def _in_all(output: InspectOutput, weighted: Sequence[InspectedLayer]) -> str:
    traits = Counter(trait for each in weighted for trait in each.traits)
    kinds = [f"{traits[kind]} {kind}" for kind in _KINDS if traits[kind]]
    told = f"{counted(weighted, 'layer')} with weights"
    told += f" ({', '.join(kinds)})" if kinds else ""
    told += f", {output.parameters:,} parameters"
    counts = [each.macs for each in weighted if each.macs]
    if counts:
        told += f", {_short(sum(counts) / 1e6)} M multiply-accumulates a sample"
    norms = sum(each.type in BATCH_NORMS for each in output.layers)
    folding = sum(each.bn is not None for each in output.layers)
    if norms and not output.missing:
        told += f"; {folding} of {norms} batch norms can be folded"
    return told


def _shapes(weighted: Sequence[InspectedLayer]) -> Table:
    shapes = [Column(head) for head in ("weight", "input", "output")]
    heads = columns(Column("layer", "name"), "calls", *shapes, "parameters", "M MACs")
    many = any((each.calls or 0) > 1 for each in weighted)
    return Table(heads, tuple(_shape_row(each, many) for each in weighted)).known


def _shape_row(each: InspectedLayer, many: bool) -> Row:
    shapes = (each.weight_shape, (each.input_shape or [])[1:], (each.output_shape or [])[1:])
    return Row(
        cells(
            each.name,
            str(each.calls or 0) if many else None,
            *map(_times, shapes),
            f"{each.parameters:,}",
            None if each.macs is None else f"{each.macs / 1e6:,.3f}",
        )
    )


def _ranges_mean(weighted: Sequence[InspectedLayer]) -> str:
    told = "amax and spread (of the widest channel over the median) of each weight"
    if any(each.bn for each in weighted):
        told += ", and with its batch norm folded in"
    told += "; the granularity it gets"
    return f"{told} (* by a rule)" if any(map(_by_rule, weighted)) else told


def _ranges(weighted: Sequence[InspectedLayer]) -> Table:
    figures = ("amax", "spread", "folded", "spread", "widest")
    heads = columns(Column("layer", "name"), Column("kind"), *figures, Column("gets"))
    return Table(heads, tuple(map(_range_row, weighted))).known


def _range_row(each: InspectedLayer) -> Row:
    own, folded, after = each.weight, each.folded, _after(each)
    kind = next((kind for kind in _KINDS if kind in each.traits), each.type)
    return Row(
        cells(
            each.name,
            kind,
            *((_short(own.amax), _short(own.spread)) if own else (None, None)),
            *((_short(folded.amax), _short(folded.spread)) if folded else (None, None)),
            None if after is None or after.widest is None else str(after.widest),
            _gets(each),
        )
    )


def _after(each: InspectedLayer) -> ChannelFacts | None:
    """The weight's facts as a variant has it that folds what can be folded."""
    return each.folded or each.weight


def _notable(weighted: Sequence[InspectedLayer]) -> Iterator[str]:
    after = {each.name: found for each in weighted if (found := _after(each))}
    wide = [each for each in weighted if (after[each.name].spread or 0) > _WIDE]
    wide.sort(key=lambda each: -(after[each.name].spread or 0))
    for each in wide[:_WIDEST]:
        facts = after[each.name]
        told = f"{each.name}: channel {facts.widest}'s range is {_short(facts.spread)} times"
        told += " the median"
        if each.bn:
            told += f" with {each.bn} folded in, {_short(each.unfolded)} times without"
        yield told
    if len(wide) > _WIDEST:
        yield f"{len(wide) - _WIDEST} more layers have a spread over {_WIDE}"
    dead = [f"{name} ({len(facts.dead)})" for name, facts in after.items() if facts.dead]
    if dead:
        yield f"channels that are all zeros: {first(dead)}"


def _decided(output: InspectOutput) -> Iterator[str]:
    """The layers by what the defaults give them, and by what rules make of it."""
    given: dict[str, list[str]] = defaultdict(list)
    changed: dict[str, list[InspectedLayer]] = defaultdict(list)
    for each in output.layers:
        if any(row.format != FLOAT for row in each.defaults):
            given[_says(each.defaults)].append(each.name)
        if each.rules:
            changed[_otherwise(each)].append(each)
    for what, names in given.items():
        yield f"{output.defaults} gives {what}: {counted(names, 'layer')}: {first(names)}"
    for what, layers in changed.items():
        where = [row.where for each in layers for row in _changed(each)]
        listed = with_lines([each.name for each in layers], where)
        yield f"rules make it {what}: {counted(layers, 'layer')}: {listed}"


def _says(rows: Sequence[SiteRow]) -> str:
    told = [f"{row.role} {_setting(row)}" for row in rows if row.format != FLOAT]
    bn = next((row.bn for row in rows if row.bn), None)
    return ", ".join([*told, *([f"bn {bn}"] if bn else [])])


def _otherwise(each: InspectedLayer) -> str:
    told = [f"{row.role} {_setting(row)}" for row in _changed(each)]
    bn = {row.bn for row in each.rules} - {row.bn for row in each.defaults} - {None}
    return ", ".join([*told, *(f"bn {word}" for word in sorted(filter(None, bn)))])


def _changed(each: InspectedLayer) -> list[SiteRow]:
    """The rows of which more is changed than the layer's batch norm: the rule they name did it."""
    by_role = {row.role: _setting(row) for row in each.defaults}
    return [row for row in each.rules if _setting(row) != by_role.get(row.role)]


def _setting(row: SiteRow) -> str:
    """format, granularity, and of the range what is not the default."""
    if row.format == FLOAT:
        return row.format
    told = f"{row.format} {row.granularity}"
    if not row.dynamic and row.calibrator != "max":
        told += f" {row.calibrator}"
    if row.amax is not None:
        told += f" amax {row.amax:g}"
    return f"{told} shared" if row.share else told


def _by_rule(each: InspectedLayer) -> bool:
    return any(row.role == "weight" for row in _changed(each))


def _gets(each: InspectedLayer) -> str | None:
    """The weight's format and granularity, a star behind it where a rule decided it."""
    rows = [row for row in (*each.rules, *each.defaults) if row.role == "weight"]
    if not rows:
        return "float" if each.unusable else None
    row = rows[0]
    told = row.granularity or FLOAT if row.format == "int8" else _setting(row)
    return f"{told}*" if _by_rule(each) else told


def _floats(output: InspectOutput) -> Iterator[str]:
    """What cannot be quantized, by reason; what never is; batch norms that cannot be folded."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for each in output.layers:
        if each.unusable:
            reasons[each.unusable].append(each.name)
    for reason, names in reasons.items():
        yield f"cannot be quantized: {first(names)}: {reason}"
    folding = {each.bn for each in output.layers}
    kept = [x.name for x in output.layers if x.type in BATCH_NORMS and x.name not in folding]
    if kept and not output.missing:
        yield f"batch norms that cannot be folded: {first(kept)}"
    if output.others:
        told = [f"{x.modules} {x.type} ({x.parameters:,} parameters)" for x in output.others]
        yield f"never quantized: {', '.join(told)}"


def _times(shape: Iterable[int] | None) -> str | None:
    return "x".join(map(str, shape or ())) or None


def _short(value: float | None) -> str:
    """Three digits at least.

    >>> [_short(x) for x in (1.0, 0.01234, 429.4, 14000.0)]
    ['1.00', '0.0123', '429', '14,000']
    """
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"
