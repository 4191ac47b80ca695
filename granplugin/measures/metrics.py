"""How good outputs are: one function and one METRICS entry per metric, on numpy arrays alone.

Outputs and reference are name -> array over all N evaluation samples, first axis N; reference
holds the FP32 outputs. A user's own `evaluate:` function returns the same `Score` values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from granplugin.errors import DataError, ModelError, UserError
from granplugin.measures.samples import present, present_or_zero

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Score:
    """One metric of one variant on one engine.

    `per_sample` has shape (N,): bool where each sample is a hit or a miss (`value` is their
    percentage), otherwise floats in the metric's unit; None where no sample stands alone. Of a
    pooled figure, `pooled` has each sample's signal and noise, (2, N): `value` is of their sums.
    `of_outputs` has the figure of each output by itself, where it is of several.
    """

    value: float
    per_sample: np.ndarray | None
    higher_is_better: bool = True
    pooled: np.ndarray | None = None
    of_outputs: Mapping[str, float] = field(default_factory=dict)


class Classes(Protocol):
    """Which output has a score for each class, and along which axis; None: what can be told."""

    @property
    def output(self) -> str | None: ...
    @property
    def axis(self) -> int | None: ...


class Measure(Protocol):
    def __call__(
        self,
        outputs: Outputs,
        reference: Outputs | None,
        labels: np.ndarray | None,
        classes: Classes | None = None,
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

    @property
    def decides(self) -> bool:
        """Whether it is of decisions between classes."""
        return self.kind == "proportion"


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
        if not np.issubdtype(values.dtype, np.floating):
            continue
        values = present_or_zero(values)
        if np.isfinite(values).all():
            continue
        rows = values.reshape(len(values), -1)
        sample = int(np.argmin(np.isfinite(rows).all(axis=1)))
        word = "NaN" if np.isnan(rows[sample]).any() else "Inf"
        raise ModelError(
            f"{what} '{name}' has {word}, first in sample {sample}; look for a layer whose scale "
            "or input is out of range"
        )


def top1(
    outputs: Outputs,
    reference: Outputs | None,
    labels: np.ndarray | None,
    classes: Classes | None = None,
) -> Score:
    """Percent of samples whose highest score is the label's; of equal scores the first counts."""
    return _hits("top1", outputs, labels, 1, classes)


def top5(
    outputs: Outputs,
    reference: Outputs | None,
    labels: np.ndarray | None,
    classes: Classes | None = None,
) -> Score:
    """Percent of samples whose label is among the 5 highest scores; of equal scores, the first.

    With 5 classes it is 100 by definition; with fewer there is no top 5, a ModelError.
    """
    return _hits("top5", outputs, labels, 5, classes)


def agreement(
    outputs: Outputs,
    reference: Outputs | None,
    labels: np.ndarray | None,
    classes: Classes | None = None,
) -> Score:
    """Percent of decisions (argmax over the classes) that equal the reference's; needs no labels.

    Where an output decides at each of many positions, as (N, classes, height, width) does, a
    sample's value is the percentage of its positions. An output of integers or booleans is
    decisions already: the first, where no output has scores. Raises ModelError where it is not
    known which output and axis has the classes (`class_scores`).
    """
    reference = _check_pair(outputs, reference)
    decided = _decided(outputs, classes)
    if decided is not None:
        same, there = outputs[decided] == reference[decided], present(reference[decided])
    else:
        name, axis = _decides("agreement", outputs, classes)
        same = _chosen(outputs[name], axis) == _chosen(reference[name], axis)
        there = np.asarray(present(reference[name]).any(axis))
    if same.ndim == 1:
        return Score(100 * float(same.mean()), same)
    same, there = (each.reshape(len(same), -1) for each in (same, there))
    per_sample = 100 * (same & there).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    return Score(float(per_sample.mean()), per_sample)


def sqnr_db(
    outputs: Outputs,
    reference: Outputs | None,
    labels: np.ndarray | None,
    classes: Classes | None = None,
) -> Score:
    """Signal to quantization noise, 10 log10(sum ref^2 / sum (ref - out)^2), in dB.

    Over all floating outputs together, and per sample, and of each of several outputs; inf where
    nothing differs. The value weighs samples and outputs by their energy, so it is not the mean of
    their own figures: a loud output hides what a quiet one lost.
    """
    reference = _check_pair(outputs, reference)
    names = [name for name in outputs if np.issubdtype(outputs[name].dtype, np.floating)]
    if not names:
        raise ModelError(
            f"sqnr_db needs a floating output, and {_shapes(outputs)}; take agreement instead"
        )
    pairs = {
        name: (present_or_zero(reference[name]), present_or_zero(outputs[name])) for name in names
    }
    signals = {name: _energy(wanted) for name, (wanted, _) in pairs.items()}
    noises = {
        name: _energy(np.subtract(wanted, found, dtype=np.float64))
        for name, (wanted, found) in pairs.items()
    }
    of_outputs = {name: float(_db(signals[name].sum(), noises[name].sum())) for name in names}
    signal, noise = (np.sum(list(each.values()), axis=0) for each in (signals, noises))
    return Score(
        float(_db(signal.sum(), noise.sum())),
        _db(signal, noise),
        pooled=np.stack([signal, noise]),
        of_outputs=of_outputs if len(names) > 1 else {},
    )


