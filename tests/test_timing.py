"""Interleaved timing on a clock that only the runners move."""

import gc
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from granplugin.measures import timing
from granplugin.measures.timing import MIN_ROUNDS, Latency, measure_interleaved, ratio


class Clock:
    def __init__(self):
        self.now_ns = 0
        self.calls = []

    def runner(self, name, cost_ms):
        def run():
            self.calls.append(name)
            self.now_ns += int(1e6 * (cost_ms() if callable(cost_ms) else cost_ms))

        return run


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "perf_counter_ns", lambda: clock.now_ns)
    return clock


def latency(samples_ms):
    return timing.latency(list(samples_ms))


def test_each_runner_gets_its_own_time(clock):
    runners = {"fp32": clock.runner("fp32", 4), "int8": clock.runner("int8", 2)}
    measured = measure_interleaved(runners, warmup=3, rounds=20, inner=5)
    assert list(measured) == ["fp32", "int8"]
    assert measured["fp32"] == Latency(4, 4, 0, 20, (4.0,) * 20)
    assert measured["int8"].median_ms == 2
    assert clock.calls.count("fp32") == clock.calls.count("int8") == 3 + 20 * 5


def test_every_round_runs_everyone_and_no_one_is_always_first(clock):
    names = ["a", "b", "c"]
    measure_interleaved({n: clock.runner(n, 1) for n in names}, warmup=1, rounds=60)
    rounds = np.reshape(clock.calls[3:], (60, 3))
    assert all(sorted(row) == names for row in rounds)
    assert all((rounds[:, place] == name).sum() >= 8 for place in range(3) for name in names)


def test_the_order_depends_on_the_seed_alone(clock):
    orders = []
    for seed in (1, 1, 2):
        clock.calls.clear()
        measure_interleaved({n: clock.runner(n, 1) for n in "abcd"}, 1, 20, seed=seed)
        orders.append("".join(clock.calls))
    assert orders[0] == orders[1] != orders[2]


def test_a_slow_runner_ends_the_rounds_of_all(clock):
    runners = {"slow": clock.runner("slow", 300), "fast": clock.runner("fast", 1)}
    measured = measure_interleaved(runners, warmup=50, rounds=500, seconds=3)
    assert measured["slow"].rounds == measured["fast"].rounds == 11
    assert clock.calls.count("slow") == 11 + 11


def test_six_rounds_and_a_warm_up_are_always_made(clock):
    measured = measure_interleaved({"a": clock.runner("a", 9000)}, warmup=0, rounds=1, seconds=1)
    assert measured["a"].rounds == MIN_ROUNDS
    assert len(clock.calls) == 1 + MIN_ROUNDS


def test_drift_of_the_machine_cancels_in_the_ratio(clock):
    rng = random.Random(0)

    def slowed(factor):
        return lambda: factor * (1 + clock.now_ns / 1e9) * rng.uniform(0.98, 1.02)

    runners = {"a": clock.runner("a", slowed(1)), "b": clock.runner("b", slowed(2))}
    measured = measure_interleaved(runners, warmup=1, rounds=100)
    assert measured["b"].iqr > 0.05
    found = ratio(measured["a"], measured["b"])
    assert found.value == pytest.approx(0.5, rel=0.02)
    assert found.high - found.low < 0.02


def test_the_collector_rests_while_measuring_and_returns_even_after_an_error():
    seen = []

    def failing():
        seen.append(gc.isenabled())
        raise RuntimeError("engine")

    with pytest.raises(RuntimeError):
        measure_interleaved({"a": failing}, warmup=1, rounds=1)
    assert seen == [False]
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        measure_interleaved({"a": int}, warmup=1, rounds=1)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_call_too_short_for_the_clock_still_has_a_time(clock):
    measured = measure_interleaved({"a": int, "b": int}, warmup=1, rounds=6)
    assert ratio(measured["a"], measured["b"]).value == 1


def test_latency_figures_follow_their_definition():
    made = latency(range(1, 12))
    assert (made.median_ms, made.p90_ms, made.rounds) == (6, 10, 11)
    assert made.iqr == pytest.approx((8.5 - 3.5) / 6)


positive = st.floats(0.01, 100)
pairs = st.lists(st.tuples(positive, positive), min_size=MIN_ROUNDS, max_size=60)


@given(pairs)
def test_a_ratio_lies_in_its_interval_and_swaps_to_its_inverse(times):
    a, b = (latency(column) for column in zip(*times, strict=True))
    there, back = ratio(a, b), ratio(b, a)
    assert there.low <= there.value <= there.high
    assert there.low == pytest.approx(1 / back.high)
    assert there.high == pytest.approx(1 / back.low)


@given(st.integers(MIN_ROUNDS, 300))
def test_the_order_statistics_are_the_tightest_that_cover_95_percent(rounds):
    found = ratio(latency(range(1, rounds + 1)), latency([1] * rounds))
    k = int(found.low)
    assert found.high == rounds + 1 - k
    assert 1 - 2 * binom.cdf(k - 1, rounds, 0.5) >= 0.95
    assert 1 - 2 * binom.cdf(k, rounds, 0.5) < 0.95


def test_the_interval_covers_the_true_ratio_in_95_of_100_runs():
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(1000):
        found = ratio(latency(0.8 * rng.lognormal(0, 0.3, 25)), latency([1.0] * 25))
        covered += found.low <= 0.8 <= found.high
    assert covered >= 940


def test_rounds_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="7 and 8 rounds"):
        ratio(latency([1] * 7), latency([1] * 8))
    with pytest.raises(ValueError, match="5 and 5 rounds"):
        ratio(latency([1] * 5), latency([1] * 5))
