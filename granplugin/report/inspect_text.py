"""What the layers of a model are, as text of 80 columns or JSON."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from granplugin.planning.plan import Row
from granplugin.planning.plan_file import row_json
from granplugin.quant.folding import typical
from granplugin.quant.layers import BATCH_NORMS, Layer
from granplugin.report.columns import table
from granplugin.report.findings_text import names, wrapped
from granplugin.report.schema.verbs import (
    ChannelFacts,
    InspectedLayer,
    InspectOutput,
    SiteRow,
    Unsited,
)

_KINDS = ("depthwise", "grouped", "pointwise")
_ENDS = ("first", "last")
_WIDEST = 3
"""Layers named for their spread."""
_WIDE = 10
"""Over this spread a layer is named."""


def lines(found: Any) -> Iterator[str]:
    """Two tables of the layers with weights - what they are, how even their weights are - and in
    words what sticks out, what the defaults give, what the rules change and what stays float."""
    weighted = [each for each in found.layers if each.weight]
    yield from wrapped(f"{found.recipe}: {_in_all(found, weighted)}", "")
    ends = {end: [x.layer.name for x in weighted if end in x.layer.traits] for end in _ENDS}
    yield from wrapped("; ".join(f"{end}: {names(ends[end])}" for end in _ENDS if ends[end]), "")
    if weighted:
        yield ""
        yield from _shapes(weighted)
        yield ""
        told = "amax and spread (of the widest channel over the median) of each weight"
        if any(each.layer.bn for each in weighted):
            told += ", and with its batch norm folded in"
        told += "; the granularity it gets"
        if any(_by_rule(each) for each in weighted):
            told += " (* by a rule)"
        yield from wrapped(told, "")
        yield from _ranges(weighted)
        yield ""
    yield from _notable(weighted)
    yield from _decided(found)
    yield from _floats(found)
    if found.missing:
        yield from wrapped(
            "note: no forward pass could be run, so shapes of inputs and outputs, what can be "
            f"folded and what the rules decide are not known: {found.missing}",
            "",
        )


def _in_all(found: Any, weighted: Sequence[Any]) -> str:
    traits = Counter(trait for each in weighted for trait in each.layer.traits)
    kinds = [f"{traits[kind]} {kind}" for kind in _KINDS if traits[kind]]
    told = f"{_count(weighted)} with weights"
    told += f" ({', '.join(kinds)})" if kinds else ""
    told += f", {found.parameters:,} parameters"
    counts = [each.macs for each in weighted if each.macs]
    if counts:
        told += f", {_short(sum(counts) / 1e6)} M multiply-accumulates a sample"
    norms = sum(each.layer.type in BATCH_NORMS for each in found.layers)
    folding = sum(each.layer.bn is not None for each in found.layers)
    if norms and not found.missing:
        told += f"; {folding} of {norms} batch norms can be folded"
    return told


def _shapes(weighted: Sequence[Any]) -> Iterator[str]:
    heads = ("layer", "calls", "weight", "input", "output", "parameters", "M MACs")
    many = any(each.layer.calls > 1 for each in weighted)
    rows = [
        (
            each.layer.name,
            str(_calls(each.layer)) if many else "-",
            _times(each.layer.weight_shape),
            _times((each.layer.input_shape or ())[1:]),
            _times((each.layer.output_shape or ())[1:]),
            f"{each.parameters:,}",
            "-" if each.macs is None else f"{each.macs / 1e6:,.3f}",
        )
        for each in weighted
    ]
    yield from table(heads, rows, "<><<<>>")


def _calls(layer: Layer) -> int:
    return layer.calls if layer.input_shape is not None else 0


def _ranges(weighted: Sequence[Any]) -> Iterator[str]:
    heads = ("layer", "kind", "amax", "spread", "folded", "spread", "widest", "gets")
    rows = []
    for each in weighted:
        layer, facts = each.layer, each.weight
        kind = next((kind for kind in _KINDS if kind in layer.traits), layer.type)
        after = (None, None)
        if layer.bn:
            after = (float(facts.ranges_after.max()), facts.spread_after)
        rows.append(
            (
                layer.name,
                kind,
                _short(float(facts.ranges_before.max())),
                _short(facts.spread_before),
                *map(_short, after),
                "-" if facts.widest_after is None else str(facts.widest_after),
                _gets(each),
            )
        )
    yield from table(heads, rows, "<<>>>>><")


def _notable(weighted: Sequence[Any]) -> Iterator[str]:
    wide = [each for each in weighted if (each.weight.spread_after or 0) > _WIDE]
    wide.sort(key=lambda each: -each.weight.spread_after)
    for each in wide[:_WIDEST]:
        channel, times = each.weight.widest_after, _short(each.weight.spread_after)
        told = f"{each.layer.name}: channel {channel}'s range is {times} times the median"
        if each.layer.bn:
            before = each.weight.ranges_before
            times = _short(float(before[channel]) / typical(before))
            told += f" with {each.layer.bn} folded in, {times} times without"
        yield from wrapped(told, "")
    if len(wide) > _WIDEST:
        yield f"{len(wide) - _WIDEST} more layers have a spread over {_WIDE}"
    dead = {each.layer.name: len(each.weight.dead_after) for each in weighted}
    dead = {name: count for name, count in dead.items() if count}
    if dead:
        told = names([f"{name} ({count})" for name, count in dead.items()])
        yield from wrapped(f"channels that are all zeros: {told}", "")


def _decided(found: Any) -> Iterator[str]:
    """The layers by what the defaults give them, and by what rules make of it."""
    given: dict[str, list[Any]] = defaultdict(list)
    changed: dict[str, list[Any]] = defaultdict(list)
    for each in found.layers:
        if any(row.quantized for row in each.defaults):
            given[_says(each.defaults)].append(each)
        if each.rules:
            changed[_otherwise(each)].append(each)
    for what, layers in given.items():
        listed = names([each.layer.name for each in layers])
        yield from wrapped(f"{found.defaults} gives {what}: {_count(layers)}: {listed}", "")
    for what, layers in changed.items():
        where = [row.where for each in layers for row in _changed(each)]
        listed = names([each.layer.name for each in layers], where)
        yield from wrapped(f"rules make it {what}: {_count(layers)}: {listed}", "")


def _count(layers: Sequence[Any]) -> str:
    return f"{len(layers)} layer{'s' if len(layers) != 1 else ''}"


def _says(rows: Sequence[Row]) -> str:
    told = [f"{row.role} {_setting(row)}" for row in rows if row.quantized]
    bn = next((row.bn for row in rows if row.bn), None)
    return ", ".join([*told, *([f"bn {bn}"] if bn else [])])


def _otherwise(each: Any) -> str:
    told = [f"{row.role} {_setting(row)}" for row in _changed(each)]
    bn = {row.bn for row in each.rules} - {row.bn for row in each.defaults}
    return ", ".join([*told, *(f"bn {word}" for word in sorted(bn))])


def _changed(each: Any) -> list[Row]:
    """The rows of which more is changed than the layer's batch norm: the rule they name did it."""
    by_role = {row.role: _setting(row) for row in each.defaults}
    return [row for row in each.rules if _setting(row) != by_role.get(row.role)]


