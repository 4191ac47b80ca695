"""What rounding does to the network's output: one layer alone, all but one, or any choice.

Every figure is a row of sums over samples (granplugin.analysis.passes adds them up).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import log_softmax, stdtrit

from granplugin.analysis.figures import SUMS, Sqnr, sqnr, sums
from granplugin.analysis.tried import Choice, Pair, RoundedNetwork
from granplugin.errors import ModelError
from granplugin.measures.intervals import lost_interval, proportion_interval, tango_interval
from granplugin.measures.metrics import METRICS, Classes, class_scores
from granplugin.store.keys import content_key

_PARTS = (
    "kl", "kl2", "agree", "agree2", "decided", "whole", "classes", "hits", "fp32_hits", "gained",
    "lost",
)  # fmt: skip
"""Sums over samples; `decided` counts those whose outputs have classes, `whole` those that are one
decision, not one per position; `classes` is how many each chooses from; `hits` is NaN without
labels."""


_MANY = 10**12
"""A population of which any number of samples is a small part."""


MeasuredBy = Literal["metric", "decisions", "outputs"]


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over samples with its 95 % interval."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Effect:
    """A network's outputs against those of FP32. `kl` is in nats, `agreement` and `metric` in
    percent, `loss` in points of what `measured_by` says; None where outputs have no classes, or
    data no labels."""

    sqnr: Sqnr
    kl: Mean | None
    agreement: Mean | None
    metric: Mean | None
    fp32_metric: Mean | None
    loss: Mean
    measured_by: MeasuredBy
    deviation: float
    """Of one sample's loss, in points; NaN where that is not known."""
    classes: int = 0
    """That a decision chooses from."""

    @property
    def db(self) -> float:
        """The outputs' SQNR; where FP32's are all 0, there is no effect."""
        return math.inf if self.sqnr.db is None else self.sqnr.db


def effect(figure: np.ndarray, by_labels: bool = True, population: int | None = None) -> Effect:
    """The effect that these sums are of; without `by_labels` as if there were no labels. The SQNR
    has an interval where `population` has more samples than were measured. Raises ModelError where
    FP32's outputs are all 0."""
    said = dict(zip(_PARTS, figure[SUMS:].tolist(), strict=True))
    n = round(float(figure[0]))
    found = sqnr(figure, n if population is None else population)
    if found.db is None:
        raise ModelError("FP32's outputs are all 0 on the analysis data: nothing can be compared")
    if said["decided"] == 0:
        error, deviation = _relative_error(figure)
        return Effect(found, None, None, None, None, error, "outputs", deviation)
    kl = _mean(said["kl"], said["kl2"], n)
    agreement = _mean(said["agree"], said["agree2"], n)
    share = agreement.value / 100
    deviation = 100 * math.sqrt(share * (1 - share))
    if not said["whole"]:
        deviation = math.sqrt(max(said["agree2"] / n - agreement.value**2, 0.0))
    # Where all decisions agree, their spread says nothing, and their number does.
    if said["whole"] or agreement.value == 100:
        agreement = _proportion(said["agree"] / 100, n)
    classes = round(said["classes"] / said["decided"])
    if not (by_labels and said["hits"] >= 0):
        upper = None if agreement.low is None else 100 - agreement.low
        lower = None if agreement.high is None else 100 - agreement.high
        if said["whole"]:
            lower, upper = lost_interval(n - round(said["agree"] / 100), n)
        loss = Mean(100 - agreement.value, lower, upper)
        return Effect(found, kl, agreement, None, None, loss, "decisions", deviation, classes)
    low, high = tango_interval(round(said["lost"]), round(said["gained"]), n)
    loss = Mean(100 * (said["lost"] - said["gained"]) / n, low, high)
    metric, fp32 = _proportion(said["hits"], n), _proportion(said["fp32_hits"], n)
    flips = (said["lost"] + said["gained"]) / n
    deviation = 100 * math.sqrt(max(flips - (loss.value / 100) ** 2, 0.0))
    return Effect(found, kl, agreement, metric, fp32, loss, "metric", deviation, classes)


@dataclass(frozen=True, eq=False)
class Wanted:
    """Figures by name: of whole `choices`, of one layer `alone` with a pair of settings, and of the
    recipe's own choice with one layer `restored` to float. `metric` is one of METRICS that takes
    labels, or None; `classes` says where decisions are read."""

    network: RoundedNetwork
    choices: Mapping[str, Choice]
    alone: Mapping[str, tuple[str, Pair]]
    restored: Mapping[str, str]
    metric: str | None
    classes: Classes | None = None


