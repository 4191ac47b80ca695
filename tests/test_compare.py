"""Intervals and verdicts: their laws, and references computed another way."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binomtest, ttest_rel

from granplugin.errors import UserError
from granplugin.measures.intervals import (
    difference,
    paired_difference,
    paired_mean_difference,
    pooled_difference,
    proportion_interval,
    tango_interval,
)
from granplugin.measures.power import power, smallest_provable_drop, smallest_significant_drop

NOTHING = "no measurable difference"


@st.composite
def flips(draw, most=300):
    """(right under a alone, right under b alone, samples)."""
    n = draw(st.integers(1, most))
    b = draw(st.integers(0, n))
    return b, draw(st.integers(0, n - b)), n


def score_at(delta, b, c, n):
    """Tango's score with the constrained likelihood maximised numerically."""

    def loss(q):
        cells = ((b, q + delta), (c, q), (n - b - c, 1 - delta - 2 * q))
        return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

    bounds = (max(0.0, -delta), (1 - delta) / 2)
    q = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-13}).x
    return (b - c - n * delta) / math.sqrt(n * (2 * q + delta - delta**2))


@settings(max_examples=60, deadline=None)
@given(flips())
def test_tango_is_the_root_of_the_score_with_the_constrained_likelihood(case):
    b, c, n = case
    z, value = 1.959963984540054, (b - c) / n
    low, high = (bound / 100 for bound in tango_interval(b, c, n))
    if value > -1:
        root = brentq(lambda d: score_at(d, b, c, n) - z, -1 + 1e-9, value - 1e-9)
        assert low == pytest.approx(root, abs=1e-5)
    if value < 1:
        root = brentq(lambda d: score_at(d, b, c, n) + z, value + 1e-9, 1 - 1e-9)
        assert high == pytest.approx(root, abs=1e-5)


@given(st.integers(1, 5000))
def test_tango_has_a_closed_form_where_no_or_every_sample_flips(n):
    z2 = 1.959963984540054**2
    width = 100 * z2 / (n + z2)
    assert tango_interval(0, 0, n) == pytest.approx((-width, width))
    assert tango_interval(n, 0, n) == pytest.approx((100 - 2 * width, 100))


@given(flips())
def test_swapping_a_and_b_negates_the_interval(case):
    b, c, n = case
    low, high = tango_interval(b, c, n)
    assert tango_interval(c, b, n) == (-high, -low)


@given(flips())
def test_the_interval_holds_the_difference_and_is_never_a_point(case):
    b, c, n = case
    low, high = tango_interval(b, c, n)
    assert -100 <= low <= 100 * (b - c) / n <= high <= 100
    assert high - low > 100 / (n + 4)


@given(flips())
def test_one_more_flip_towards_a_moves_both_bounds_up(case):
    b, c, n = case
    assume(b + c < n)
    low, high = tango_interval(b, c, n)
    more_low, more_high = tango_interval(b + 1, c, n)
    assert more_low > low
    assert more_high > high or high == 100


@given(flips(most=2000))
def test_tango_excludes_zero_where_mcnemar_does(case):
    b, c, n = case
    low, high = tango_interval(b, c, n)
    assert (low > 0 or high < 0) == ((b - c) ** 2 > 3.841458820694124 * (b + c))


def test_tango_covers_the_true_difference():
    """Exact coverage would need every table; 4,000 draws have a standard error of 0.34 points."""
    rng = np.random.default_rng(3)
    cache = {}
    for n in (30, 100, 797):
        for p_b, p_c in (
            (0.02, 0.02),
            (0.05, 0.05),
            (0.1, 0.02),
            (0.2, 0.1),
            (0.05, 0.3),
            (0, 0.1),
        ):
            tables = rng.multinomial(n, [p_b, p_c, 1 - p_b - p_c], size=4000)
            covered = 0
            for b, c, _ in tables.tolist():
                if (b, c, n) not in cache:
                    cache[b, c, n] = tango_interval(b, c, n)
                low, high = cache[b, c, n]
                covered += low <= 100 * (p_b - p_c) <= high
            assert covered / 4000 >= 0.93, (n, p_b, p_c)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=100))
