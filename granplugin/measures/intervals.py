"""What measured differences prove: 95 % intervals, paired sample by sample.

No interval is +-0 because nothing changed: equal results say how little n samples can tell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import bisect
from scipy.special import bdtr, chdtri, ndtri, stdtrit

from granplugin.errors import UserError

Verdict = Literal["no measurable difference", "better", "worse"]

_Z = float(ndtri(0.975))
_DB = 10 / math.log(10)


@dataclass(frozen=True)
class Difference:
    """a minus b over n samples; `verdict` is about a, "better" in the metric's own direction.

    `low` and `high` bound the 95 % interval, None where `method` says why there is none. Of hits
    and misses, `gained` and `lost` count the samples right under a alone and under b alone.
    """

    value: float
    low: float | None
    high: float | None
    unit: str
    n: int
    method: str
    verdict: Verdict
    gained: int | None = None
    lost: int | None = None


def proportion_interval(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion, in percent, n >= 1.

    Wilson's score interval: Wilson, JASA 22 (1927) 209-212.

    >>> low, high = proportion_interval(0, 20)
    >>> f"{low:.1f} to {high:.1f} %"
    '0.0 to 16.1 %'
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes of {n}")
    share, z2 = successes / n, _Z * _Z
    centre = share + z2 / (2 * n)
    half = _Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At either end the bound is exact in the formula, not in floating point.
    low = 0.0 if successes == 0 else (centre - half) / (1 + z2 / n)
    high = 1.0 if successes == n else (centre + half) / (1 + z2 / n)
    return 100 * low, 100 * high


def lost_interval(lost: int, n: int) -> tuple[float, float]:
    """95 % interval of the share of decisions that are lost, in percent, n >= 1.

    Wilson's, with the lower bound of up to three losses by Poisson's distribution: one loss among
    few proves less than Wilson's says (Brown, Cai and DasGupta, Statistical Science 16 (2001),
    section 4.1.1).

    >>> low, high = lost_interval(1, 8)
    >>> f"{low:.2f} to {high:.1f} %, {proportion_interval(1, 8)[0]:.2f} by Wilson"
    '0.64 to 47.1 %, 2.24 by Wilson'
    """
    low, high = proportion_interval(lost, n)
    if 1 <= lost <= 3 and lost < n:
        low = min(low, 100 * float(chdtri(lost * 2, 0.95)) / 2 / n)
    return low, high


def difference(
    a: np.ndarray, b: np.ndarray, unit: str, higher_is_better: bool = True
) -> Difference:
    """Compare two `Measured.per_sample` arrays: bool ones as proportions, others by their mean."""
    if a.dtype == b.dtype == np.bool_:
        return paired_difference(a, b)
    return paired_mean_difference(a, b, "points" if unit == "%" else unit, higher_is_better)


def paired_difference(a: np.ndarray, b: np.ndarray) -> Difference:
    """Difference of two proportions over the same samples, in points; a and b are bool, (n,).

    Tango's score interval: Tango, Statistics in Medicine 17 (1998) 891-908. It excludes 0
    exactly where McNemar's test without continuity correction has p < 5 %.

    >>> same = np.ones(797, bool)
    >>> paired_difference(same, same)  # doctest: +ELLIPSIS
    Difference(value=0.0, low=-0.479..., high=0.479..., ... verdict='no measurable difference', gained=0, lost=0)
    """
    n = _paired(a, b)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    low, high = tango_interval(only_a, only_b, n)
    value = 100 * (only_a - only_b) / n
    verdict = _verdict((low > 0) - (high < 0), higher_is_better=True)
    return Difference(value, low, high, "points", n, "Tango score", verdict, only_a, only_b)


def paired_mean_difference(
    a: np.ndarray, b: np.ndarray, unit: str, higher_is_better: bool = True
) -> Difference:
    """Mean of a - b over per-sample values, (n,) each, in `unit`; inf minus inf counts as 0.

    The paired t interval (Student, Biometrika 6 (1908) 1-25). There is none below 10 samples,
    where nothing shows that the mean is near normal, where a difference is infinite, and where
    all are equal, so that their spread says nothing; the verdict is then the exact two-sided sign
    test's at 5 % (Dixon and Mood, JASA 41 (1946) 557-566). UserError on NaN.
    """
    n = _paired(a, b)
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    for values in (a, b):
        if np.isnan(values).any():
            raise UserError(f"the metric is NaN for sample {int(np.argmax(np.isnan(values)))}")
    with np.errstate(invalid="ignore"):
        gain = np.where(a == b, 0.0, a - b)
        value = float(gain.mean())
    magnitude = max(np.abs(values[np.isfinite(values)]).max(initial=0) for values in (a, b))
    if reason := _no_t_interval(gain, magnitude):
        sign = _sign_test(int((gain > 0).sum()), int((gain < 0).sum()))
        verdict = _verdict(sign, higher_is_better)
        return Difference(value, None, None, unit, n, f"sign test ({reason})", verdict)
    half = float(stdtrit(n - 1, 0.975) * gain.std(ddof=1) / math.sqrt(n))
    verdict = _verdict((value > half) - (value < -half), higher_is_better)
    return Difference(value, value - half, value + half, unit, n, "paired t", verdict)


def pooled_difference(a: np.ndarray, b: np.ndarray) -> Difference:
    """Difference of two figures 10 log10(sum of signals / sum of noises) over the same samples, in
    dB; a and b hold each sample's signal and noise, (2, n).

    The value is the difference of the two figures; its interval that of the logarithm of ratios of
    means, linearized (Cochran, Sampling Techniques, 3rd ed. 1977, section 2.9), with Student's t.
    Where there is none (as in `paired_mean_difference`) samples' own figures decide by signs.
    """
    n = _paired(a[0], b[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = [_DB * np.log(signal.sum() / noise.sum()) for signal, noise in (a, b)]
        own = [_DB * np.log(signal / noise) for signal, noise in (a, b)]
        value = 0.0 if pooled[0] == pooled[1] else float(pooled[0] - pooled[1])
        gain = np.where((a == b).all(axis=0), 0.0, own[0] - own[1])
        moves = sum(
            sign * each / each.mean() for sign, each in zip((1, -1, -1, 1), (*a, *b), strict=True)
        )
    reason = None if math.isfinite(value) else "an infinite difference has no interval"
    if reason is None:
        reason = _no_t_interval(_DB * moves, 1.0)
    if reason:
        verdict = _verdict(_sign_test(int((gain > 0).sum()), int((gain < 0).sum())), True)
        return Difference(value, None, None, "dB", n, f"sign test ({reason})", verdict)
    half = float(stdtrit(n - 1, 0.975) * _DB * moves.std(ddof=1) / math.sqrt(n))
    verdict = _verdict((value > half) - (value < -half), higher_is_better=True)
    return Difference(value, value - half, value + half, "dB", n, "ratio of sums", verdict)


def unpaired_difference(
    a: np.ndarray, b: np.ndarray, unit: str, higher_is_better: bool = True
) -> Difference:
    """Difference of two figures over samples that have nothing to do with each other, (n,) and (m,).

    Of hits and misses (bool), in points, Newcombe's hybrid score interval: Newcombe, Statistics in
    Medicine 17 (1998) 873-890, method 10. Otherwise of means, in `unit`, Welch's t interval: Welch,
    Biometrika 34 (1947) 28-35; there is none below 10 samples on either side, or where a value is
    infinite, and then nothing is told. `n` is the smaller number of samples. UserError on NaN.

    >>> found = unpaired_difference(np.ones(80, bool), np.arange(90) < 81, "%")
    >>> f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}] {found.verdict}"
    '10.0 [3.5, 17.9] better'
    """
    n = min(a.size, b.size)
    if not n or a.ndim != 1 or b.ndim != 1:
        raise UserError(f"per-sample values of shape {a.shape} and {b.shape} cannot be compared")
    if a.dtype == b.dtype == np.bool_:
        (p, low_a, high_a), (q, low_b, high_b) = (
            (100 * float(x.mean()), *proportion_interval(int(x.sum()), x.size)) for x in (a, b)
        )
        low = p - q - math.hypot(p - low_a, high_b - q)
        high = p - q + math.hypot(high_a - p, q - low_b)
        verdict = _verdict((low > 0) - (high < 0), higher_is_better=True)
        return Difference(p - q, low, high, "points", n, "Newcombe, unpaired", verdict)
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if np.isnan(a).any() or np.isnan(b).any():
        raise UserError("the metric is NaN for a sample")
    unit = "points" if unit == "%" else unit
    with np.errstate(invalid="ignore"):
        value = float(a.mean() - b.mean())
    if n < 10 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Difference(
            value, None, None, unit, n, "none: too few, or infinite", _verdict(0, True)
        )
    parts = [float(x.var(ddof=1) / x.size) for x in (a, b)]
    if not sum(parts):
        return Difference(value, None, None, unit, n, "none: all are equal", _verdict(0, True))
    freedom = sum(parts) ** 2 / sum(
        part**2 / (x.size - 1) for part, x in zip(parts, (a, b), strict=True)
    )
    half = float(stdtrit(freedom, 0.975)) * math.sqrt(sum(parts))
    verdict = _verdict((value > half) - (value < -half), higher_is_better)
    return Difference(value, value - half, value + half, unit, n, "Welch t, unpaired", verdict)


def tango_interval(only_a: int, only_b: int, n: int) -> tuple[float, float]:
    """Tango's 95 % interval in points, from the samples right under a alone and b alone, of n."""
    # One bound serves both, so swapping a and b negates the interval to the last bit.
    return 100 * _tango_low(only_a, only_b, n), -100 * _tango_low(only_b, only_a, n)


