"""The passes over the analysis data: local errors of every setting, effects on the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from granplugin.analysis.passes import accumulate
from granplugin.analysis.subject import LABELS, Clock, Subject
from granplugin.analysis.tried import Choice, Pair, RoundedNetwork
from granplugin.data.batches import Batch
from granplugin.progress import track
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


def local_errors(
    subject: Subject, network: RoundedNetwork, drawn: np.ndarray, clock: Clock
) -> dict[FigureKey, np.ndarray]:
    """The local errors of all settings, on the samples `drawn`. Raises ModelError where an output
    is not finite."""
    tried, sites = list(network.tried.values()), list(network.sites.values())
    keys = [key for each in tried for key in each.figures()]
    keys += [key for site in sites for key in site.figures()]
    kept = subject.kept("local", content_key(drawn.tolist()))
    made: list[LocalStep] = []

    def step(batch: Batch, wanted: frozenset[FigureKey]) -> Mapping[FigureKey, np.ndarray]:
        if not made:
            made.append(subject.analyst.local(network, wanted))
        return made[0](_inputs(batch))

    with subject.located(), clock.timed("local errors"):
        batches = track(subject.batches(drawn), "local errors", subject.count(drawn))
        return accumulate(kept, keys, batches, step)


def measure_effects(
    subject: Subject,
    network: RoundedNetwork,
    clock: Clock,
    choices: Sequence[Choice] = (),
    alone: Sequence[tuple[str, Pair]] = (),
    restored: Sequence[str] = (),
    what: str = "effects",
    numbers: np.ndarray | None = None,
) -> dict[str, Effect]:
    """What these do to the network's output, by choice_name, alone_name and restored_name; on the
    samples of these `numbers`, or all."""
    by_choice = {choice_name(network, choice): choice for choice in choices}
    by_alone = {alone_name(network, *each): each for each in alone}
    by_restored = {restored_name(network, layer): layer for layer in restored}
    metric = subject.metric
    everything = np.arange(subject.data.samples)
    samples = everything if numbers is None else numbers
    part = () if len(samples) == len(everything) else (content_key(samples.tolist()),)
    classes = subject.loaded.recipe.classes
    if classes is not None:
        part = (*part, content_key(classes.model_dump()))
    kept = subject.kept("effects", "-".join((str(metric), *part)))
    asked = Wanted(network, by_choice, by_alone, by_restored, metric, classes)
    made: list[EffectStep] = []

    def step(batch: Batch, wanted: frozenset[str]) -> Mapping[str, np.ndarray]:
        if not made:
            made.append(subject.analyst.effects(asked))
        return made[0](_inputs(batch), batch.get(LABELS), wanted)

    names = [*by_choice, *by_alone, *by_restored]
    with subject.located(), clock.timed(what):
        batches = track(subject.batches(samples), what, subject.count(samples))
        found = accumulate(kept, names, batches, step)
    by_labels = subject.distrust is None
    return {name: effect(figure, by_labels) for name, figure in found.items()}


def _inputs(batch: Batch) -> Batch:
    return {name: array for name, array in batch.items() if name != LABELS}
