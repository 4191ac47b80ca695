"""The passes over the analysis data: local errors of every setting, effects on the output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from granplugin.analysis.analyst import EffectStep, LocalStep
from granplugin.analysis.effects import (
    Effect,
    Wanted,
    alone_name,
    choice_name,
    effect,
    restored_name,
)
from granplugin.analysis.figures import FigureKey
from granplugin.analysis.heap import kept_heap
from granplugin.analysis.passes import accumulate
from granplugin.analysis.subject import LABELS, Clock, Subject
from granplugin.analysis.tried import Choice, Pair, RoundedNetwork
from granplugin.data.batches import Batch
from granplugin.progress import track
from granplugin.runs.executor import run_tasks
from granplugin.store.cache import Cache
from granplugin.store.keys import content_key

LOCAL_SHARE = 4
"""Local errors are measured on one sample in so many, drawn at random, unless all are asked for."""
LEAST_SAMPLES = 32
"""Fewer are all measured."""


def draw(samples: int, exact: bool, seed: int) -> np.ndarray:
    """The samples that local errors are measured on, by number, in order: all where `exact`."""
    part = samples if exact else max(samples // LOCAL_SHARE, LEAST_SAMPLES)
    if part >= samples:
        return np.arange(samples)
    return np.sort(np.random.default_rng(seed).choice(samples, part, replace=False))


@dataclass(frozen=True, eq=False)
class MeasureLocalErrors:
    """The task to measure the local errors of all settings on the samples of these `numbers`, in
    order: of each the figure of Analyst.local, whose sums over samples add up."""

    subject: Subject
    network: RoundedNetwork
    numbers: np.ndarray

    def run(self, cache: Cache) -> dict[FigureKey, np.ndarray]:
        """Raises ModelError where an output is not finite."""
        keys = [key for each in self.network.tried.values() for key in each.figures()]
        keys += [key for site in self.network.sites.values() for key in site.figures()]
        kept = self.subject.kept(cache, "local", content_key(self.numbers.tolist()))
        made: list[LocalStep] = []

        def step(batch: Batch, wanted: frozenset[FigureKey]) -> Mapping[FigureKey, np.ndarray]:
            if not made:
                made.append(self.subject.analyst.local(self.network, wanted))
            return made[0](_inputs(batch))

        return accumulate(kept, keys, _batches(self.subject, self.numbers, "local errors"), step)


@dataclass(frozen=True, eq=False)
class MeasureEffects:
    """The task to measure what choices, a layer alone or all but one do to the network's output, on
    the samples of these `numbers`, in order: of each name in `asked` the sums of effects.compare.

    One pass serves all of them, so that here they are one task; elsewhere they may be as many as
    there are names, or parts of the samples, whose sums add up. `stage` is what is told meanwhile.
    """

    subject: Subject
    asked: Wanted
    numbers: np.ndarray
    stage: str = "effects"

    def run(self, cache: Cache) -> dict[str, np.ndarray]:
        """Raises ModelError where an output is not finite."""
        asked, part = self.asked, []
        if len(self.numbers) < self.subject.data.samples:
            part.append(content_key(self.numbers.tolist()))
        if (classes := self.subject.loaded.recipe.classes) is not None:
            part.append(content_key(classes.model_dump()))
        kept = self.subject.kept(cache, "effects", "-".join((str(asked.metric), *part)))
        made: list[EffectStep] = []

        def step(batch: Batch, wanted: frozenset[str]) -> Mapping[str, np.ndarray]:
            if not made:
                made.append(self.subject.analyst.effects(asked))
            return made[0](_inputs(batch), batch.get(LABELS), wanted)

        names = [*asked.choices, *asked.alone, *asked.restored]
        return accumulate(kept, names, _batches(self.subject, self.numbers, self.stage), step)


def local_errors(
    subject: Subject, network: RoundedNetwork, drawn: np.ndarray, clock: Clock
) -> dict[FigureKey, np.ndarray]:
    """The local errors of all settings, on the samples `drawn`. Raises ModelError where an output
    is not finite."""
    task = MeasureLocalErrors(subject, network, drawn)
    with subject.located(), clock.timed("local errors"), kept_heap():
        (found,) = run_tasks([task], subject.cache())
    return found


def effects_task(
    subject: Subject,
    network: RoundedNetwork,
    choices: Sequence[Choice] = (),
    alone: Sequence[tuple[str, Pair]] = (),
    restored: Sequence[str] = (),
    stage: str = "effects",
    numbers: np.ndarray | None = None,
) -> MeasureEffects:
    """The task to measure what these do, by choice_name, alone_name and restored_name; on the
    samples of these `numbers`, or all."""
    asked = Wanted(
        network,
        {choice_name(network, choice): choice for choice in choices},
        {alone_name(network, *each): each for each in alone},
        {restored_name(network, layer): layer for layer in restored},
        subject.metric,
        subject.loaded.recipe.classes,
    )
    samples = np.arange(subject.data.samples) if numbers is None else numbers
    return MeasureEffects(subject, asked, samples, stage)


def measure_figures(task: MeasureEffects, clock: Clock) -> dict[str, np.ndarray]:
    """The sums that a task measures, by their names."""
    subject = task.subject
    with subject.located(), clock.timed(task.stage), kept_heap():
        (found,) = run_tasks([task], subject.cache())
    return found


def measure_effects(task: MeasureEffects, clock: Clock) -> dict[str, Effect]:
    """The effects that a task measures, by their names."""
    by_labels = task.subject.distrust is None
    return {
        name: effect(figure, by_labels) for name, figure in measure_figures(task, clock).items()
    }


def _batches(subject: Subject, numbers: np.ndarray, stage: str) -> Iterator[Batch]:
    yield from track(subject.batches(numbers), stage, subject.count(numbers))


def _inputs(batch: Batch) -> Batch:
    return {name: array for name, array in batch.items() if name != LABELS}
