"""What to do: the fewest and coarsest overrides with which the network loses no more than the
tolerance against FP32 - measured, not predicted.

The worst layers are taken in order. For each, every setting that the engines can have is measured
at the network's output, on top of the overrides so far; the coarsest within a decibel of the best
is taken, or the coarsest with which the goal is reached. Layers that spoil the same signal, such as
a filter and the input behind it, win nothing one by one: where the goal is not reached so, all get
their finest settings, and each, the least harmful first, the coarsest with which that holds. Then
each override is left out again, the last first, where the goal holds without it. What no setting
reaches, float does: the worst layers are left float, as few as are enough.

All of this looks at one half of the samples. The best of many on the same samples is better there
than elsewhere (selection bias; sample splitting: Cox, Biometrika 62 (1975) 441-444), so what comes
out is measured anew, and promised, on the other half, of which nothing was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from granplugin.analysis.effects import Effect, Mean
from granplugin.analysis.losses import LayerLosses
from granplugin.analysis.tried import FLOATING, Choice, Pair

NEAR_DB = 1.0
"""Output SQNRs closer than this are as good as equal."""
GOOD_DB = 25.0
"""A relative error of 6 %: where samples are too few to count lost decisions, so much is asked."""
LOUD_DB = 20.0
"""A layer that alone leaves less of the network's output is not called harmless."""
BAD_DB = 10.0
"""A tenth of the outputs' energy is noise: that no decision changed is then these samples' luck,
and a tolerance as wide tells nothing of what becomes of the outputs."""

OWN: Pair = (None, 0)
"""What a site has by the recipe."""

Verdict = Literal["within", "above", "cannot tell"]
"""Of a loss: whether it is within the tolerance."""

Measure = Callable[[Sequence[Choice]], list[Effect]]


def judged(loss: Mean, tolerance: float) -> Verdict:
    """On which side of the tolerance the interval of a loss is; one sample has none."""
    if loss.low is None or loss.high is None:
        return "cannot tell"
    if loss.high <= tolerance:
        return "within"
    return "above" if loss.low > tolerance else "cannot tell"


def verdict_of(effect: Effect, tolerance: float) -> Verdict:
    """Of a whole network: outputs that are full of noise are not within any tolerance for sure,
    though decisions stay, or the tolerance is wide."""
    told = judged(effect.loss, tolerance)
    return "cannot tell" if told == "within" and effect.db < BAD_DB else told


@dataclass(frozen=True)
class Advice:
    """`verdict` is of the recipe's own loss. `overrides` are layer -> settings, or site -> its own,
    in the order they were found; `final` is the network with them, on samples that nothing was
    chosen by, and `promise` what that says; both None where there are none. `broken` says why
    nothing that was measured tells anything."""

    verdict: Verdict
    overrides: Mapping[str, Pair]
    final: Effect | None = None
    promise: Verdict | None = None
    broken: str = ""


def finest(
    losses: Sequence[LayerLosses], start: Choice, allowed: Mapping[str, Mapping[str, set[int]]]
) -> dict[str, Pair]:
    """Each layer of `start` with the settings that lose least, of those that engines can have."""
    found: dict[str, Pair] = {}
    for each in losses:
        if each.name not in start:
            continue
        weight, given = start[each.name]
        of_layer = allowed[each.name]
        if weight is not None:
            weight = each.best("weight", of_layer["weight"])
        if given is not None:
            given = each.best("input", of_layer["input"])
        found[each.name] = (weight, given)
    return found


