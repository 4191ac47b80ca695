"""Two runs' accuracy, sample by sample where both were measured on the same ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from granplugin.backends.engine_plan import EnginePlan
from granplugin.errors import RunError, UserError
from granplugin.measures.intervals import Difference, difference, unpaired_difference
from granplugin.reading import read_json
from granplugin.report.result import Result
from granplugin.report.schema.run import Interval, MetricValue, Report, VariantResult
from granplugin.report.schema.verbs import ComparedRun, CompareRunsOutput, RunFigure
from granplugin.runs.pages import read_report

Samples = Mapping[str, Mapping[str, Any]]
"""Variant/engine -> metric -> its value, and each sample's."""


@dataclass(frozen=True, repr=False)
class RunsCompared(Result):
    """What two runs measured of the variants that both have."""

    found: CompareRunsOutput

    @property
    def named_plans(self) -> tuple[tuple[str, EnginePlan], ...]:
        """None: runs are compared by what they measured."""
        return ()

    def output(self) -> CompareRunsOutput:
        return self.found


def compare_runs(a: Path, b: Path) -> RunsCompared:
    """What the runs in these folders measured. Differences are paired where the samples are the same
    by their hash, else they are of two independent sets. Raises RunError."""
    reports = read_report(a), read_report(b)
    notes: list[str] = []
    samples = _samples(a, notes), _samples(b, notes)
    keys = [report.evaluation_key for report in reports]
    paired = bool(keys[0]) and keys[0] == keys[1]
    engines = [report.main_engine[0].engine for report in reports]
    if engines[0] != engines[1]:
        notes.append("the figures are of two engines, which differ by themselves")
    machines = [(report.machine.processor, report.machine.packages) for report in reports]
    if machines[0] != machines[1]:
        notes.append("the runs are of two machines or of other versions of libraries")
    if any(engine.latency for report in reports for engine in report.main_engine):
        notes.append(
            "latencies are not compared: they were not measured in turns; put both recipes into one "
            "apply for that"
        )
    figures = [
        each
        for name, first, second in _both(reports[0], reports[1])
        for each in _figures(name, first, second, samples, paired)
    ]
    if any(each.unit == "dB" for each in figures):
        notes.append(
            "differences in dB are of the samples' own figures, A and B of all their signal"
        )
    if not figures:
        notes.append("no variant of A is one of B, or none has a metric that both measured")
    ran = [
        ComparedRun(run=str(path), created=report.created, engine=engine,
                    samples=report.evaluation_samples)
        for path, report, engine in zip((a, b), reports, engines, strict=True)
    ]  # fmt: skip
    return RunsCompared(
        CompareRunsOutput(a=ran[0], b=ran[1], paired=paired, figures=figures, notes=notes)
    )


def _samples(folder: Path, notes: list[str]) -> Samples:
    path = folder / "measurements.json"
    try:
        document = read_json(path, RunError)
    except UserError as err:
        notes.append(f"{err}; without samples' figures no difference is known")
        return {}
    if isinstance(document, dict):
        return document
    notes.append(f"{path}: is no object; without samples' figures no difference is known")
    return {}


def _both(a: Report, b: Report) -> Iterator[tuple[str, VariantResult, VariantResult]]:
    """Variants of one name; and the recipes, whatever they are called."""
    others = {variant.name: variant for variant in b.variants}
    for variant in a.variants:
        if variant.name in others:
            yield variant.name, variant, others[variant.name]
    recipes = [[v for v in report.variants if v.kind == "recipe"] for report in (a, b)]
    if [len(each) for each in recipes] == [1, 1] and recipes[0][0].name != recipes[1][0].name:
        yield f"{recipes[0][0].name} | {recipes[1][0].name}", recipes[0][0], recipes[1][0]


def _figures(
    name: str, a: VariantResult, b: VariantResult, samples: tuple[Samples, Samples], paired: bool
) -> Iterator[RunFigure]:
    first, second = a.main_engine, b.main_engine
    for metric, value in first.metrics.items():
        other = second.metrics.get(metric)
        if other is None:
            continue
        kept = [
            _of_samples(of.get(f"{variant.name}/{engine.engine}"), metric, figure)
            for of, variant, engine, figure in zip(
                samples, (a, b), (first, second), (value, other), strict=True
            )
        ]
        yield RunFigure(
            variant=name,
            metric=metric,
            unit=value.unit,
            a=value.value,
            b=other.value,
            difference=_difference(kept[1], kept[0], value, paired),
        )


def _of_samples(of: Any, metric: str, figure: MetricValue) -> np.ndarray | None:
    """Each sample's figure: hits and misses where the metric is their share."""
    kept = of.get(metric) if isinstance(of, dict) else None
    values = kept.get("per_sample") if isinstance(kept, dict) else None
    if not isinstance(values, list) or not values:
        return None
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        return None
    hits = figure.unit == "%" and bool(np.isin(array, (0, 1)).all())
    return array.astype(bool) if hits else array


def _difference(
    b: np.ndarray | None, a: np.ndarray | None, of: MetricValue, paired: bool
) -> Interval | None:
    if a is None or b is None or a.ndim != 1 or b.ndim != 1:
        return None
    better = not of.lower_is_better
    found: Difference = (
        difference(b, a, of.unit, better)
        if paired and a.shape == b.shape
        else unpaired_difference(b, a, of.unit, better)
    )
    return Interval(**vars(found))
