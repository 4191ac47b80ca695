"""What is concluded of losses, and what is advised of overrides that were found.

Overrides are looked for on one half of the samples (granplugin.analysis.search). The best of many on
the same samples is better there than elsewhere (selection bias; sample splitting: Cox, Biometrika 62
(1975) 441-444), so what comes out is measured anew, and promised, on the other half, of which
nothing was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from granplugin.analysis.effects import Effect, Mean
from granplugin.analysis.tried import Pair

NEAR_DB = 1.0
"""Output SQNRs closer than this are as good as equal."""
LOUD_DB = 20.0
"""A layer that alone leaves less of the network's output is not called harmless."""
BAD_DB = 10.0
"""A tenth of the outputs' energy is noise: that no decision changed is then these samples' luck,
and a tolerance as wide tells nothing of what becomes of the outputs."""

Verdict = Literal["within", "above", "cannot tell"]
"""Of a loss: whether it is within the tolerance."""


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
    the loudest that is left float first; `final` is the network with them, on samples that nothing was
    chosen by, and `promise` what that says; both None where there are none. `untold` says that the
    samples they were chosen by cannot tell what is left from the tolerance; `shares` are of the
    noise at the network's output, by the names of what is left float (search.Chosen); `tried` is how
    many choices were measured for it. `broken` says why nothing that was measured tells anything."""

    verdict: Verdict
    overrides: Mapping[str, Pair]
    final: Effect | None = None
    promise: Verdict | None = None
    untold: bool = False
    shares: Mapping[str, float] = field(default_factory=dict)
    tried: int = 0
    broken: str = ""


def held(overrides: Mapping[str, Pair], before: Effect, final: Effect, tolerance: float) -> Advice:
    """What is advised of overrides for a recipe that loses too much, by the network without and
    with them on samples that nothing was chosen by: nothing, where they neither reach the goal nor
    win anything there, as what they won on the others was those samples' luck."""
    promise = verdict_of(final, tolerance)
    if promise == "above" and not wins(final, before):
        return Advice("above", {})
    return Advice("above", overrides, final, promise)


def wins(found: Effect, now: Effect) -> bool:
    """Whether a change is worth one: a decibel, or a loss whose whole interval is below; a loss
    alone may get smaller by chance."""
    high, low = found.loss.high, now.loss.low
    less = high is not None and low is not None and high < low
    return less or found.db >= now.db + NEAR_DB