def test_a_paired_difference_counts_the_flips(pairs):
    a, b = np.array(pairs).T
    found = paired_difference(a, b)
    assert found.value == pytest.approx(100 * (a.mean() - b.mean()))
    assert (found.low, found.high) == tango_interval((a & ~b).sum(), (b & ~a).sum(), len(a))
    assert found.verdict == ("better" if found.low > 0 else "worse" if found.high < 0 else NOTHING)


@pytest.mark.parametrize("n", [1, 5, 20, 797])
@pytest.mark.parametrize("dtype", [bool, float])
def test_identical_results_make_no_measurable_difference(n, dtype):
    same = np.random.default_rng(n).integers(0, 2, n).astype(dtype)
    found = difference(same, same.copy(), "%")
    assert (found.value, found.unit, found.verdict) == (0, "points", NOTHING)
    assert found.low is None or found.low < 0 < found.high


@given(st.integers(4, 3000))
def test_the_smallest_significant_drop_is_proven_and_one_flip_less_is_not(n):
    count = round(smallest_significant_drop(n) * n / 100)
    right = np.ones(n, bool)
    dropped = np.arange(n) >= count
    assert paired_difference(dropped, right).verdict == "worse"
    assert paired_difference(np.arange(n) >= count - 1, right).verdict == NOTHING


@pytest.mark.parametrize("n", [1, 2, 3])
def test_three_samples_can_prove_no_drop(n):
    assert smallest_significant_drop(n) is None
    assert smallest_provable_drop(n) is None


@pytest.mark.parametrize(("n", "drop", "back"), [(797, 0.5, 0), (797, 0.5, 1), (200, 4, 1.5)])
def test_power_is_how_often_simulated_samples_prove_the_drop(n, drop, back):
    random, runs = np.random.default_rng(0), 4000
    shares = [(drop + back) / 100, back / 100, 1 - (drop + 2 * back) / 100]
    drawn, counts = np.unique(random.multinomial(n, shares, runs), axis=0, return_counts=True)
    proven = [tango_interval(int(lost), int(gained), n)[0] > 0 for lost, gained, _ in drawn]
    assert power(n, drop, back) == pytest.approx((counts * proven).sum() / runs, abs=0.025)


def test_the_power_of_the_quickstart_is_as_it_was_worked_out_elsewhere():
    assert [round(100 * power(797, 0.5, back)) for back in (0, 0.2, 1)] == [56, 30, 15]
    found = [smallest_provable_drop(797, back) for back in (0, 0.2, 1)]
    assert found == pytest.approx([0.7, 1.2, 1.9], abs=0.03)


@given(st.integers(10, 2000), st.sampled_from([0, 0.2, 1, 5]))
def test_the_smallest_provable_drop_has_a_power_of_80_percent(n, back):
    drop = smallest_provable_drop(n, back)
    if drop is not None:
        assert power(n, drop, back) == pytest.approx(0.8, abs=1e-3)


@given(flips())
def test_wilson_is_scipys(case):
    successes, _, n = case
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    assert proportion_interval(successes, n) == pytest.approx(
        (100 * expected.low, 100 * expected.high), abs=1e-9
    )


@given(flips())
def test_wilson_holds_the_share_and_is_never_a_point(case):
    successes, _, n = case
    low, high = proportion_interval(successes, n)
    assert 0 <= low <= 100 * successes / n <= high <= 100
    assert low < high


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError):
        proportion_interval(0, 0)
    with pytest.raises(ValueError):
        proportion_interval(3, 2)


samples = st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=10, max_size=60)


@given(samples)
def test_the_mean_difference_has_the_paired_t_interval(pairs):
    a, b = np.array(pairs).T
    assume(np.ptp(a - b) > 1e-3)
    found = paired_mean_difference(a, b, "dB")
    expected = ttest_rel(a, b).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    back = paired_mean_difference(b, a, "dB")
    assert (back.value, back.low, back.high) == (-found.value, -found.high, -found.low)


