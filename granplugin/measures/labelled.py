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


def one_class(labels: np.ndarray) -> str | None:
    """Where all of these labels, (n,), are of one class: so a sentence; else None."""
    if len(labels) < FEW or len(np.unique(labels)) > 1:
        return None
    return (
        f"all {len(labels)} labels are class {labels[0]}: what other classes lose is not seen there"
    )


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
        if _better(decisions == labels + step, decisions == labels):
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
    if not _better(decisions[telling] == renumbered, decisions[telling] == labels[telling]):
        return None
    moved = [f"{label} is {other}" for label, other in number.items() if label != other]
    return (
        f"with classes numbered otherwise (label {', '.join(moved[:3])}"
        f"{', ...' if len(moved) > 3 else ''}) top1 is "
        f"{100 * (decisions[telling] == renumbered).mean():.1f} %: labels and network do not number "
        "them alike, it seems"
    )


def _better(hits: np.ndarray, now: np.ndarray) -> bool:
    """Whether another numbering surely wins enough."""
    won, lost = int((hits & ~now).sum()), int((now & ~hits).sum())
    return tango_interval(won, lost, len(now))[0] > _GAIN
