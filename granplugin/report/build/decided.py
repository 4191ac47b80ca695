"""What metrics of a run are of: whose decisions, and which outputs they leave out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from granplugin.measures.metrics import METRICS, class_scores, unserved
from granplugin.recipe.schema import Recipe
from granplugin.results.values import Measured


def decided(recipe: Recipe, results: Iterable[Measured]) -> Iterator[str]:
    """A sentence for each metric that was left out, for decisions that are read without labels, and
    for outputs that no SQNR is of."""
    outputs = next((result.outputs for result in results if result.outputs), None)
    if outputs is None:
        return
    for metric in recipe.metrics:
        if reason := unserved(metric, outputs, recipe.classes):
            yield f"{metric} was left out: {reason}"
    scores = class_scores(outputs, recipe.classes)
    labelled = any(METRICS[metric].needs_labels for metric in recipe.metrics)
    if scores and "agreement" in recipe.metrics and recipe.classes is None and not labelled:
        name, axis = scores
        yield (
            f"agreement takes the largest of the {outputs[name].shape[axis]} values of '{name}' for "
            "its decision; where these are no scores of classes, measure sqnr_db alone"
        )
    elif not scores and "agreement" in recipe.metrics and not unserved("agreement", outputs):
        yield "agreement is of an output that is not floating: its values are taken for decisions"
    whole = [name for name in outputs if not np.issubdtype(outputs[name].dtype, np.floating)]
    if whole and "sqnr_db" in recipe.metrics:
        listed = ", ".join(f"'{name}' ({outputs[name].dtype})" for name in whole)
        yield f"sqnr_db is of floating outputs, so not of {listed}"
