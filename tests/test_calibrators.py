import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from granplugin.quant.calibrators import (
    BINS,
    EDGES,
    Calibrator,
    amax_of,
    entropy,
    histogram,
    linear_bins,
    mse,
    percentile,
    refusal,
)
from granplugin.quant.formats import FORMATS, fake_quantize, scale_of

values = arrays(
    np.float32,
    st.integers(1, 300),
    elements=st.floats(-1e6, 1e6, width=32).map(lambda x: x if abs(x) > 1e-6 else 0.0),
).filter(np.any)


def largest(x):
    return float(np.abs(x).max())


@given(st.floats(0, 2.0**31, width=32, exclude_max=True))
def test_a_bin_holds_what_lies_between_its_edges(x):
    (bin_of,) = np.flatnonzero(histogram(np.float32([-x])))
    assert EDGES[bin_of] <= np.float32(x) < EDGES[bin_of + 1]


def test_the_outermost_bins_take_everything_beyond_them():
    counts = histogram(np.float32([0, 1e-45, -1e-30, 2.0**32, -3e38]))
    assert (counts[0], counts[-1], counts.sum()) == (3, 2, 5)


@given(values, st.data())
def test_histograms_merge_exactly_whatever_the_split_and_the_order(x, data):
    shuffled = x[data.draw(st.permutations(range(len(x))))]
    cut = data.draw(st.integers(0, len(x)))
    merged = histogram(shuffled[:cut]) + histogram(shuffled[cut:])
    np.testing.assert_array_equal(merged, histogram(x))


@given(values, st.integers(1, 10_000).map(lambda n: n / 100))
def test_percentile_is_numpys_rounded_up_to_a_bins_edge(x, percent):
    exact = np.percentile(np.abs(x).astype(np.float64), percent, method="inverted_cdf")
    found = percentile(histogram(x), largest(x), percent)
    if exact < EDGES[1]:
        assert found == largest(x)
    else:
        upper = EDGES[np.searchsorted(EDGES, exact, "right")]
        assert exact <= found == min(float(upper), largest(x))


def test_99_99_percent_of_10000_values_are_9999_of_them():
    x = np.append(np.ones(9_999, np.float32), np.float32(1000))
    assert percentile(histogram(x), 1000.0, 99.99) == EDGES[np.searchsorted(EDGES, 1, "right")]


def mse_by_definition(counts, top, fmt):
    errors = {}
    for k in range(128):
        amax = np.float32(top * 2 ** (-k / 16))
        error = 0.0
        for i in np.flatnonzero(counts):
            center = np.float32((EDGES[i] + EDGES[i + 1]) / 2) if i else np.float32(0)
            rounded = fake_quantize(center[None], scale_of(amax, fmt)[None], (1,), fmt)[0]
            error += int(counts[i]) * float(rounded - center) ** 2
        errors[float(amax)] = error
    return errors


@settings(max_examples=6, deadline=None)
@given(arrays(np.float32, 20, elements=st.floats(-50, 50, width=32)).filter(np.any))
@pytest.mark.parametrize("name", FORMATS)
def test_mse_is_the_candidate_with_the_least_error(name, x):
    counts, fmt = histogram(x), FORMATS[name]
    errors = mse_by_definition(counts, largest(x), fmt)
    assert errors[mse(counts, largest(x), fmt)] == pytest.approx(min(errors.values()), rel=1e-9)


