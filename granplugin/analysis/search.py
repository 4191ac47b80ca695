"""The search for overrides: few choices of the whole network are measured, the most useless on a
part of the samples.

First everything gets the settings that lose least of what engines have. Where that reaches the
goal, the most harmful places are enough, as few as reach it. Where it does not, places are left
float, the loudest at the network's output first, as few as are enough for a loss that the samples
cannot tell from the tolerance: what they cannot tell, float layers would be bought for nothing.
Then each change is taken back where nothing is told apart without it, and what is not needed at its
best is made coarser: all at once, or else by halves down to each by itself.

How many places are enough is found by bisection: noise of places adds up (bench/predict.py), so more of
the loudest changed is not worse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from granplugin.analysis.advice import BAD_DB, NEAR_DB, judged, wins
from granplugin.analysis.effects import Effect
from granplugin.analysis.places import OWN, Change, Overrides, Place
from granplugin.analysis.racing import Racing
from granplugin.analysis.tried import FLOATING, Choice, Pair

GOOD_DB = 25.0
"""A relative error of 6 %: where samples are too few to count lost decisions, so much is asked."""


@dataclass(frozen=True)
class Found:
    """Overrides, and the network's effect with them."""

    overrides: Overrides
    effect: Effect


@dataclass(frozen=True)
class Reached:
    """The goal: a loss within the tolerance, or, where the samples do not tell the `finest` from
    it, as small a one and little noise."""

    tolerance: float
    finest: Effect

    def holds(self, effect: Effect) -> bool:
        told, at_finest = (judged(each.loss, self.tolerance) for each in (effect, self.finest))
        if told != "cannot tell" or at_finest == "within":
            return told == "within"
        least = self.finest.loss.value if at_finest == "cannot tell" else 0.0
        return effect.loss.value <= max(least, self.tolerance / 2) and effect.db >= GOOD_DB

    def fails(self, part: Effect) -> bool:
        return judged(part.loss, self.tolerance) == "above"


@dataclass(frozen=True)
class Untold:
    """A loss that is not told from the tolerance, of outputs that are not full of noise."""

    tolerance: float

    def holds(self, effect: Effect) -> bool:
        return judged(effect.loss, self.tolerance) != "above" and effect.db >= BAD_DB

    def fails(self, part: Effect) -> bool:
        return judged(part.loss, self.tolerance) == "above"


@dataclass(frozen=True)
class AsGood:
    """As good as what was found. Of decisions, some of which stay or change by chance: a loss not
    told from its or the tolerance, and at most a decibel more of noise. Of outputs, where every
    difference is told: a loss not told from the tolerance, or where that is more, from its."""

    tolerance: float
    found: Effect

    @property
    def _by_outputs(self) -> bool:
        return self.found.measured_by == "outputs"

    @property
    def _most(self) -> float:
        """Of the loss."""
        if self._by_outputs and judged(self.found.loss, self.tolerance) != "above":
            return self.tolerance
        return max(self.found.loss.value, self.tolerance)

    @property
    def _least_db(self) -> float:
        return BAD_DB if self._by_outputs else self.found.db - NEAR_DB

    def holds(self, effect: Effect) -> bool:
        return judged(effect.loss, self._most) != "above" and effect.db >= self._least_db

    def fails(self, part: Effect) -> bool:
        high = part.sqnr.high
        noisy = high is not None and high < self._least_db
        return noisy or judged(part.loss, self._most) == "above"


Enough = Reached | Untold | AsGood


@dataclass(frozen=True)
class Search:
    """What is looked for, among what: `places` to change, the most harmful first, of a network that
    has `start` by the recipe and `sites` besides; at most `top` of its layers are left float."""

    tolerance: float
    top: int
    places: Sequence[Place]
    start: Choice
    sites: Sequence[str]
    racing: Racing

    def found(self, overrides: Overrides, enough: Enough | None = None) -> Found | None:
        """The network with these; None where a part of the samples tells that they are not enough."""
        kept = {n: p for n, p in overrides.items() if p != self.start.get(n, OWN)}
        fails = enough.fails if enough is not None else lambda part: False
        effect = self.racing.run({**self.start, **kept}, fails)
        return None if effect is None else Found(kept, effect)

    def enough(self, overrides: Overrides, enough: Enough) -> Found | None:
        """The network with these, where they are enough."""
        found = self.found(overrides, enough)
        return found if found is not None and enough.holds(found.effect) else None

    def measured(self, overrides: Overrides) -> Found:
        found = self.found(overrides)
        assert found is not None, "nothing fails"
        return found

    def loudest(self, places: Sequence[Place], overrides: Overrides) -> list[tuple[Place, float]]:
        """The places that lose surely more than the tolerance alone, then the others by the noise
        that each makes alone, with these overrides; and each one's share of that noise."""
        now = {**self.start, **overrides}
        silent: Choice = dict.fromkeys(self.sites, FLOATING)
        pairs: list[list[Choice]] = []
        for place in places:
            with_it = {name: now.get(name, OWN) for name in place.names}
            if (layer := place.beside) is not None and layer in self.start:
                beside = {**silent, layer: now[layer]}
                pairs.append([{**beside, **with_it}, beside])
            else:
                pairs.append([{**silent, **with_it}])
        effects = iter(self.racing.glance([choice for pair in pairs for choice in pair]))
        harm = []
        for pair in pairs:
            effect, *without = (next(effects) for _ in pair)
            noise = 10 ** (-effect.db / 10) - sum(10 ** (-each.db / 10) for each in without)
            sure = judged(effect.loss, self.tolerance) == "above"
            harm.append((not sure, -noise))
        whole = sum(max(-quiet, 0.0) for _, quiet in harm)
        order = sorted(range(len(places)), key=lambda n: harm[n])
        return [(places[n], max(-harm[n][1], 0.0) / whole if whole else 0.0) for n in order]