def choose(
    worst: Sequence[LayerLosses],
    start: Choice,
    at_start: Effect,
    at_finest: Effect,
    tolerance: float,
    allowed: Mapping[str, Mapping[str, set[int]]],
    measure: Measure,
    sites: Mapping[str, Sequence[Pair]],
    kept: Collection[str] = (),
) -> dict[str, Pair]:
    """The overrides for a recipe that loses too much. `worst` are the layers to try, worst first;
    `measure` gives the effects of whole choices. `sites` are what else the recipe quantizes, worst
    first, each with what it can have instead, coarsest first; `kept` are layers that are never left
    float."""
    finest_is = judged(at_finest.loss, tolerance)
    least = max(at_finest.loss.value if finest_is == "cannot tell" else 0.0, tolerance / 2)

    def reached(found: Effect) -> bool:
        told = judged(found.loss, tolerance)
        if told != "cannot tell" or finest_is == "within":
            return told == "within"
        # So few samples do not tell even the finest settings from the tolerance.
        return found.loss.value <= least and found.db >= GOOD_DB

    rounded = {each.name: _options(each, start[each.name], allowed[each.name]) for each in worst}
    floats = {
        each.name: [[start[each.name]], rounded[each.name], _floats(each, start[each.name])]
        for each in worst
    }
    overrides: dict[str, Pair] = {}
    now = at_start
    for each in worst:
        options = rounded[each.name]
        if not options:
            continue
        effects = measure([{**start, **overrides, each.name: pair} for pair in options])
        good = [n for n, found in enumerate(effects) if reached(found)]
        if not good:
            top = max(found.db for found in effects)
            good = [n for n, found in enumerate(effects) if found.db >= top - NEAR_DB]
        chosen = _coarsest(each, start[each.name], options, effects, good)
        found = effects[options.index(chosen)]
        if not _wins(found, now):
            continue
        overrides[each.name], now = chosen, found
        if reached(found):
            break
    if not reached(now):
        best = {**finest(worst, start, allowed), **{site: of[-1] for site, of in sites.items()}}
        coarser = {each.name: [[start[each.name]], rounded[each.name]] for each in worst}
        together, found = _coarsened(worst, start, best, coarser, sites, measure, reached)
        if reached(found) or _wins(found, now):
            overrides, now = together, found
    for site, pairs in sites.items():
        if reached(now):
            break
        effects = measure([{**start, **overrides, site: pair} for pair in pairs])
        top = max(found.db for found in effects)
        at = next(n for n, f in enumerate(effects) if reached(f) or f.db >= top - NEAR_DB)
        if _wins(effects[at], now):
            overrides[site], now = pairs[at], effects[at]
    if not reached(now):
        open_to = [each for each in worst if each.name not in kept]
        overrides, now = _floating(open_to, start, overrides, now, tolerance, measure, reached)
    if not reached(now) and open_to:
        # Errors that cancel each other get worse where one of them is left out.
        best = {**overrides, **{each.name: FLOATING for each in open_to}}
        together, found = _coarsened(open_to, start, best, floats, {}, measure, reached)
        if reached(found) or _wins(found, now):
            overrides, now = together, found
    for name in list(overrides)[-2::-1] if reached(now) else ():
        fewer = {layer: pair for layer, pair in overrides.items() if layer != name}
        (found,) = measure([{**start, **fewer}])
        if reached(found):
            overrides, now = fewer, found
    left = [each for each in worst if overrides.get(each.name) == FLOATING]
    if left and reached(now):
        # A layer that had to be float when others were not changed yet may be rounded now.
        overrides, now = _coarsened(left, start, overrides, floats, {}, measure, reached)
    return overrides


def held(overrides: Mapping[str, Pair], before: Effect, final: Effect, tolerance: float) -> Advice:
    """What is advised of overrides for a recipe that loses too much, by the network without and
    with them on samples that nothing was chosen by: nothing, where they neither reach the goal nor
    win anything there, as what they won on the others was those samples' luck."""
    promise = verdict_of(final, tolerance)
    if promise == "above" and not _wins(final, before):
        return Advice("above", {})
    return Advice("above", overrides, final, promise)


def _wins(found: Effect, now: Effect) -> bool:
    """Whether a change is worth one: a decibel, or a loss whose whole interval is below; a loss
    alone may get smaller by chance."""
    high, low = found.loss.high, now.loss.low
    less = high is not None and low is not None and high < low
    return less or found.db >= now.db + NEAR_DB


def scales(each: LayerLosses, pair: Pair) -> int:
    """Scales stored for a layer with these settings; those of run time count as one per row."""
    weight, given = pair
    asked = each.tried.asked
    found = 0 if weight is None else asked.weights[weight].scales
    return found + (0 if given is None else asked.inputs[given].scales)


