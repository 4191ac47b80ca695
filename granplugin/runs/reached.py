"""How far the evaluation data reach at each site, beside the ranges that other data gave it: what is
scaled otherwise deep in a network need not be so at its inputs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

from granplugin.calibration.statistics import Need
from granplugin.data.batches import Batch, length_of
from granplugin.data.doubts import Doubt
from granplugin.errors import LackError, UserError
from granplugin.progress import stage
from granplugin.quant.formats import NO_RANGE
from granplugin.recipe.loaded import located
from granplugin.results.values import Job
from granplugin.runs.calibrated import Calibrated
from granplugin.runs.session import Session
from granplugin.store.keys import content_key
from granplugin.words import digits, first

log = logging.getLogger(__name__)

SAMPLES = 32
"""Evaluation samples that are looked at."""
_BEYOND, _FAR_BEYOND, _WITHIN = 2.0, 4.0, 0.25
"""How many times as far as its range a site is reached that is worth a word, that makes the ranges
those of other data, and that leaves most of the range unused."""
_ENOUGH = 16
"""From so many samples on it says something that they do not reach far."""


def doubts_of_ranges(
    session: Session, jobs: Sequence[Job], calibrated: Calibrated
) -> tuple[Doubt, ...]:
    """What the evaluation data give reason to doubt of ranges that are not their own; nothing where
    they are the calibration data, or the network does not run on them."""
    if session.recipe.data.evaluation is None:
        return ()
    ranges = _ranges(jobs, calibrated)
    if not ranges:
        return ()
    try:
        reached = _reached(session, [Need(site, s, False, s) for site, (_, s) in ranges.items()])
    except LackError:
        raise
    except UserError as err:  # what does not run on them is refused where it is measured
        log.debug("not known how far the evaluation data reach: %s", err)
        return ()
    times = {site: reached[site] / largest for site, (largest, _) in ranges.items()}
    samples = min(SAMPLES, session.evaluation.samples)
    return tuple(told_of(times, samples))


def told_of(times: Mapping[str, float], samples: int) -> Iterator[Doubt]:
    """Of sites, each with how many times its range the samples reach.

    >>> [doubt.said for doubt in told_of({"a.input": 5.0, "b.input": 1.0}, 32)]
    ['at 1 of 2 sites the evaluation data reach up to 5 times as far as the ranges (a.input): what \
lies beyond is clipped']
    """
    beyond = sorted((s for s in times if times[s] >= _BEYOND), key=lambda s: -times[s])
    if beyond:
        most = times[beyond[0]]
        yield Doubt(
            f"at {len(beyond)} of {len(times)} sites the evaluation data reach up to {digits(most)} "
            f"times as far as the ranges ({first(beyond)}): what lies beyond is clipped",
            most >= _FAR_BEYOND,
        )
    within = sorted((s for s in times if times[s] <= _WITHIN), key=lambda s: times[s])
    if within and samples >= _ENOUGH:
        yield Doubt(
            f"at {len(within)} of {len(times)} sites {samples} evaluation samples reach no more than "
            f"{digits(100 * times[within[0]])} to {digits(100 * times[within[-1]])} % of the ranges "
            f"({first(within)}): their steps are wider than these data need",
            False,
        )


def _ranges(
    jobs: Sequence[Job], calibrated: Calibrated
) -> dict[str, tuple[float, tuple[int, ...]]]:
    """Site as it is observed -> the largest |x| that its ranges are of, the least over all variants,
    and its shape; of those that come from data or from a file."""
    found: dict[str, tuple[float, tuple[int, ...]]] = {}
    for job in jobs:
        imported = calibrated.imported[job.name]
        for row in job.plan.quantized:
            if row.at.constant or row.dynamic or row.amax is not None:
                continue
            if row.site in imported:
                largest = float(imported[row.site].max())
            elif calibrated.statistics is not None:
                largest = calibrated.statistics.largest(row)
            else:
                continue
            if largest > NO_RANGE:
                known = found.get(row.observed)
                largest = min(largest, known[0]) if known else largest
                found[row.observed] = largest, row.shape
    return found


def _reached(session: Session, needs: Sequence[Need]) -> dict[str, float]:
    """Site -> the largest |x| that SAMPLES evaluation samples show; kept."""

    def collect() -> dict[str, float]:
        with (
            located(session.loaded, "data", "evaluation"),
            stage("looking at the evaluation data"),
        ):
            seen = session.network.collect(needs, session.layers, session.unpadded(_few(session)))
        return {need.site: float(seen.of(need)[0].max()) for need in needs}

    key = content_key(
        session.statistics_key, session.evaluation.key(), SAMPLES, sorted(map(str, needs))
    )
    kept: dict[str, float] = session.run.kept.made_json("reached", key, collect)
    return kept


def _few(session: Session) -> Iterator[Batch]:
    """SAMPLES samples, in batches of data.batch_size or fewer; whole ones where it is static."""
    most = session.recipe.data.batch_size
    if session.recipe.model.form.static_batch:
        seen = 0
        for batch in session.evaluation:
            yield batch
            if (seen := seen + length_of(batch)) >= SAMPLES:
                return
        return
    few = session.evaluation.few(SAMPLES)
    for start in range(0, length_of(few), most):
        yield {name: array[start : start + most] for name, array in few.items()}