@dataclass(frozen=True)
class Chosen:
    """What was found; and of places that are left float, by the names of their layers and sites, the
    share of the noise at the network's output that comes of them with all at its best."""

    found: Found
    shares: Mapping[str, float]


def choose(search: Search) -> Chosen:
    """The overrides for a recipe that loses too much."""
    start = search.measured({})
    best = _all(change for place in search.places for change in place.changes)
    fine = search.measured(best)
    reached = Reached(search.tolerance, fine.effect)
    if reached.holds(fine.effect):
        return Chosen(_needed(search, _first(search, fine, reached), reached), {})
    found = fine if wins(fine.effect, start.effect) else start
    floating: list[tuple[Place, float]] = []
    if not (found.overrides and Untold(search.tolerance).holds(found.effect)):
        found, floating = _floated(search, found)
    places, enough = [place for place, _ in floating], AsGood(search.tolerance, found.effect)
    shares = {name: share for place, share in floating for name in place.names}
    return Chosen(_needed(search, found, enough, places), shares)


def _all(changes: Iterable[Change]) -> dict[str, Pair]:
    return {change.name: change.best for change in changes}


def _first(search: Search, fine: Found, enough: Enough) -> Found:
    """As few of the most harmful places as are enough, with their best settings."""
    changes = [change for place in search.places for change in place.changes]
    held = {len(changes): fine}

    def holds(count: int) -> bool:
        found = search.enough(_all(changes[:count]), enough)
        if found is not None:
            held[count] = found
        return found is not None

    return held[_fewest(len(changes), holds, search.racing)]


def _floated(search: Search, base: Found) -> tuple[Found, list[tuple[Place, float]]]:
    """`base` with as few places left float as are enough, and those, the loudest first, each with
    its share of the noise."""
    able = [place for place in search.places if place.floats]
    if not able:
        return base, []
    loudest = search.loudest(able, base.overrides)
    layers = [each for each in loudest if each[0].layer][: search.top]
    floating = [each for each in loudest if each in layers or not each[0].layer]
    untold = Untold(search.tolerance)

    def of(count: int) -> dict[str, Pair]:
        return {
            **base.overrides,
            **{n: p for f, _ in floating[:count] for n, p in f.floats[-1].items()},
        }

    every = search.measured(of(len(floating)))
    if not untold.holds(every.effect):
        return (every, floating) if wins(every.effect, base.effect) else (base, [])
    held = {len(floating): every}

    def holds(count: int) -> bool:
        found = search.enough(of(count), untold)
        if found is not None:
            held[count] = found
        return found is not None

    count = _fewest(len(floating), holds, search.racing)
    return held[count], floating[:count]


def _needed(search: Search, found: Found, enough: Enough, floating: Sequence[Place] = ()) -> Found:
    """`found` with nothing that is not needed: neither places left float, the quietest taken back
    first, nor other settings, those that keep least first."""
    rounded = [change for place in search.places for change in place.changes]
    best = _all(rounded)
    quiet = [_back(place, best) for place in reversed(floating)]
    found = _taken_back(search, found, quiet, enough)
    kept = [c for c in rounded if found.overrides.get(c.name) == c.best]
    kept.sort(key=lambda change: change.gain)
    coarser = [[{c.name: c.own}, *({c.name: pair} for pair in c.others)] for c in kept]
    return _taken_back(search, found, coarser, enough)


def _back(place: Place, best: Overrides) -> list[Overrides]:
    """Instead of all of a place float: its best settings, or one of its factors float."""
    return [{name: best.get(name, OWN) for name in place.names}, *place.floats[:-1]]


def _taken_back(
    search: Search, found: Found, ways: Sequence[Sequence[Overrides]], enough: Enough
) -> Found:
    """`found` with as many of its changes taken back as can be: each has ways back, the farthest
    first. All go at once, or else one half of them and then the other, down to each by itself."""
    if not ways or search.racing.spent:
        return found
    farthest = {name: pair for way in ways for name, pair in way[0].items()}
    if (less := search.enough({**found.overrides, **farthest}, enough)) is not None:
        return less
    if len(ways) > 1:
        half = (len(ways) + 1) // 2
        for part in (ways[:half], ways[half:]):
            found = _taken_back(search, found, part, enough)
        return found
    for overrides in ways[0][1:]:
        if search.racing.spent:
            break
        if (less := search.enough({**found.overrides, **overrides}, enough)) is not None:
            return less
    return found


def _fewest(most: int, holds: Callable[[int], bool], racing: Racing) -> int:
    """The smallest number from 1 to `most` that holds, where those above hold too and `most` is
    known to; steps get longer from 1 on, then shorter."""
    low, step, high = 0, 1, most
    while high - low > 1 and not racing.spent:
        at = min(low + step, (low + high) // 2)
        if holds(at):
            high, step = at, most
        else:
            low, step = at, 2 * step
    return high