def _setting(row: Row) -> str:
    """format, granularity, and of the range what is not the default."""
    if not row.quantized:
        return row.format
    told = f"{row.format} {row.granularity}"
    if not row.dynamic and str(row.calibrator) != "max":
        told += f" {row.calibrator}"
    if row.amax is not None:
        told += f" amax {row.amax:g}"
    return f"{told} shared" if row.share else told


def _by_rule(each: Any) -> bool:
    return any(row.role == "weight" for row in _changed(each))


def _gets(each: Any) -> str:
    """The weight's format and granularity, a star behind it where a rule decided it."""
    rows = [row for row in (*each.rules, *each.defaults) if row.role == "weight"]
    if not rows:
        return "float" if each.layer.unusable else "-"
    told = rows[0].granularity if rows[0].format == "int8" else _setting(rows[0])
    return f"{told}*" if _by_rule(each) else told


def _floats(found: Any) -> Iterator[str]:
    """What cannot be quantized, by reason; what never is; batch norms that cannot be folded."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for each in found.layers:
        if each.layer.unusable:
            reasons[each.layer.unusable].append(each.layer.name)
    for reason, layers in reasons.items():
        yield from wrapped(f"cannot be quantized: {names(layers)}: {reason}", "")
    folding = {each.layer.bn for each in found.layers}
    kept = [
        each.layer.name
        for each in found.layers
        if each.layer.type in BATCH_NORMS and each.layer.name not in folding
    ]
    if kept and not found.missing:
        yield from wrapped(f"batch norms that cannot be folded: {names(kept)}", "")
    if found.others:
        told = [f"{x.modules} {x.type} ({x.parameters:,} parameters)" for x in found.others]
        yield from wrapped(f"never quantized: {', '.join(told)}", "")


def _times(shape: Iterable[int] | None) -> str:
    return "x".join(map(str, shape or ())) or "-"


def _short(value: float | None) -> str:
    """Three digits at least.

    >>> [_short(x) for x in (1.0, 0.01234, 429.4, 14000.0, None)]
    ['1.00', '0.0123', '429', '14,000', '-']
    """
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def to_json(found: Any) -> str:
    """The same, whole."""
    output = InspectOutput(
        recipe=str(found.recipe),
        defaults=found.defaults,
        parameters=found.parameters,
        layers=[_layer(each, found.missing) for each in found.layers],
        others=[Unsited(**asdict(each)) for each in found.others],
        missing=found.missing,
        refused=found.refused,
    )
    return output.model_dump_json(indent=1)


def _layer(each: Any, missing: str | None) -> InspectedLayer:
    layer, facts = each.layer, each.weight
    return InspectedLayer(
        name=layer.name,
        type=layer.type,
        traits=sorted(layer.traits),
        calls=None if missing else _calls(layer),
        parameters=each.parameters,
        macs=each.macs,
        **{
            f"{role}_shape": None if layer.shape(role) is None else list(layer.shape(role))
            for role in ("weight", "input", "output", "skip")
        },
        bn=layer.bn,
        weight=facts and _channels(facts, "before"),
        folded=_channels(facts, "after") if facts and layer.bn else None,
        defaults=[SiteRow(**row_json(row)) for row in each.defaults],
        rules=[SiteRow(**row_json(row)) for row in each.rules],
        unusable=layer.unusable,
    )


def _channels(facts: Any, when: str) -> ChannelFacts:
    def of(fact: str) -> Any:
        return getattr(facts, f"{fact}_{when}")

    return ChannelFacts(
        amax=float(of("ranges").max()),
        spread=of("spread"),
        widest=of("widest"),
        dead=list(of("dead")),
        outliers=list(of("outliers")),
    )
