"""What a number of samples can prove: how large a drop, and how many it takes to tell.

A drop is proven where the 95 % interval of the paired difference excludes 0: with Tango's interval
(measures.intervals) exactly where McNemar's test without continuity correction has p < 5 %.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import bdtr, gammaln, ndtri, xlog1py, xlogy

from granplugin.measures.intervals import tango_interval

POWER = 0.8
"""The probability with which a drop should be proven, where nothing else is said."""
_Z, _Z_POWER = float(ndtri(0.975)), float(ndtri(POWER))
_NEGLIGIBLE = 1e-12


def smallest_significant_drop(n: int) -> float | None:
    """The smallest drop, in points, whose 95 % interval excludes 0 if it is what n paired samples
    show; None below 4 samples. It takes the fewest flips, all of them losses.

    >>> smallest_significant_drop(800)
    0.5
    """
    flips = range(1, n + 1)
    return next((100 * b / n for b in flips if tango_interval(b, 0, n)[0] > 0), None)


def power(n: int, drop: float, back: float = 0.0) -> float:
    """The probability that n paired samples prove a true drop of `drop` points, where `back` percent
    of all samples become right and `drop + back` percent become wrong.

    Exact, by the distribution of the flips, N of n binomially and of these the losses: the power of
    McNemar's test (Duffy, Biometrics 40 (1984) 1005-1015), unconditional.

    >>> [round(100 * power(797, 0.5, back)) for back in (0, 0.2, 1)]
    [56, 30, 15]
    """
    lost, flip = (drop + back) / 100, (drop + 2 * back) / 100
    if not 0 < flip <= 1:
        return 0.0
    count = np.arange(n + 1)
    log = gammaln(n + 1) - gammaln(count + 1) - gammaln(n - count + 1)
    chance = np.exp(log + xlogy(count, flip) + xlog1py(n - count, -flip))
    count, chance = count[chance > _NEGLIGIBLE], chance[chance > _NEGLIGIBLE]
    # Losses b of N flips are significant where b - (N - b) > z sqrt(N).
    most = np.floor((count + _Z * np.sqrt(count)) / 2)
    proven = 1 - bdtr(most, count, lost / flip)
    return float((chance * np.where(most >= count, 0.0, proven)).sum())


def smallest_provable_drop(n: int, back: float = 0.0) -> float | None:
    """The smallest true drop, in points, that n paired samples prove with a probability of 80 %
    where `back` percent of them become right; None where they prove none.

    >>> [round(smallest_provable_drop(797, back), 2) for back in (0, 0.2, 1)]
    [0.69, 1.18, 1.89]
    """
    low, high = 0.0, 100 - 2 * back
    if high <= 0 or power(n, high, back) < POWER:
        return None
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if power(n, middle, back) < POWER else (low, middle)
    return high


def samples_to_tell(value: float, bound: float, deviation: float, at_bound: float) -> int | None:
    """How many samples show with a power of 80 % on which side of `bound` a mean of `value` is, so
    that its 95 % interval excludes the bound; to two digits, rounded up. `deviation` is that of a
    sample's value, `at_bound` what it would be were the mean the bound, all in one unit. None
    where the mean is the bound.

    The normal approximation: Lachin, Controlled Clinical Trials 2 (1981) 93-113, for one sample.

    >>> samples_to_tell(0.0, 1.0, 0.0, math.sqrt(1.0 * 99.0))
    390
    """
    if value == bound:
        return None
    width = _Z * at_bound + _Z_POWER * deviation
    count = (width / (value - bound)) ** 2
    unit = 10 ** max(math.floor(math.log10(count)) - 1, 0) if count > 1 else 1
    return math.ceil(count / unit) * unit
