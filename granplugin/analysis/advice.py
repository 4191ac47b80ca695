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

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
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


@dataclass(frozen=True)
class Goal:
    """No more than `tolerance` of loss; `finest` is that of the network with its finest settings."""

    tolerance: float
    finest: Mean

    def reached(self, effect: Effect) -> bool:
        told, at_finest = judged(effect.loss, self.tolerance), judged(self.finest, self.tolerance)
        if told != "cannot tell" or at_finest == "within":
            return told == "within"
        # So few samples do not tell even the finest settings from the tolerance.
        least = self.finest.value if at_finest == "cannot tell" else 0.0
        return effect.loss.value <= max(least, self.tolerance / 2) and effect.db >= GOOD_DB


@dataclass(frozen=True)
class Search:
    """What is looked for, among what. `worst` are the layers to try, worst first, `allowed` by
    layer the settings that engines can have; `measure` gives the effects of whole choices. `sites`
    are what else the recipe quantizes, worst first, each with what it can have instead, coarsest
    first; `kept` are layers that are never left float."""

    goal: Goal
    worst: Sequence[LayerLosses]
    start: Choice
    allowed: Mapping[str, Mapping[str, set[int]]]
    sites: Mapping[str, Sequence[Pair]]
    kept: Collection[str]
    measure: Measure

    def effects(self, overrides: Iterable[Mapping[str, Pair]]) -> list[Effect]:
        """Of the network with these, each by itself."""
        return self.measure([{**self.start, **each} for each in overrides])

    def reached(self, found: Found) -> bool:
        return self.goal.reached(found.effect)

    def rounded(self, layer: LayerLosses) -> list[Pair]:
        """What a layer can have instead of its own, and not float."""
        return _options(layer, self.start[layer.name], self.allowed[layer.name])

    def best(self, effects: Sequence[Effect]) -> int:
        """The first that reaches the goal, or is about as good as any."""
        top = max(each.db for each in effects)
        return next(
            n for n, e in enumerate(effects) if self.goal.reached(e) or e.db >= top - NEAR_DB
        )


@dataclass(frozen=True)
class Found:
    """Overrides, and the network's effect with them."""

    overrides: Mapping[str, Pair]
    effect: Effect


def choose(search: Search, at_start: Effect) -> Mapping[str, Pair]:
    """The overrides for a recipe that loses too much, `at_start`."""
    found = _one_by_one(search, Found({}, at_start))
    if not search.reached(found):
        best = finest(search.worst, search.start, search.allowed)
        best |= {site: pairs[-1] for site, pairs in search.sites.items()}
        found = _better(search, found, _coarsened(search, search.worst, best, search.sites))
    found = _other_sites(search, found)
    open_to = [each for each in search.worst if each.name not in search.kept]
    if not search.reached(found):
        found = _floating(search, open_to, found)
    if not search.reached(found) and open_to:
        # Errors that cancel each other get worse where one of them is left out.
        best = {**found.overrides, **{each.name: FLOATING for each in open_to}}
        found = _better(search, found, _coarsened(search, open_to, best, floats=True))
    if search.reached(found):
        found = _fewer(search, found)
        left = [each for each in search.worst if found.overrides.get(each.name) == FLOATING]
        if left:
            # A layer that had to be float when others were not changed yet may be rounded now.
            found = _coarsened(search, left, found.overrides, floats=True)
    return found.overrides


def _one_by_one(search: Search, found: Found) -> Found:
    """Each of the worst layers with its coarsest settings that reach the goal, or are about the
    best, on top of those before it."""
    for each in search.worst:
        options = search.rounded(each)
        if not options:
            continue
        effects = search.effects({**found.overrides, each.name: pair} for pair in options)
        good = [n for n, effect in enumerate(effects) if search.goal.reached(effect)]
        if not good:
            top = max(effect.db for effect in effects)
            good = [n for n, effect in enumerate(effects) if effect.db >= top - NEAR_DB]
        at = _coarsest(each, search.start[each.name], options, effects, good)
        if not _wins(effects[at], found.effect):
            continue
        found = Found({**found.overrides, each.name: options[at]}, effects[at])
        if search.reached(found):
            break
    return found


