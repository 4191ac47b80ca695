"""What an advice may change, and to what: a layer, the operands of a call, or another site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from granplugin.analysis.evidence import Evidence
from granplugin.analysis.losses import LayerLosses, Loss, SiteLosses
from granplugin.analysis.tried import FLOATING, Pair
from granplugin.quant.site import MULTIPLIED

OWN: Pair = (None, 0)
"""What a site has by the recipe."""
Overrides = Mapping[str, Pair]
"""Layer -> settings, or site of something else -> its own."""


@dataclass(frozen=True)
class Change:
    """Of one layer or site: the settings that lose least, and on the way there from the recipe's
    own, the coarsest first, `others`. `gain` is the mean share of its channels' signal that the best
    keep and the recipe's own do not."""

    name: str
    own: Pair
    best: Pair
    others: tuple[Pair, ...]
    gain: float


@dataclass(frozen=True)
class Place:
    """What is left float as one, since an engine multiplies in float where one operand is. `floats`
    leave it float, the least of it first, all of it last; empty where it may not be. `beside` is the
    layer that a site goes with, where that is a place of its own; `layer` says that a place is a
    product's operands."""

    layer: bool
    names: tuple[str, ...]
    changes: tuple[Change, ...]
    floats: tuple[Overrides, ...]
    beside: str | None = None


def places_of(evidence: Evidence) -> tuple[Place, ...]:
    """All places, the most harmful layers first and then the sites."""
    start, fixed = evidence.outputs.start, evidence.ranges.fixed
    found = []
    for each in evidence.layers:
        if each.name not in start:
            continue
        change = _of_layer(each, start[each.name], evidence.promised.allowed(each, fixed))
        said = any(row.site in fixed for row in each.tried.asked.start)
        floats = () if said else _floats(each, change)
        found.append(Place(True, (each.name,), () if change is None else (change,), floats))
    grouped: dict[tuple[bool, str], list[SiteLosses]] = {}
    tried = evidence.outputs.network.tried
    for site in evidence.sites:
        own = site.tried.own
        call = own.layer not in tried and own.operand in MULTIPLIED
        grouped.setdefault((call, own.layer if call else own.site), []).append(site)
    for (call, _), sites in grouped.items():
        names = tuple(site.tried.own.site for site in sites)
        layer = sites[0].tried.own.layer
        changes = [_of_site(each, evidence) for each in sites]
        floats = () if fixed.intersection(names) else (dict.fromkeys(names, FLOATING),)
        made = tuple(change for change in changes if change is not None)
        found.append(Place(call, names, made, floats, layer if layer in tried else None))
    return tuple(found)


def _of_layer(each: LayerLosses, start: Pair, allowed: Mapping[str, set[int]]) -> Change | None:
    best = each.finest(start, allowed)
    if best == start:
        return None
    weight, given = start
    pairs: list[Pair] = []
    pairs += [(i, given) for i in sorted(allowed["weight"])] if weight is not None else []
    pairs += [(weight, j) for j in sorted(allowed["input"])] if given is not None else []
    lost = _lost(each, start)

    def cost(pair: Pair) -> tuple[Any, ...]:
        dynamic = pair[1] is not None and each.tried.asked.inputs[pair[1]].dynamic
        changed = sum(a != b for a, b in zip(pair, start, strict=True))
        return dynamic, changed, _scales(each, pair), _lost(each, pair)

    others = [p for p in dict.fromkeys(pairs) if p not in (start, best) and _lost(each, p) < lost]
    cheaper = sorted((p for p in others if cost(p) < cost(best)), key=cost)
    return Change(each.name, start, best, tuple(cheaper), lost - _lost(each, best))


def _lost(each: LayerLosses, pair: Pair) -> float:
    """The shares of the channels' signal that a layer's weight and input lose with these settings."""

    def share(losses: Mapping[int, Loss], at: int | None) -> float:
        return losses[at].channels_lost if at is not None and at in losses else 0.0

    return share(each.weights, pair[0]) + share(each.inputs, pair[1])


def _of_site(each: SiteLosses, evidence: Evidence) -> Change | None:
    """The best of other calibrators with the same blocks, and of settings that all engines have."""
    own = each.tried.own
    had = evidence.promised.weights.get(own.site, frozenset())
    better = [
        index
        for index, row in enumerate(each.tried.rows)
        if index and (row.block == own.block or index in had) and each.losses[index] is not None
        if each.db(index) > each.db(0) and own.site not in evidence.ranges.fixed
    ]
    if not better:
        return None
    best = max(better, key=each.db)
    gain = (each.lost(0) or 0.0) - (each.lost(best) or 0.0)
    return Change(own.site, OWN, (None, best), (), gain)


def _floats(each: LayerLosses, change: Change | None) -> tuple[Overrides, ...]:
    """The layer with one of its factors float, where that is asked; then all of it."""
    floats = each.tried.asked.floats
    roles = {row.operand for row in each.tried.asked.start}
    weight, given = change.best if change is not None else (0, 0)
    found: list[Pair] = []
    if {"weight", "input"} <= roles:
        found += [(None, given)] if "weight" in floats else []
        found += [(weight, None)] if "input" in floats else []
    return tuple({each.name: pair} for pair in [*found, FLOATING])


def _scales(each: LayerLosses, pair: Pair) -> int:
    """Scales stored for a layer with these settings; those of run time count as one per row."""
    weight, given = pair
    asked = each.tried.asked
    found = 0 if weight is None else asked.weights[weight].scales
    return found + (0 if given is None else asked.inputs[given].scales)
