"""Whether FP32 is worth comparing with: a network that guesses loses nothing by quantization."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from granplugin.measures.intervals import proportion_interval
from granplugin.measures.labelled import FEW, by_chance, numbered_otherwise, one_class
from granplugin.measures.metrics import METRICS, class_scores
from granplugin.recipe.model import CallableModel
from granplugin.recipe.schema import Recipe
from granplugin.results.values import Measured

_ABOVE_CHANCE = 2.0
"""Standard deviations."""


def broken_baseline(
    recipe: Recipe, measured: Iterable[Measured], labels: np.ndarray | None
) -> str | None:
    """Why FP32, which came to `measured` on engines, is no baseline: it cannot be told from chance,
    puts all samples in one class, or the labels, (n,), do not say what it should; None where it is
    one, or where it does not tell classes: no metric takes an output for decisions."""
    for result in measured:
        if not recipe.classes and not any(
            m in METRICS and METRICS[m].decides for m in result.values
        ):
            continue
        decides = class_scores(result.outputs, recipe.classes)
        if decides is None or result.outputs[decides[0]].ndim > 2:
            continue
        name, _ = decides
        labelled = _labelled(result, name, labels)
        why = _guesses(result, name, labels) or (None if labelled else _one_class(result, name))
        if why and not labelled:
            return f"{why}; {_look_at(recipe)}"
        told = "; ".join(filter(None, (why, labelled)))
        return f"{told}; no loss can be judged against it" if told else None
    return None


def _guesses(result: Measured, name: str, labels: np.ndarray | None) -> str | None:
    top1 = result.values.get("top1")
    if top1 is None or top1.per_sample is None:
        return None
    classes = result.outputs[name].shape[1]
    low, high = proportion_interval(int(top1.per_sample.sum()), top1.per_sample.size)
    said = f"fp32's top1 of {top1.value:.2f} % [{low:.2f}, {high:.2f}] cannot be told from chance"
    if low <= 100 / classes:
        return f"{said} ({100 / classes:.2f} % of {classes} classes)"
    if labels is None or len(labels) != top1.per_sample.size or len(labels) < FEW:
        return None
    if len(np.unique(labels)) == 1:
        return None  # which is told of the labels
    share, score = by_chance(result.outputs[name].argmax(axis=1), labels)
    if score > _ABOVE_CHANCE:
        return None
    frequent = f"{100 * share:.2f} % where labels and choices are as frequent as these"
    return f"{said} ({frequent})"


def _labelled(result: Measured, name: str, labels: np.ndarray | None) -> str | None:
    scores = result.outputs[name]
    if labels is None or "top1" not in result.values or len(labels) != len(scores):
        return None
    return one_class(labels) or numbered_otherwise(scores.argmax(axis=1), labels, scores.shape[1])


def _one_class(result: Measured, name: str) -> str | None:
    chosen = np.unique(result.outputs[name].argmax(axis=1))
    top1 = result.values.get("top1")
    right = top1 is not None and top1.value == 100
    if len(chosen) > 1 or len(result.outputs[name]) < FEW or right:
        return None
    return f"fp32 puts all {len(result.outputs[name])} samples in class {chosen[0]}"


def _look_at(recipe: Recipe) -> str:
    causes = ["how the inputs are scaled and normalized", "the labels"]
    if isinstance(recipe.model, CallableModel) and recipe.model.weights is None:
        causes.insert(0, "the weights (the recipe has no model.weights)")
    return f"look at {', '.join(causes[:-1])} and {causes[-1]}; no loss can be judged against it"