def _other_sites(search: Search, found: Found) -> Found:
    """The same with what else the recipe quantizes."""
    for site, pairs in search.sites.items():
        if search.reached(found):
            break
        effects = search.effects({**found.overrides, site: pair} for pair in pairs)
        at = search.best(effects)
        if _wins(effects[at], found.effect):
            found = Found({**found.overrides, site: pairs[at]}, effects[at])
    return found


def _fewer(search: Search, found: Found) -> Found:
    """Without the overrides, the last but one first, that the goal holds without."""
    for name in list(found.overrides)[-2::-1]:
        fewer = {layer: pair for layer, pair in found.overrides.items() if layer != name}
        (effect,) = search.effects([fewer])
        without = Found(fewer, effect)
        if search.reached(without):
            found = without
    return found


def _better(search: Search, found: Found, other: Found) -> Found:
    """The other, where it reaches the goal or wins something."""
    wins = search.reached(other) or _wins(other.effect, found.effect)
    return other if wins else found


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


def _floating(search: Search, layers: Sequence[LayerLosses], found: Found) -> Found:
    """These overrides and, one by one, the layers left float; none of the latter behind the last
    that reached the goal or won more than the tolerance."""
    tried = held = found
    for each in layers:
        if search.reached(tried):
            break
        options = _floats(each, {**search.start, **tried.overrides}[each.name])
        others = {name: pair for name, pair in tried.overrides.items() if name != each.name}
        effects = search.effects({**others, each.name: pair} for pair in options)
        if max(effect.db for effect in effects) <= tried.effect.db:
            continue
        at = search.best(effects)
        tried = Found({**others, each.name: options[at]}, effects[at])
        less = held.effect.loss.value - search.goal.tolerance
        if search.reached(tried) or tried.effect.loss.value < less:
            held = tried
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
    search: Search,
    layers: Sequence[LayerLosses],
    best: Mapping[str, Pair],
    sites: Mapping[str, Sequence[Pair]] = MappingProxyType({}),
    floats: bool = False,
) -> Found:
    """`best`, which changes all these layers and sites, but each as coarse as it can be, the least
    harmful first: its own settings, else others, else, with `floats`, one of its factors float; and
    what is left of that."""
    best = dict(best)
    (now,) = search.effects([best])
    wins, enough_db = search.goal.reached(now), now.db - NEAR_DB

    def fitting(name: str, pairs: Sequence[Pair]) -> tuple[list[Effect], list[int]]:
        effects = search.effects({**best, name: pair} for pair in pairs)
        good = [
            n
            for n, found in enumerate(effects)
            if (search.goal.reached(found) if wins else found.db >= enough_db)
        ]
        return effects, good

    for site in reversed(list(sites)):
        pairs = [OWN, *sites[site]]
        effects, good = fitting(site, pairs)
        if good:
            best[site], now = pairs[good[0]], effects[good[0]]
    for each in reversed(layers):
        own = search.start[each.name]
        for among in ([own], search.rounded(each), _floats(each, own) if floats else []):
            effects, good = fitting(each.name, among) if among else ([], [])
            if good:
                at = _coarsest(each, own, among, effects, good)
                best[each.name], now = among[at], effects[at]
                break
    unchanged = {**search.start, **dict.fromkeys(sites, OWN)}
    return Found({name: p for name, p in best.items() if p != unchanged.get(name, OWN)}, now)


def _coarsest(
    each: LayerLosses,
    start: Pair,
    options: Sequence[Pair],
    effects: Sequence[Effect],
    good: Sequence[int],
) -> int:
    """Of the good options, one that changes as few sites as any, and stores the fewest scales."""

    def cost(n: int) -> tuple[Any, ...]:
        pair = options[n]
        dynamic = pair[1] is not None and each.tried.asked.inputs[pair[1]].dynamic
        changed = sum(a != b for a, b in zip(pair, start, strict=True))
        return dynamic, changed, scales(each, pair), -effects[n].db, n

    return min(good, key=cost)