METRICS: dict[str, Metric] = {
    "top1": Metric(top1, "%", True, False, "proportion"),
    "top5": Metric(top5, "%", True, False, "proportion", guesses=5),
    "agreement": Metric(agreement, "%", False, True, "proportion"),
    "sqnr_db": Metric(sqnr_db, "dB", False, True, "mean"),
}


def _hits(
    metric: str, outputs: Outputs, labels: np.ndarray | None, k: int, of: Classes | None
) -> Score:
    if labels is None:
        raise DataError(f"{metric} needs labels; without them take agreement or sqnr_db")
    name, _ = _decides(metric, outputs, of)
    if outputs[name].ndim > 2:
        raise ModelError(
            f"{metric} needs one decision for each sample, and '{name}' has shape "
            f"{outputs[name].shape}; take agreement, or an `evaluate` function"
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


def class_scores(outputs: Outputs, classes: Classes | None = None) -> tuple[str, int] | None:
    """The name of the output with a score for each class, and its axis of classes: as `classes`
    says, or else the only floating one of shape (N, classes), two or more; None where neither is.
    """
    scores = _scores(outputs, classes)
    return None if isinstance(scores, str) else scores


def unserved(metric: str, outputs: Outputs, classes: Classes | None = None) -> str | None:
    """Why these outputs have nothing that the metric measures, with the way out; None: they do."""
    if not METRICS[metric].decides:
        floats = any(np.issubdtype(values.dtype, np.floating) for values in outputs.values())
        return None if floats else f"{metric} needs a floating output, and {_shapes(outputs)}"
    scores = _scores(outputs, classes)
    whole = metric == "agreement" and _decided(outputs, classes) is not None
    return None if whole or not isinstance(scores, str) else f"{metric} {scores}"


def _decides(metric: str, outputs: Outputs, classes: Classes | None) -> tuple[str, int]:
    scores = _scores(outputs, classes)
    if isinstance(scores, str):
        raise ModelError(f"{metric} {scores}")
    return scores


_NAME_THEM = "write classes: {output: NAME, axis: N}, or take sqnr_db or an `evaluate` function"


def _scores(outputs: Outputs, classes: Classes | None) -> tuple[str, int] | str:
    """The output and the axis of its classes, or why they are not known, with the way out."""
    name, axis = (classes.output, classes.axis) if classes else (None, None)
    if name is None:
        found = [
            each
            for each, values in outputs.items()
            if np.issubdtype(values.dtype, np.floating) and _may_decide(values, axis)
        ]
        if len(found) != 1:
            which = (
                "which output and axis has the classes" if not found else "which has the classes"
            )
            return f"cannot know {which}: {_shapes(outputs)}; {_NAME_THEM}"
        (name,) = found
    if name not in outputs:
        return f"needs the scores of output '{name}', and {_shapes(outputs)}"
    values = outputs[name]
    if not np.issubdtype(values.dtype, np.floating):
        return f"needs scores, and '{name}' is {values.dtype}"
    if axis is None and values.ndim != 2:
        return f"cannot know which axis has the classes: {_shapes({name: values})}; {_NAME_THEM}"
    axis = 1 if axis is None else axis
    if not (-values.ndim < axis < values.ndim and axis) or values.shape[axis] < 2:
        return f"needs two classes or more, and axis {axis} of '{name}', {values.shape}, has none"
    return name, axis % values.ndim


def _may_decide(values: np.ndarray, axis: int | None) -> bool:
    if axis is None:
        return values.ndim == 2 and values.shape[1] > 1
    return -values.ndim < axis < values.ndim


def _decided(outputs: Outputs, classes: Classes | None) -> str | None:
    """The output that is decisions already; None where another may have scores, or none is."""
    whole = [name for name in outputs if not np.issubdtype(outputs[name].dtype, np.floating)]
    if classes:
        return classes.output if classes.output in whole else None
    floats = [values for name, values in outputs.items() if name not in whole]
    return next(iter(whole), None) if not any(_may_decide(x, None) for x in floats) else None


def _check_pair(outputs: Outputs, reference: Outputs | None) -> Outputs:
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
    return reference


def _chosen(scores: np.ndarray, axis: int) -> np.ndarray:
    there = present(scores)
    return (scores if there.all() else np.where(there, scores, -np.inf)).argmax(axis)


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