def check_whole(outputs: Mapping[str, np.ndarray], what: str) -> None:
    """Raises ModelError where a rounded network's output is not finite."""
    if not all(np.isfinite(output).all() for output in outputs.values()):
        raise ModelError(
            f"with {what} the network's output holds NaN or Inf, and fp32's does not; "
            "leave float what it divides by"
        )


def compare(
    reference: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
    metric: str | None,
    classes: Classes | None = None,
) -> np.ndarray:
    """The sums of one batch: SUMS of signal and error of all floating outputs, then _PARTS.

    KL(P || Q) = sum p (log p - log q) of the softmax of the class scores (Kullback and Leibler
    1951), per sample, or per position and then the sample's mean.
    """
    floats = [name for name in reference if np.issubdtype(reference[name].dtype, np.floating)]
    if not floats:
        raise ModelError("the model has no floating output to compare with FP32's")
    signal = np.sum([_energy(reference[name]) for name in floats], axis=0)
    noises = [np.subtract(reference[name], outputs[name], dtype=np.float64) for name in floats]
    error = np.sum([_energy(noise) for noise in noises], axis=0)
    part = dict.fromkeys(_PARTS, 0.0)

    def per_sample(metric: str, outs: Mapping[str, np.ndarray]) -> np.ndarray:
        found = METRICS[metric].measure(outs, reference, labels, classes).per_sample
        assert found is not None, f"{metric} is of samples"
        return found

    if decides := class_scores(reference, classes):
        name, axis = decides
        p: np.ndarray = log_softmax(reference[name].astype(np.float64), axis=axis)
        q: np.ndarray = log_softmax(outputs[name].astype(np.float64), axis=axis)
        kl = (np.exp(p) * (p - q)).sum(axis).reshape(len(p), -1).mean(1)
        same = per_sample("agreement", outputs)
        whole = same.dtype == np.bool_
        agree = 100.0 * same if whole else same.astype(np.float64)
        part |= {
            "kl": kl.sum(),
            "kl2": (kl * kl).sum(),
            "agree": agree.sum(),
            "agree2": (agree * agree).sum(),
            "decided": len(agree),
            "whole": len(agree) if whole else 0,
            "classes": len(agree) * reference[name].shape[axis],
        }
    part["hits"] = math.nan
    if metric is not None and labels is not None:
        hits, fp32 = per_sample(metric, outputs), per_sample(metric, reference)
        part |= {
            "hits": hits.sum(),
            "fp32_hits": fp32.sum(),
            "gained": (hits & ~fp32).sum(),
            "lost": (fp32 & ~hits).sum(),
        }
    return np.concatenate([sums(signal, error), [float(part[key]) for key in _PARTS]])


def choice_name(network: RoundedNetwork, choice: Choice) -> str:
    """What a choice's figure is kept as."""
    return f"choice|{content_key(network.names(choice))}"


def alone_name(network: RoundedNetwork, layer: str, pair: Pair) -> str:
    return f"alone|{content_key(network.names({layer: pair}))}"


def restored_name(network: RoundedNetwork, layer: str) -> str:
    return f"restored|{layer}|{content_key(network.names(network.start()))}"


def _energy(values: np.ndarray) -> np.ndarray:
    rows = values.reshape(len(values), -1).astype(np.float64, copy=False)
    return np.einsum("ij,ij->i", rows, rows)


def _relative_error(figure: np.ndarray) -> tuple[Mean, float]:
    """In percent, and the deviation that its interval is of. Of any number of samples like these:
    the output's SQNR on them is exact, what it would be on others is not."""
    found = sqnr(figure, _MANY)
    value = 100 * (found.relative_error or 0.0)
    if found.db == math.inf:
        return Mean(value, value, value), 0.0
    if found.low is None or found.high is None:
        return Mean(value, None, None), math.nan
    low, high = (100 * 10 ** (-db / 20) for db in (found.high, found.low))
    n = round(float(figure[0]))
    return Mean(value, low, high), (high - low) / 2 / float(stdtrit(n - 2, 0.975)) * math.sqrt(n)


def _mean(total: float, squares: float, n: int) -> Mean:
    value = total / n
    if n < 2:
        return Mean(value, None, None)
    variance = max(squares / n - value * value, 0) * n / (n - 1)
    half = float(stdtrit(n - 1, 0.975)) * math.sqrt(variance / n)
    return Mean(value, value - half, value + half)


def _proportion(successes: float, n: int) -> Mean:
    return Mean(100 * successes / n, *proportion_interval(round(successes), n))