def _tango_low(b: int, c: int, n: int) -> float:
    estimate = (b - c) / n
    if estimate == -1:
        return -1.0
    return bisect(lambda d: _tango_score(d, b, c, n) - _Z, -1.0, estimate, xtol=1e-13)


def _tango_score(delta: float, b: int, c: int, n: int) -> float:
    # q is the likelihood's maximum over P(only b) given that the true difference is delta.
    linear = (2 * n - b + c) * delta - b - c
    root = math.sqrt(linear * linear + 8 * n * c * delta * (1 - delta)) if c else abs(linear)
    q = (root - linear) / (4 * n)
    excess = b - c - n * delta
    variance = n * (2 * q + delta * (1 - delta))
    if variance <= 0:
        return math.copysign(math.inf, excess) if excess else 0.0
    return excess / math.sqrt(variance)


def _paired(a: np.ndarray, b: np.ndarray) -> int:
    if a.ndim != 1 or a.shape != b.shape or not a.size:
        raise UserError(f"per-sample values of shape {a.shape} and {b.shape} do not pair")
    return a.size


def _no_t_interval(gain: np.ndarray, magnitude: float) -> str | None:
    if not np.isfinite(gain).all():
        return "an infinite difference has no mean interval"
    if gain.size < 10:
        return f"{gain.size} samples are too few for an interval of the mean"
    # Equal differences of float32 values still vary by rounding.
    if np.ptp(gain) <= 1e-6 * magnitude:
        return "all differences are equal"
    return None


def _sign_test(plus: int, minus: int) -> int:
    p = min(1.0, 2 * float(bdtr(min(plus, minus), plus + minus, 0.5))) if plus + minus else 1.0
    return 0 if p >= 0.05 else (1 if plus > minus else -1)


def _verdict(sign: int, higher_is_better: bool) -> Verdict:
    if sign == 0:
        return "no measurable difference"
    return "better" if (sign > 0) == higher_is_better else "worse"
