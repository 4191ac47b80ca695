"""What is doubtful about a run's calibration data, beside those that it is measured on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from granplugin.calibration.statistics import needs_of
from granplugin.data.doubts import Doubt, Portraits, doubts_between, doubts_of, outlying
from granplugin.data.portrait import portraits
from granplugin.planning.rows import Row
from granplugin.recipe.loaded import located
from granplugin.runs.session import Session

Role = Literal["evaluation", "analysis"]
LOOKED_AT = 128
"""Samples of each set."""


def doubts(session: Session, rows: Iterable[Row], *roles: Role) -> tuple[Doubt, ...]:
    """Beside the data of these roles, as far as the recipe has them; nothing where no range of
    these rows comes from data. Raises DataError where data cannot be read."""
    recipe = session.recipe
    if recipe.statistics.import_ or not needs_of(rows):
        return ()
    with located(session.loaded, "data", "calibration"):
        calibration = portraits(session.calibration.few(LOOKED_AT))
    found = list(doubts_of(calibration))
    others: list[Portraits] = []
    for role in roles:
        if getattr(recipe.data, role) is None:
            continue
        with located(session.loaded, "data", role):
            data = session.evaluation if role == "evaluation" else session.analysis
            others.append(portraits(data.few(LOOKED_AT)))
        found += doubts_between(calibration, others[-1], role)
    return (*found, *outlying(calibration, others))
