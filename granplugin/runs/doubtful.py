"""What is doubtful about a run's calibration data, beside those that it is measured on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

from granplugin.calibration.statistics import needs_of
from granplugin.data.doubts import Doubt, Portraits, doubts_between, doubts_of, outlying
from granplugin.data.portrait import portraits
from granplugin.planning.rows import Row
from granplugin.recipe.loaded import located
from granplugin.runs.session import Session
from granplugin.words import digits

if TYPE_CHECKING:
    from granplugin.network.norm_seen import NormSeen

Role = Literal["evaluation", "analysis"]
LOOKED_AT = 128
"""Samples of each set."""
NORM_SAMPLES = 16
_OFF, _FAR_OFF = 2.0, 4.0
"""How many times as far spread as in training, or how many deviations off, what the first batch norm
gets is worth a word, and is of another scale."""


def unlike_training(seen: NormSeen) -> Iterator[Doubt]:
    """What the first batch norm says of the inputs."""
    times, shift = max(seen.times, 1 / max(seen.times, 1e-9)), seen.shift
    if times < _OFF and shift < _OFF:
        return
    told = f"spread {digits(seen.times)} times as far as" if times >= _OFF else "far off"
    yield Doubt(
        f"the first batch norm ({seen.name!r}) gets values {told} those it was trained on: are the "
        "inputs scaled and normalized as in training?",
        max(times, shift) >= _FAR_OFF,
    )


def doubts(session: Session, rows: Iterable[Row], *roles: Role) -> tuple[Doubt, ...]:
    """Beside the data of these roles, as far as the recipe has them; nothing where no range of
    these rows comes from data. Raises DataError where data cannot be read."""
    recipe = session.recipe
    if recipe.statistics.import_ or not needs_of(rows):
        return ()
    with located(session.loaded, "data", "calibration"):
        calibration = portraits(session.calibration.few(LOOKED_AT))
    found = list(doubts_of(calibration))
    with located(session.loaded, "data", "calibration"):
        seen = session.network.first_norm(session.calibration.few(NORM_SAMPLES))
    found += unlike_training(seen) if seen else ()
    others: list[Portraits] = []
    for role in roles:
        if getattr(recipe.data, role) is None:
            continue
        with located(session.loaded, "data", role):
            data = session.evaluation if role == "evaluation" else session.analysis
            others.append(portraits(data.few(LOOKED_AT)))
        found += doubts_between(calibration, others[-1], role)
    return (*found, *outlying(calibration, others))
