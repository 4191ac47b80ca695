"""What is doubtful about the data that ranges are found on: too little of it, or of another kind
than what the network is measured on.

Two sets of samples are told apart by ranks (Mann and Whitney, Annals of Mathematical Statistics 18
(1947) 50-60): `apart` is the probability that a sample of one has more than a sample of the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from granplugin.data.portrait import Portrait
from granplugin.words import digits, first

FEW = 8
"""Below so many samples of a set, only what is far off says anything."""
_APART = 0.95
_TIMES, _TIMES_OF_FEW = 1.5, 3.0
"""The least ratio of two sets' deviations, or shift in deviations, that is another scale."""
_SAME = 1e-3
"""The share of variance between samples up to which they are one sample with noise."""
_STICKS_OUT = 10.0
"""A sample that reaches so many times as far as the median one decides a maximum alone."""
_RARE = 0.02
_BEYOND = 0.01
_ORDER, _ORDER_FITS, _ORDER_SAMPLES = 6.0, 3.0, 16
"""Standard scores by which colours differ as they are and do not when exchanged."""

_CHANNEL_TIMES, _CHANNEL_APART = 2.0, 0.9
"""How many times as wide, or how many swings off, one channel is of another scale: images of other
things have other colours, but not as far."""

_MEAN, _STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
"""What most networks' images are normalized by, red first (ImageNet's, of torchvision)."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """`said` is a sentence; `breaks` says that no loss that is measured with such ranges can be
    judged."""

    said: str
    breaks: bool


Portraits = Mapping[str, Portrait]


def doubts_of(calibration: Portraits) -> Iterator[Doubt]:
    """What the calibration data themselves give reason to doubt."""
    floats = {name: each for name, each in calibration.items() if not each.whole}
    constant = [name for name, each in floats.items() if each.low == each.high]
    for name in constant:
        yield Doubt(
            f"the calibration data's {name!r} is {floats[name].low:g} everywhere: ranges of such "
            "data say nothing of others",
            True,
        )
    count = max((each.samples for each in calibration.values()), default=0)
    if constant:
        return
    if count == 1:
        yield Doubt("one sample decides all ranges; calibrate on some hundred", True)
    elif count and all(each.varies < _SAME for each in calibration.values()):
        yield Doubt(
            f"the calibration samples are nearly the same ({count} were looked at): they show "
            "ranges as one sample does",
            True,
        )


def doubts_between(calibration: Portraits, other: Portraits, role: str) -> Iterator[Doubt]:
    """What differs between the calibration data and those of another role."""
    for name, ours in calibration.items():
        theirs = other.get(name)
        if theirs is None or (ours.whole and theirs.whole):
            continue
        if theirs.low == theirs.high:
            yield Doubt(f"the {role} data's {name!r} is {theirs.low:g} everywhere", True)
        elif ours.low == ours.high:
            continue
        elif _scaled(ours, theirs):
            yield Doubt(
                f"the calibration data's {name!r} is {_range(ours)} and the {role} data's "
                f"{_range(theirs)}: they are not scaled alike{_hint(ours, theirs)}, so ranges are "
                "of other data",
                True,
            )
        elif _exchanged(ours, theirs):
            yield Doubt(
                f"the colours of the calibration data's {name!r} are those of the {role} data "
                "exchanged: one is RGB and the other BGR, it seems",
                True,
            )
        elif channels := _channels_apart(ours, theirs):
            assert ours.levels is not None
            count = ours.levels.shape[1]
            yield Doubt(
                f"{len(channels)} of {count} channels of the calibration data's {name!r} "
                f"({first([str(at) for at in channels], 5)}) are not scaled as the {role} data's: "
                "ranges are of other data",
                True,
            )
        elif (share := theirs.beyond(float(ours.peaks.max()))) > _BEYOND:
            yield Doubt(
                f"{digits(100 * share)} % of the {role} data's {name!r} lies beyond "
                f"{ours.peaks.max():.4g}, the most that the calibration data show",
                False,
            )


def outlying(calibration: Portraits, others: Sequence[Portraits] = ()) -> Iterator[Doubt]:
    """Samples that decide a maximum alone, and of whose kind the `others` have none."""
    for name, each in calibration.items():
        if each.whole or each.samples < 4:
            continue
        typical = float(np.median(each.peaks))
        out = each.peaks > _STICKS_OUT * typical
        usual = any(
            bool((other[name].peaks > _STICKS_OUT * typical).any())
            for other in others
            if name in other
        )
        if not out.any() or out.sum() > max(1, _RARE * each.samples) or usual or not typical:
            continue
        yield Doubt(
            f"one calibration sample's {name!r} reaches {each.peaks.max():.4g} where the median "
            f"sample's reaches {typical:.4g}: with max it decides ranges alone; leave it out, or take "
            "a percentile",
            False,
        )


def _scaled(ours: Portrait, theirs: Portrait) -> bool:
    few = min(ours.samples, theirs.samples) < FEW
    least = _TIMES_OF_FEW if few else _TIMES
    ratio = theirs.deviation / ours.deviation if ours.deviation else np.inf
    other_scale = not 1 / least < ratio < least
    shift = abs(float(np.median(theirs.means) - np.median(ours.means)))
    moved = shift > (least - 0.5) * max(ours.deviation, theirs.deviation)
    return bool(
        (other_scale and _apart(ours.deviations, theirs.deviations) > _APART)
        or (moved and _apart(ours.means, theirs.means) > _APART)
    )


def _channels_apart(ours: Portrait, theirs: Portrait) -> list[int]:
    """The channels that are of another scale, where there are samples enough to tell."""
    if ours.levels is None or ours.swings is None or theirs.levels is None:
        return []
    if theirs.swings is None or ours.levels.shape[1] != theirs.levels.shape[1]:
        return []
    found = []
    for at in range(ours.levels.shape[1]):
        own, other = ours.levels[:, at], theirs.levels[:, at]
        swings = ours.swings[:, at], theirs.swings[:, at]
        low, high = sorted(float(np.sqrt(np.square(each).mean())) for each in swings)
        shift = abs(float(np.median(own) - np.median(other)))
        wider = high > _CHANNEL_TIMES * low and _told_apart(*swings)
        if wider or (shift > _CHANNEL_TIMES * high and _told_apart(own, other)):
            found.append(at)
    return found


def _exchanged(ours: Portrait, theirs: Portrait) -> bool:
    """Whether the first and the last colour fit only when they are exchanged in one of both."""
    if ours.colours is None or theirs.colours is None:
        return False
    if min(ours.samples, theirs.samples) < _ORDER_SAMPLES:
        return False
    own, other = _red_over_blue(ours.colours), _red_over_blue(theirs.colours)
    if _score(own, other) <= _ORDER:
        return False
    pixels = theirs.colours * _STD + _MEAN
    exchanged = (theirs.colours[:, ::-1], (pixels[:, ::-1] - _MEAN) / _STD)
    return any(_score(own, _red_over_blue(each)) < _ORDER_FITS for each in exchanged)


def _red_over_blue(colours: np.ndarray) -> np.ndarray:
    difference: np.ndarray = colours[:, 0] - colours[:, -1]
    return difference


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    """From 0.5, as good as the same, to 1, all of one above all of the other.

    >>> _apart(np.arange(4.0), np.arange(4.0)), _apart(np.arange(4.0), np.arange(4.0) + 9)
    (0.5, 1.0)
    """
    ordered = np.sort(b)
    below = np.searchsorted(ordered, a, "left") + np.searchsorted(ordered, a, "right")
    share = float(below.mean() / (2 * len(b)))
    return max(share, 1 - share)


def _told_apart(a: np.ndarray, b: np.ndarray) -> bool:
    """Of one channel among many, of which some differ by chance."""
    return _apart(a, b) > _CHANNEL_APART and _score(a, b) > _ORDER


def _score(a: np.ndarray, b: np.ndarray) -> float:
    """How many standard deviations of its own `_apart` is from 0.5."""
    return (_apart(a, b) - 0.5) / np.sqrt((len(a) + len(b) + 1) / (12 * len(a) * len(b)))


def _range(of: Portrait) -> str:
    return f"{of.low:.3g} to {of.high:.3g} (deviation {of.deviation:.3g})"


def _hint(ours: Portrait, theirs: Portrait) -> str:
    raw, other = sorted((ours, theirs), key=lambda each: -each.high)
    if raw.low >= 0 and 64 < raw.high <= 255 and other.high < 32:
        return " (one has pixels of 0 to 255, it seems, and the other has them normalized)"
    if other.low >= 0 and 0.5 < other.high <= 1 and raw.low < 0:
        return " (one has pixels of 0 to 1, it seems, and the other has them normalized)"
    return ""