def entropy_by_definition(bins, levels):
    """{i: KL(P || Q)} with plain loops."""
    divergences = {}
    for i in range(128, len(bins) + 1):
        p = [float(count) for count in bins[:i]]
        p[-1] += float(bins[i:].sum())
        q = [0.0] * i
        runs = {}
        for k in range(i):
            if bins[k]:
                runs.setdefault(k * levels // i, []).append(k)
        for run in runs.values():
            mean = sum(int(bins[k]) for k in run) / len(run)
            for k in run:
                q[k] = mean
        total_p, total_q = sum(p), sum(q)
        divergences[i] = 0.0 if total_q else math.inf
        for p_k, q_k in zip(p, q, strict=True):
            if p_k and not math.isinf(divergences[i]):
                ratio = p_k / total_p * total_q / q_k if q_k else math.inf
                divergences[i] += p_k / total_p * math.log(ratio)
    return divergences


@pytest.mark.parametrize(
    "draw, levels",
    [
        (lambda rng: rng.standard_normal(20_000), 128),
        (lambda rng: np.maximum(rng.laplace(size=3_000), 0), 8),
        (lambda rng: np.append(rng.standard_normal(5_000), 40), 128),
        (lambda rng: np.full(500, 3.0), 8),
    ],
    ids=["normal", "sparse", "outlier", "constant"],
)
def test_entropy_is_the_last_cut_with_the_least_divergence(draw, levels):
    x = draw(np.random.default_rng(1)).astype(np.float32)
    counts = histogram(x)
    bins = linear_bins(counts, largest(x))
    bins[0] = bins[1]
    divergences = entropy_by_definition(bins, levels)
    least = min(divergences.values())
    cut = max(i for i, divergence in divergences.items() if divergence <= least + 1e-12)
    assert entropy(counts, largest(x), levels) == np.float32(largest(x) * cut / 2048)


@given(values)
def test_linear_bins_keep_the_sum_and_misplace_values_by_one_fine_bin_at_most(x):
    bins = linear_bins(histogram(x), largest(x))
    assert bins.min() >= 0 and bins.sum() == len(x)
    magnitudes = np.sort(np.abs(x).astype(np.float64))
    ends = largest(x) * (np.arange(1, 2048) / 2048)
    inner = np.clip(np.searchsorted(EDGES, ends, "right"), 1, BINS)
    at_least = np.searchsorted(magnitudes, EDGES[inner - 1], "left")
    at_most = np.searchsorted(magnitudes, EDGES[inner], "right")
    below = np.cumsum(bins)[:-1]
    assert ((at_least <= below) & (below <= at_most)).all()


@given(values, st.sampled_from(["entropy", "mse", "percentile"]), st.sampled_from(list(FORMATS)))
def test_amax_is_positive_and_never_above_the_largest_value(x, kind, name):
    calibrator = Calibrator(kind, 99.0 if kind == "percentile" else None)
    amax = amax_of(calibrator, histogram(x), largest(x), FORMATS[name])
    assert 0 < amax <= largest(x)


def test_fewer_than_128_values_per_scale_are_refused_except_for_max():
    shape, block = (1, 8, 4, 4), (1, 1, 4, 4)
    assert refusal(Calibrator("max"), shape, block, 1) is None
    assert "has 112; use max, or" in refusal(Calibrator("mse"), shape, block, 7)
    assert refusal(Calibrator("mse"), shape, block, 8) is None
    assert "percentile 99.9 needs" in refusal(Calibrator("percentile", 99.9), (8, 9), (1, 9))


@given(st.integers(128, 40_000), st.sampled_from([50.0, 99.0, 99.9, 99.99, 99.999]))
def test_a_percentile_that_would_be_the_maximum_is_refused_and_no_other(count, percent):
    values = np.arange(1, count + 1, dtype=np.float64)
    is_maximum = np.percentile(values, percent, method="inverted_cdf") == count
    told = refusal(Calibrator("percentile", percent), (count,), (count,))
    assert (told is not None) == is_maximum
    assert told is None or f"of {count:,} values is their maximum" in told


def test_entropy_of_few_values_is_refused_and_of_enough_loses_little():
    assert "use max or mse" in refusal(Calibrator("entropy"), (64, 64), (64, 64))
    assert refusal(Calibrator("entropy"), (128, 128), (128, 128)) is None

    def db(x, calibrator):
        amax = np.float32([amax_of(calibrator, histogram(x), largest(x), FORMATS["int8"])])
        rounded = fake_quantize(x, scale_of(amax, FORMATS["int8"]), x.shape, FORMATS["int8"])
        return -10 * math.log10(np.square(rounded - x).sum() / np.square(x).sum())

    lost = []
    for count in (1024, 16_384):
        draws = [
            np.random.default_rng(seed).standard_normal(count).astype(np.float32)
            for seed in range(8)
        ]
        lost.append([db(x, Calibrator("mse")) - db(x, Calibrator("entropy")) for x in draws])
    assert max(lost[0]) > 5 and np.median(lost[1]) < 0.5


def test_more_histograms_than_memory_should_hold_are_refused():
    shape = (1, 4096, 4, 4)
    assert "4096" in refusal(Calibrator("mse"), shape, (1, 1, 4, 4), 100)
    assert refusal(Calibrator("mse"), (4096, 200), (1, 200)) is None