@given(samples)
def test_lower_is_better_turns_the_verdict_round(pairs):
    a, b = np.array(pairs).T
    turned = {"better": "worse", "worse": "better", NOTHING: NOTHING}
    up = paired_mean_difference(a, b, "s").verdict
    assert paired_mean_difference(a, b, "s", higher_is_better=False).verdict == turned[up]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_differences_have_no_interval_but_can_be_proven(dtype):
    b = np.random.default_rng(0).normal(size=50).astype(dtype)
    found = paired_mean_difference(b + dtype(0.3), b, "dB")
    assert (found.low, found.high, found.verdict) == (None, None, "better")
    assert found.method == "sign test (all differences are equal)"


@pytest.mark.parametrize("n, verdict", [(1, NOTHING), (5, NOTHING), (6, "worse"), (9, "worse")])
def test_below_ten_samples_only_signs_count(n, verdict):
    found = paired_mean_difference(np.zeros(n), np.arange(1.0, n + 1), "mAP")
    assert (found.low, found.verdict) == (None, verdict)
    assert "too few" in found.method


def test_an_exact_variant_is_compared_by_signs():
    exact, noisy = np.full(20, np.inf), np.full(20, 30.0)
    found = paired_mean_difference(exact, noisy, "dB")
    assert (found.value, found.low, found.verdict) == (math.inf, None, "better")
    assert paired_mean_difference(exact, exact, "dB").verdict == NOTHING


def test_samples_that_do_not_pair_or_are_nan_are_refused():
    with pytest.raises(UserError, match=r"\(3,\) and \(4,\) do not pair"):
        difference(np.ones(3), np.ones(4), "dB")
    with pytest.raises(UserError, match="NaN for sample 1"):
        difference(np.ones(3), np.array([1, np.nan, 1]), "dB")


def noisy(rng, n, scale):
    """Signals and noises of n samples, unlike each other as those of networks are."""
    signal = rng.lognormal(0, 0.5, n)
    shared = rng.lognormal(0, 0.8, n)
    return [np.stack([signal, signal * shared * k * rng.lognormal(0, 0.3, n)]) for k in scale]


def db(signal, noise):
    return 10 * np.log10(signal.sum() / noise.sum())


def test_a_pooled_differences_value_is_the_difference_of_the_shown_figures():
    a, b = noisy(np.random.default_rng(1), 200, (1e-4, 1e-3))
    found = pooled_difference(a, b)
    assert found.value == pytest.approx(db(*a) - db(*b))
    assert found.low < found.value < found.high
    assert found.verdict == "better"
    back = pooled_difference(b, a)
    assert (back.value, back.low) == pytest.approx((-found.value, -found.high))


def test_a_pooled_differences_interval_covers_that_of_all_samples():
    rng, covered = np.random.default_rng(2), 0
    a, b = noisy(rng, 100_000, (1e-4, 1.2e-4))
    true = db(*a) - db(*b)
    for _ in range(400):
        drawn = rng.choice(a.shape[1], 100)
        found = pooled_difference(a[:, drawn], b[:, drawn])
        covered += found.low <= true <= found.high
    assert covered >= 0.9 * 400


def test_a_pooled_figure_does_not_differ_from_itself():
    (a,) = noisy(np.random.default_rng(3), 50, (1e-4,))
    found = pooled_difference(a, a.copy())
    assert (found.value, found.low, found.verdict) == (0, None, NOTHING)


def test_a_pooled_figure_without_noise_is_compared_by_signs():
    (a,) = noisy(np.random.default_rng(4), 50, (1e-4,))
    exact = a * [[1], [0]]
    found = pooled_difference(exact, a)
    assert (found.value, found.low, found.verdict) == (np.inf, None, "better")
    assert pooled_difference(exact, exact).verdict == NOTHING