def _options(each: LayerLosses, start: Pair, allowed: Mapping[str, set[int]]) -> list[Pair]:
    """One site changed, or both to their best."""
    weight, given = start
    found: list[Pair] = []
    if weight is not None:
        found += [(i, given) for i in sorted(allowed["weight"]) if i in each.weights]
    if given is not None:
        found += [(weight, j) for j in sorted(allowed["input"]) if j in each.inputs]
    if weight is not None and given is not None:
        best = (each.best("weight", allowed["weight"]), each.best("input", allowed["input"]))
        found.append(best)
    return [pair for pair in dict.fromkeys(found) if pair != start]


def _floating(
    worst: Sequence[LayerLosses],
    start: Choice,
    overrides: Mapping[str, Pair],
    now: Effect,
    tolerance: float,
    measure: Measure,
    reached: Callable[[Effect], bool],
) -> tuple[dict[str, Pair], Effect]:
    """These overrides and, one by one, the worst layers left float; none of the latter behind the
    last that reached the goal or won more than the tolerance."""
    tried, held = dict(overrides), (dict(overrides), now)
    for each in worst:
        if reached(now):
            break
        options = _floats(each, {**start, **tried}[each.name])
        effects = measure([{**start, **tried, each.name: pair} for pair in options])
        top = max(found.db for found in effects)
        if top <= now.db:
            continue
        at = next(n for n, f in enumerate(effects) if reached(f) or f.db >= top - NEAR_DB)
        tried.pop(each.name, None)
        tried[each.name], now = options[at], effects[at]
        if reached(now) or now.loss.value < held[1].loss.value - tolerance:
            held = dict(tried), now
    return held


def _floats(each: LayerLosses, now: Pair) -> list[Pair]:
    """The layer with one of its factors float, where that is asked; then all of it."""
    floats, (weight, given) = each.tried.asked.floats, now
    found: list[Pair] = []
    if weight is not None and given is not None:
        found += [(None, given)] if "weight" in floats else []
        found += [(weight, None)] if "input" in floats else []
    return [*found, FLOATING]


def _coarsened(
    worst: Sequence[LayerLosses],
    start: Choice,
    best: Mapping[str, Pair],
    options: Mapping[str, Sequence[Sequence[Pair]]],
    sites: Mapping[str, Sequence[Pair]],
    measure: Measure,
    reached: Callable[[Effect], bool],
) -> tuple[dict[str, Pair], Effect]:
    """`best`, which changes all these layers and sites, but each as coarse as it can be, the least
    harmful first, by the first of its groups of `options` that holds one; and what is left of
    that."""
    best = dict(best)
    (now,) = measure([{**start, **best}])
    enough_db = now.db - NEAR_DB
    wins = reached(now)

    def fitting(name: str, pairs: Sequence[Pair]) -> tuple[list[Effect], list[int]]:
        effects = measure([{**start, **best, name: pair} for pair in pairs])
        good = [
            n
            for n, found in enumerate(effects)
            if (reached(found) if wins else found.db >= enough_db)
        ]
        return effects, good

    for site in reversed(list(sites)):
        pairs = [OWN, *sites[site]]
        effects, good = fitting(site, pairs)
        if good:
            best[site], now = pairs[good[0]], effects[good[0]]
    for each in reversed(worst):
        own = start[each.name]
        for among in map(list, options[each.name]):
            effects, good = fitting(each.name, among) if among else ([], [])
            if good:
                best[each.name] = _coarsest(each, own, among, effects, good)
                now = effects[among.index(best[each.name])]
                break
    unchanged = {**start, **dict.fromkeys(sites, OWN)}
    return {name: pair for name, pair in best.items() if pair != unchanged.get(name, OWN)}, now


def _coarsest(
    each: LayerLosses,
    start: Pair,
    options: Sequence[Pair],
    effects: Sequence[Effect],
    good: Sequence[int],
) -> Pair:
    """Of the good options, one that changes as few sites as any, and stores the fewest scales."""

    def cost(n: int) -> tuple[Any, ...]:
        pair = options[n]
        dynamic = pair[1] is not None and each.tried.asked.inputs[pair[1]].dynamic
        changed = sum(a != b for a, b in zip(pair, start, strict=True))
        return dynamic, changed, scales(each, pair), -effects[n].db, n

    return options[min(good, key=cost)]
