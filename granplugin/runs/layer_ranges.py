"""What a page shows of each layer's channels and input: from the float ONNX and the statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from granplugin.calibration.statistics import Statistics
from granplugin.graph.edit.fold import weights_of
from granplugin.graph.files import load_float
from granplugin.network.weight_facts import WeightFacts, weight_facts
from granplugin.planning.rows import Row
from granplugin.quant.calibrators import BINS, EDGES
from granplugin.quant.layers import Layer
from granplugin.report.schema.page import MOST_CHANNELS, Histogram, LayerRanges

_MERGED = 64
"""Bins of a histogram that are one bar: a quarter of an octave."""


def facts_of_file(
    floats: Path, layers: Sequence[Layer], rows: Iterable[Row]
) -> dict[str, WeightFacts]:
    """The facts of the weights in a marked float model, each with its batch norm folded in and
    without."""
    model = load_float(floats)
    found = {row.layer: row for row in rows if row.operand == "weight"}
    kept = weights_of(model, [replace(row, bn=None, bn_name=None) for row in found.values()])
    foldable = [replace(row, bn="fold") for row in found.values() if row.bn_name]
    folded = weights_of(model, foldable) if foldable else {}
    groups = {layer.name: layer.groups for layer in layers}
    return {
        name: weight_facts(
            weight, folded.get(name), found[name].at.channel_axis or 0, groups.get(name, 1)
        )
        for name, weight in kept.items()
    }


def layer_ranges(
    facts: Mapping[str, WeightFacts],
    statistics: Statistics | None,
    clips: Mapping[str, Mapping[str, float]],
) -> list[LayerRanges]:
    """Of every layer with a weight or an input that was observed; `clips` says of an input, by its
    site, how it was calibrated and to which largest amax."""
    inputs = _histograms(statistics)
    names = dict.fromkeys([*facts, *(site.removesuffix(".input") for site in inputs)])
    return [_ranges(name, facts.get(name), inputs, clips) for name in names]


def _ranges(
    name: str,
    facts: WeightFacts | None,
    inputs: Mapping[str, Histogram],
    clips: Mapping[str, Mapping[str, float]],
) -> LayerRanges:
    site = f"{name}.input"
    before: list[float] = []
    after: list[float] | None = None
    group = 1
    if facts is not None:
        before, group = _grouped(facts.ranges_before)
        if not np.array_equal(facts.ranges_before, facts.ranges_after):
            after, _ = _grouped(facts.ranges_after)
    return LayerRanges(
        layer=name,
        before=before,
        after=after,
        group=group,
        input=inputs.get(site),
        clips={how: _short(amax) for how, amax in clips.get(site, {}).items()},
    )


def _grouped(ranges: np.ndarray) -> tuple[list[float], int]:
    """At most MOST_CHANNELS figures, each the largest of so many channels."""
    group = -(-len(ranges) // MOST_CHANNELS)
    starts = range(0, len(ranges), group)
    return [_short(ranges[at : at + group].max()) for at in starts], group


def _histograms(statistics: Statistics | None) -> dict[str, Histogram]:
    """By site, over all its scales; bars of a quarter of an octave where anything was seen."""
    found: dict[str, Histogram] = {}
    for need, counts in statistics.counts.items() if statistics else ():
        if need.site.endswith(".input") and need.site not in found:
            bars = counts.reshape(-1, BINS).sum(0).reshape(-1, _MERGED).sum(1)
            seen = np.flatnonzero(bars)
            if len(seen):
                first, last = int(seen[0]), int(seen[-1]) + 1
                found[need.site] = Histogram(
                    edges=[_short(EDGES[at * _MERGED]) for at in range(first, last + 1)],
                    counts=bars[first:last].tolist(),
                )
    return found


def _short(value: float) -> float:
    """Four digits, which is all that a chart shows."""
    return float(f"{float(value):.4g}")
