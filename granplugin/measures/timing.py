"""How long a call takes: runners timed in turns, so that what slows the machine slows them all."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter_ns
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from scipy.special import bdtr

# Below 6 pairs even the whole range of the ratios is not a 95 % interval of their median.
MIN_ROUNDS = 6
_Key = TypeVar("_Key", bound=Hashable)


@runtime_checkable
class Timed(Protocol):
    """A runner that has a clock of its own, such as a GPU's."""

    def __call__(self) -> object: ...

    def timed(self, calls: int) -> float:
        """Mean ms of `calls` calls in a row, by that clock."""


@dataclass(frozen=True)
class Latency:
    """Wall time of one call in ms.

    `median_ms` and `p90_ms` over the rounds (linear interpolation); `iqr` is the interquartile
    range over the median; `samples_ms` has one value per round, in the order measured.
    """

    median_ms: float
    p90_ms: float
    iqr: float
    rounds: int
    samples_ms: tuple[float, ...]


@dataclass(frozen=True)
class Ratio:
    """How many times as long one runner takes as another, with a 95 % interval."""

    value: float
    low: float
    high: float

    def beyond(self, spread: float) -> Ratio:
        """With an interval wider by `spread`, by which two builds of one network differ."""
        return Ratio(self.value, self.low / (1 + spread), self.high * (1 + spread))


def measure_interleaved(
    runners: Mapping[_Key, Callable[[], object]],
    warmup: int,
    rounds: int,
    inner: int = 1,
    seconds: float | None = None,
    seed: int = 0,
) -> dict[_Key, Latency]:
    """Time each runner once per round, in an order shuffled anew each round by `seed`.

    A round's sample is the mean of `inner` calls, by the runner's own clock if it is Timed. When a
    runner has used `seconds` - warm-up and rounds each - the rest is dropped for all, since rounds
    are compared in pairs; one warm-up call and MIN_ROUNDS rounds are always made. The garbage
    collector rests meanwhile.
    """
    order = list(runners)
    shuffle = random.Random(seed).shuffle
    limit_ns = float("inf") if seconds is None else seconds * 1e9
    samples: dict[_Key, list[float]] = {name: [] for name in order}
    used_ns = dict.fromkeys(order, 0)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for name in order:
            start = perf_counter_ns()
            for _ in range(max(warmup, 1)):
                runners[name]()
                if perf_counter_ns() - start > limit_ns:
                    break
        for done in range(max(rounds, MIN_ROUNDS)):
            if done >= MIN_ROUNDS and max(used_ns.values(), default=0) > limit_ns:
                break
            shuffle(order)
            for name in order:
                run = runners[name]
                start = perf_counter_ns()
                if isinstance(run, Timed):
                    told_ms = run.timed(inner)
                else:
                    told_ms = None
                    for _ in range(inner):
                        run()
                elapsed = perf_counter_ns() - start
                used_ns[name] += elapsed
                # A coarse clock may not have moved; ratios need a positive time.
                samples[name].append(
                    max(elapsed / inner / 1e6 if told_ms is None else told_ms, 1e-6)
                )
    finally:
        if collecting:
            gc.enable()
    return {name: latency(samples[name]) for name in runners}


def ratio(a: Latency, b: Latency) -> Ratio:
    """The median over rounds of a's time / b's, two latencies of one `measure_interleaved`.

    The interval is the sign test's: the k-th smallest and k-th largest ratio, with the largest k
    for which P(Binomial(n, 1/2) < k) <= 2.5 %; exact for any distribution whose rounds are
    independent (Conover, Practical Nonparametric Statistics, section 3.2). ValueError when the
    rounds do not pair or are fewer than MIN_ROUNDS.
    """
    if a.rounds != b.rounds or a.rounds < MIN_ROUNDS:
        raise ValueError(f"{a.rounds} and {b.rounds} rounds do not pair, {MIN_ROUNDS} at least")
    ratios = np.sort(np.divide(a.samples_ms, b.samples_ms))
    k = int(np.count_nonzero(bdtr(np.arange(a.rounds), a.rounds, 0.5) <= 0.025))
    return Ratio(float(np.median(ratios)), float(ratios[k - 1]), float(ratios[-k]))


def build_spread(again: Sequence[Ratio]) -> float:
    """How far apart two builds of one network were at most, as a part of the shorter time; from
    the second's times over the first's. A difference between networks below that is no finding.
    """
    return max((max(each.value, 1 / each.value) - 1 for each in again), default=0.0)


def latency(samples_ms: Sequence[float]) -> Latency:
    """The latency of these rounds."""
    low, median, high, p90 = np.percentile(samples_ms, [25, 50, 75, 90]).tolist()
    return Latency(median, p90, (high - low) / median, len(samples_ms), tuple(samples_ms))


def one_round(calls_ms: Sequence[float]) -> Latency:
    """The latency of single calls in one run. It is one round, since what slows a machine slows
    all of it; so no ratio can be formed of it.
    """
    return replace(latency(calls_ms), rounds=1)
