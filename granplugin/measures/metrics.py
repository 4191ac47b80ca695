"""How good outputs are: one function and one METRICS entry per metric, on numpy arrays alone.

Outputs and reference are name -> array over all N evaluation samples, first axis N; reference
holds the FP32 outputs. A user's own `evaluate:` function returns the same `Score` values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from granplugin.errors import DataError, ModelError, UserError

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Score:
    """One metric of one variant on one engine.

    `per_sample` has shape (N,): bool where each sample is a hit or a miss (`value` is their
    percentage), otherwise floats in the metric's unit; None where no sample stands alone. Of a
    pooled figure, `pooled` has each sample's signal and noise, (2, N): `value` is of their sums.
    """

    value: float
    per_sample: np.ndarray | None
    higher_is_better: bool = True
    pooled: np.ndarray | None = None


class Measure(Protocol):
    def __call__(
        self, outputs: Outputs, reference: Outputs | None, labels: np.ndarray | None
    ) -> Score: ...


@dataclass(frozen=True)
class Metric:
    """A measure and what a reader must know of it.

    `kind` says how two variants are compared: "proportion" by paired hits and misses, "mean" by
    paired per-sample values, "plain" by the value alone. `guesses` is how many classes a sample may
    name: of so many, it hits by choosing blindly.
    """

    measure: Measure
    unit: str
    needs_labels: bool
    needs_reference: bool
    kind: Literal["proportion", "mean", "plain"]
    guesses: int = 1


def check_labels(labels: np.ndarray, classes: int) -> None:
    """Refuse labels that are not integers in [0, classes); DataError names the first bad one."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"labels are {labels.dtype}; they must be integers, one class per sample")
    bad = np.flatnonzero((labels < 0) | (labels >= classes))
    if bad.size:
        raise DataError(
            f"label {labels.flat[bad[0]]} of sample {bad[0]} is out of range: the model has "
            f"{classes} classes, so labels go from 0 to {classes - 1}"
        )


def check_finite(outputs: Outputs, what: str = "output") -> None:
    """Refuse NaN and Inf; ModelError names the output and its first bad sample."""
    for name, values in outputs.items():
        if not np.issubdtype(values.dtype, np.floating) or np.isfinite(values).all():
            continue
        rows = values.reshape(len(values), -1)
        sample = int(np.argmin(np.isfinite(rows).all(axis=1)))
        word = "NaN" if np.isnan(rows[sample]).any() else "Inf"
        raise ModelError(
            f"{what} '{name}' has {word}, first in sample {sample}; look for a layer whose scale "
            "or input is out of range"
        )


def top1(outputs: Outputs, reference: Outputs | None, labels: np.ndarray | None) -> Score:
    """Percent of samples whose highest score is the label's; of equal scores the first counts."""
    return _hits("top1", outputs, labels, 1)


def top5(outputs: Outputs, reference: Outputs | None, labels: np.ndarray | None) -> Score:
    """Percent of samples whose label is among the 5 highest scores; of equal scores, the first.

    With 5 classes it is 100 by definition; with fewer there is no top 5, a ModelError.
    """
    return _hits("top5", outputs, labels, 5)


def agreement(outputs: Outputs, reference: Outputs | None, labels: np.ndarray | None) -> Score:
    """Percent of decisions (argmax) that equal the reference's; needs no labels.

    Of the first (N, classes) output, else of the first one with a decision per position - classes
    on the last axis of (N, positions, classes), on axis 1 of (N, classes, height, width, ...) -
    where a sample's value is the percentage of its positions; else of the first that is decisions
    already, of integers or booleans.
    """
    _check_pair(outputs, reference)
    assert reference is not None
    name = scores_of(outputs) or scores_of(outputs, positions=True)
    decided = [n for n in outputs if not np.issubdtype(outputs[n].dtype, np.floating)]
    if name is not None:
        axis = 1 if outputs[name].ndim > 3 else -1
        same = outputs[name].argmax(axis) == reference[name].argmax(axis)
    elif decided:
        same = outputs[decided[0]] == reference[decided[0]]
    else:
        raise ModelError(
            f"agreement needs an output with two or more classes, and {_shapes(outputs)}; "
            "take sqnr_db instead"
        )
    if same.ndim == 1:
        return Score(100 * float(same.mean()), same)
    per_sample = 100 * same.reshape(len(same), -1).mean(axis=1)
    return Score(float(per_sample.mean()), per_sample)


