"""What labels are worth: whether they number the classes as the network does, and show several."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from granplugin.measures.intervals import tango_interval

FEW = 10
"""Below so many samples, one class for all of them says nothing."""
_PER_CLASS = 10
"""The least samples of a class for which a renumbering is not found by chance."""
_GAIN = 5.0
"""Points that another numbering has to win."""
_SURELY = 3.0
"""Standard deviations above chance that this has to be."""


def one_class(labels: np.ndarray) -> str | None:
    """Where all of these labels, (n,), are of one class: so a sentence; else None."""
    if len(labels) < FEW or len(np.unique(labels)) > 1:
        return None
    return (
        f"all {len(labels)} labels are class {labels[0]}: what other classes lose is not seen there"
    )


def by_chance(decisions: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """What share of decisions and labels, (n,) each, would be equal were these drawn in another order,
    so were one's classes as frequent as they are and nothing known of the samples; and how many
    standard deviations their share is above that, 0 where it cannot be above it.

    The number that is equal after a random permutation has the mean S/n and the variance
    (S^2 + n^2 S - n T) / (n^2 (n - 1)), where S is the sum of a_c b_c over classes, T that of
    a_c b_c (a_c + b_c), and a_c and b_c are how often either has class c: the sums, over places and
    over pairs of places, of the probabilities that these are equal.

    >>> share, score = by_chance(np.array([3, 3, 3, 3]), np.array([3, 3, 3, 0]))
    >>> float(share), float(score)
    (0.75, 0.0)
    """
    n = len(labels)
    classes = np.union1d(decisions, labels)
    a, b = ((each[:, None] == classes).sum(0, dtype=np.float64) for each in (decisions, labels))
    s, t = float((a * b).sum()), float((a * b * (a + b)).sum())
    variance = (s * s + n * n * s - n * t) / (n * n * max(n - 1, 1))
    above = float((decisions == labels).sum()) - s / n
    return s / n / n, above / np.sqrt(variance) if variance > 1e-9 else 0.0


def numbered_otherwise(decisions: np.ndarray, labels: np.ndarray, classes: int) -> str | None:
    """Why labels and the network's decisions, (n,) each, do not number the `classes` alike; None
    where they do, or too few samples show it.

    The best numbering is the assignment of labels to decisions that most samples agree with (Kuhn,
    Naval Research Logistics Quarterly 2 (1955) 83-97).

    >>> y = np.arange(60) % 6
    >>> numbered_otherwise(y, (y + 1), 7)
    'with labels one lower top1 is 100.0 %: they count classes from another number, it seems'
    """
    for step, word in ((-1, "lower"), (1, "higher")):
        if _better(decisions, labels + step, labels):
            return (
                f"with labels one {word} top1 is {100 * (decisions == labels + step).mean():.1f} "
                "%: they count classes from another number, it seems"
            )
    known = np.unique(labels)
    if len(known) < 2 or len(labels) < _PER_CLASS * len(known):
        return None
    # One half finds the numbering and the other tells what it is worth; labels may be in an order.
    drawn = np.random.default_rng(0).permutation(len(labels))
    finding, telling = drawn[::2], drawn[1::2]
    table = np.zeros((len(known), classes), np.int64)
    np.add.at(table, (np.searchsorted(known, labels[finding]), decisions[finding]), 1)
    rows, columns = linear_sum_assignment(-table)
    number = dict(zip(known[rows].tolist(), columns.tolist(), strict=True))
    renumbered = np.array([number.get(label, -1) for label in labels[telling].tolist()])
    if not _better(decisions[telling], renumbered, labels[telling]):
        return None
    moved = [f"{label} is {other}" for label, other in number.items() if label != other]
    return (
        f"with classes numbered otherwise (label {', '.join(moved[:3])}"
        f"{', ...' if len(moved) > 3 else ''}) top1 is "
        f"{100 * (decisions[telling] == renumbered).mean():.1f} %: labels and network do not number "
        "them alike, it seems"
    )


def _better(decisions: np.ndarray, other: np.ndarray, labels: np.ndarray) -> bool:
    """Whether labels in another numbering surely win enough, and not because one class is frequent
    among them."""
    hits, now = decisions == other, decisions == labels
    won, lost = int((hits & ~now).sum()), int((now & ~hits).sum())
    gains = tango_interval(won, lost, len(now))[0] > _GAIN
    return gains and by_chance(decisions, other)[1] > _SURELY
