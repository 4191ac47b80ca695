"""The ranges of everything that is tried: one float pass over the calibration data, kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

import granplugin
from granplugin.analysis.analyst import PEAK, Analyst
from granplugin.analysis.questions import Questions
from granplugin.analysis.settings import Asked
from granplugin.analysis.subject import Clock, Subject
from granplugin.calibration.statistics import (
    Need,
    Statistics,
    find_amax,
    import_amax,
    needs_of,
    share_amax,
)
from granplugin.errors import DataError
from granplugin.planning.rows import QuantizedRow
from granplugin.recipe.loaded import located
from granplugin.runs.session import Session
from granplugin.store.keys import content_key

STATISTICS = "statistics.safetensors"
"""What an analysis leaves in its run folder for others of the same model and data."""


@dataclass(frozen=True, eq=False)
class Ranges:
    """The `amax` of every row that is tried, None where it saw only zeros; no entry for dynamic
    ones. `fixed` are the sites whose range the recipe itself says: a rule on top of it could not
    change that."""

    amax: Mapping[QuantizedRow, np.ndarray | None]
    fixed: frozenset[str]


@dataclass(frozen=True, slots=True)
class InputNeeds:
    """What describes a layer's input: the range of each channel, the histogram of all values, and
    that of the samples' peaks."""

    channels: Need
    values: Need
    peaks: Need


def input_needs(asked: Asked) -> InputNeeds | None:
    """None for a layer of whose input nothing is asked."""
    if not asked.inputs:
        return None
    row = asked.inputs[0]
    channels = tuple(1 if at == row.at.channel_axis else n for at, n in enumerate(row.shape))
    return InputNeeds(
        Need(row.observed, channels, False, row.shape),
        Need(row.observed, row.shape, True, row.shape),
        Need(f"{row.layer}.{PEAK}", (1, 1), True, (1, 1)),
    )


def read_statistics(session: Session, path: Path) -> Statistics:
    """What another analysis left in its run folder. Raises DataError where it is of something
    else."""
    key = Statistics.key_of(path)
    try:
        told = dict(json.loads(key))
    except (ValueError, TypeError):
        told = {}
    names = {
        "model": "another model (its weights, code or arguments differ)",
        "data": "other calibration data",
        "version": f"another version of granplugin ({told.get('version', 'unknown')})",
    }
    differ = [names[part] for part, value in _of(session).items() if told.get(part) != value]
    if differ:
        raise DataError(
            f"{path}: these statistics are of {' and of '.join(differ)}; leave --statistics "
            "out to collect them anew"
        )
    return Statistics.load(path, key)


def gather(
    session: Session,
    questions: Questions,
    subject: Subject,
    given: Statistics | None,
    clock: Clock,
) -> Statistics:
    """Ranges and histograms of every input asked about, kept where `apply` keeps its own; a pass
    over the calibration data collects what neither has."""
    rows = [row for each in questions.layers for row in each.inputs]
    needs = set(needs_of([*rows, *(row for rows in questions.sites.values() for row in rows)]))
    for each in questions.layers:
        described = input_needs(each)
        if described is not None:
            needs |= {described.channels, described.values, described.peaks}
    key = session.statistics_key
    path = session.run.cache / f"statistics-{key}.safetensors"
    found = Statistics.load(path, key) if path.exists() else given
    missing = {n for n in needs if found is None or not found.covers([n])}
    if found is None or missing:
        partial = path.with_suffix(".partial.safetensors")
        whose = content_key(key, session.recipe.data.batch_size, sorted(map(str, missing)))
        batches = session.calibrating("ranges")
        with located(session.loaded, "data", "calibration"), clock.timed("ranges"):
            seen = subject.analyst.collect(missing, batches, partial, whose)
        found = found.join(seen) if found else seen
        found.save(path, key)
        partial.unlink(missing_ok=True)
    found.save(session.run.path / STATISTICS, json.dumps(_of(session)))
    return found


def find_ranges(
    questions: Questions,
    analyst: Analyst,
    statistics: Statistics,
    imported: Path | None,
    given: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Ranges:
    """Of every row that is tried; those of the recipe's own rows may come from the file `imported`,
    or be what the network came with, `given` by site. Raises DataError where the file does not fit the rows."""
    weights = analyst.weights()
    amax: dict[QuantizedRow, np.ndarray | None] = {}
    for each in questions.layers:
        held = analyst.held(each.layer)
        for row in each.weights:
            whole = held.folded[0] if row.bn == "fold" else held.weight
            amax[row] = find_amax(row, None, whole)
        for row in each.inputs:
            if not row.dynamic:
                amax[row] = find_amax(row, statistics)
    for row in (row for rows in questions.sites.values() for row in rows):
        if not row.dynamic:
            amax[row] = find_amax(row, statistics, weights.get(row.site))
    start = [row for row in questions.plan.quantized if row in amax]
    by_site = {row.site: given[row.site] for row in start if row.given is not None}
    by_site |= import_amax(imported, start) if imported else {}
    amax |= {row: by_site[row.site] for row in start if row.site in by_site}
    shared = share_amax(
        start, {row.site: found for row in start if (found := amax[row]) is not None}
    )
    said = {r.site for r in start if r.amax is not None or r.share is not None}
    return Ranges(
        amax | {row: shared.get(row.site) for row in start}, frozenset(said | by_site.keys())
    )


def _of(session: Session) -> dict[str, str]:
    """What statistics are of."""
    return {
        "model": session.key,
        "data": session.calibration.key(),
        "version": granplugin.__version__,
    }