def sqnr_db(outputs: Outputs, reference: Outputs | None, labels: np.ndarray | None) -> Score:
    """Signal to quantization noise, 10 log10(sum ref^2 / sum (ref - out)^2), in dB.

    Over all floating outputs together, and per sample; inf where nothing differs. The value
    weighs samples by their energy, so it is not the mean of the per-sample figures.
    """
    _check_pair(outputs, reference)
    names = [name for name in outputs if np.issubdtype(outputs[name].dtype, np.floating)]
    if not names:
        raise ModelError(
            f"sqnr_db needs a floating output, and {_shapes(outputs)}; take agreement instead"
        )
    signal = sum(_energy(reference[name]) for name in names)
    noise = sum(_energy(np.subtract(reference[n], outputs[n], dtype=np.float64)) for n in names)
    value = float(_db(signal.sum(), noise.sum()))
    return Score(value, _db(signal, noise), pooled=np.stack([signal, noise]))


METRICS: dict[str, Metric] = {
    "top1": Metric(top1, "%", True, False, "proportion"),
    "top5": Metric(top5, "%", True, False, "proportion", guesses=5),
    "agreement": Metric(agreement, "%", False, True, "proportion"),
    "sqnr_db": Metric(sqnr_db, "dB", False, True, "mean"),
}


def _hits(metric: str, outputs: Outputs, labels: np.ndarray | None, k: int) -> Score:
    if labels is None:
        raise DataError(f"{metric} needs labels; without them take agreement or sqnr_db")
    name = scores_of(outputs)
    if name is None:
        raise ModelError(
            f"{metric} needs an output of shape (N, classes), two classes or more, and "
            f"{_shapes(outputs)}"
        )
    check_finite({name: outputs[name]})
    scores = outputs[name]
    samples, classes = scores.shape
    if classes < k:
        raise ModelError(f"{metric} needs {k} classes; output '{name}' has {classes}; take top1")
    if labels.shape != (samples,):
        raise DataError(f"labels have shape {labels.shape}; {samples} samples need ({samples},)")
    check_labels(labels, classes)
    _check_not_empty(samples)
    own = scores[np.arange(samples), labels][:, None]
    earlier = np.arange(classes) < labels[:, None]
    hits = ((scores > own) | ((scores == own) & earlier)).sum(axis=1) < k
    return Score(100 * float(hits.mean()), hits)


def scores_of(outputs: Outputs, positions: bool = False) -> str | None:
    """The name of the output with a score per class: the first of shape (N, classes), or of more
    axes where `positions`."""
    for name, values in outputs.items():
        decides = values.ndim > 2 if positions else values.ndim == 2
        axis = 1 if values.ndim > 3 else -1
        if decides and values.shape[axis] > 1 and np.issubdtype(values.dtype, np.floating):
            return name
    return None


def _check_pair(outputs: Outputs, reference: Outputs | None) -> None:
    if reference is None:
        raise UserError("agreement and sqnr_db compare with FP32; add the fp32 baseline")
    for name, values in outputs.items():
        if name not in reference or reference[name].shape != values.shape:
            there = reference[name].shape if name in reference else "none"
            raise ModelError(
                f"output '{name}' has shape {values.shape} where FP32 has {there}; outputs "
                "whose shape depends on the data need an `evaluate` function"
            )
        _check_not_empty(len(values))
    check_finite(reference, "FP32 output")
    check_finite(outputs)


def _check_not_empty(samples: int) -> None:
    if not samples:
        raise DataError("there are no evaluation samples to measure")


def _energy(values: np.ndarray) -> np.ndarray:
    rows = values.reshape(len(values), -1).astype(np.float64, copy=False)
    return np.einsum("ij,ij->i", rows, rows)


def _db(signal: np.ndarray, noise: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(noise == 0, np.inf, 10 * np.log10(signal / noise))


def _shapes(outputs: Outputs) -> str:
    shown = ", ".join(f"'{name}' is {v.dtype} {v.shape}" for name, v in outputs.items())
    return shown or "the model has no output"
