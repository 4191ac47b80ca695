"""A run in an MLflow store: a run of its own for the whole, and one below it for each variant."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from granplugin.errors import RunError
from granplugin.report.schema.run import EngineResult, Report, VariantResult
from granplugin.translate import one_line

_FILES = ("report.html", "report.md", "report.json", "plan.json", "measurements.json")
"""Of the run folder, where they are there."""
_NO_KEY = re.compile(r"[^\w\-. /]")
_LONGEST = 500
"""Of a parameter's text, in every version of MLflow's stores."""


@dataclass(frozen=True)
class Store:
    """An MLflow store that has answered: where, its client, and the experiment's id."""

    uri: str
    client: Any
    experiment: str

    def track(self, report: Report, folder: Path, exit_code: int) -> str:
        """Enter a finished run; the id that MLflow gives it. Raises RunError where the store does
        not take it; the run's own folder stays as it is."""
        with _errors(f"{self.uri}: the run is complete in {folder}, but not entered"):
            whole = self._run(report.name, _of_run(report), {}, _tags(report, exit_code), None)
            for file in [*(folder / name for name in _FILES), *map(Path, report.recipes)]:
                if file.is_file():
                    self.client.log_artifact(whole, str(file))
            for variant in report.variants:
                metrics = dict(_metrics(variant))
                tags = {
                    f"limit.{each.limit}": f"{each.verdict}: {each.why}"
                    for each in report.limits
                    if each.variant == variant.name
                }
                own = self._run(variant.name, _of_variant(variant), metrics, tags, whole)
                if (folder / variant.onnx).is_file():
                    self.client.log_artifact(own, str(folder / variant.onnx))
                self.client.set_terminated(own)
            self.client.set_terminated(whole)
        return whole

    def _run(
        self,
        name: str,
        parameters: dict[str, object],
        metrics: dict[str, float],
        tags: dict[str, str],
        parent: str | None,
    ) -> str:
        """A run with all its figures; its id."""
        entities = import_module("mlflow.entities")
        below = {"mlflow.parentRunId": parent} if parent else {}
        made = self.client.create_run(self.experiment, tags=tags | below, run_name=name)
        now = int(time.time() * 1000)
        self.client.log_batch(
            made.info.run_id,
            metrics=[entities.Metric(key, value, now, 0) for key, value in metrics.items()],
            params=[
                entities.Param(key, str(value)[:_LONGEST]) for key, value in parameters.items()
            ],
        )
        return str(made.info.run_id)


def open_store(uri: str, name: str) -> Store:
    """The store, with an experiment of this name, so that one that is not there is told before the
    work. Raises RunError where mlflow is not installed, or the store does not answer."""
    if find_spec("mlflow") is None:
        raise RunError('--mlflow: mlflow is not installed; pip install "granplugin[mlflow]"')
    # By default it tries for four minutes; whoever wants that sets it.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    with _errors(f"--mlflow {uri}"):
        # Of its registry of models nothing is asked, and it need not know this kind of store.
        client = import_module("mlflow").MlflowClient(tracking_uri=uri, registry_uri="file:nowhere")
        experiment = client.get_experiment_by_name(name)
        return Store(
            uri, client, experiment.experiment_id if experiment else client.create_experiment(name)
        )


@contextmanager
def _errors(said: str) -> Iterator[None]:
    """Whatever MLflow, its store and the network to it raise, as RunError."""
    try:
        yield
    except Exception as err:
        raise RunError(f"{said}: {one_line(err)}") from err


def _of_run(report: Report) -> dict[str, object]:
    return {
        "defaults": report.defaults,
        "calibration_samples": report.calibration_samples,
        "evaluation_samples": report.evaluation_samples,
        "batch_size": report.batch_size,
        "processor": report.machine.processor,
        **{f"version.{name}": version for name, version in report.machine.packages.items()},
    }


def _tags(report: Report, exit_code: int) -> dict[str, str]:
    return {
        "granplugin": report.granplugin,
        "granplugin.exit_code": str(exit_code),
        "granplugin.recipes": ", ".join(report.recipes),
        **({"granplugin.broken_baseline": b} if (b := report.broken_baseline) else {}),
    }


def _of_variant(variant: VariantResult) -> dict[str, object]:
    return {
        "kind": variant.kind,
        "recipe": variant.recipe or "",
        "plan_key": variant.plan_key,
        "precision": variant.precision,
        "quantized_sites": variant.quantized_sites,
        "scales": variant.scales,
        "folded": variant.folded,
    }


def _metrics(variant: VariantResult) -> Iterator[tuple[str, float]]:
    """Names that MLflow takes, the engine's first; figures that are not finite are left out."""
    yield "onnx_mb", variant.onnx_bytes / 1e6
    for engine in variant.engines:
        for name, value in _of_engine(engine):
            if value is not None and math.isfinite(value):
                yield _NO_KEY.sub("-", f"{engine.engine}/{name}"), float(value)


def _of_engine(engine: EngineResult) -> Iterator[tuple[str, float | None]]:
    for name, metric in engine.metrics.items():
        yield name, metric.value
        yield from ((f"{name}.low", metric.low), (f"{name}.high", metric.high))
        for baseline, interval in metric.vs.items():
            yield f"{name}.vs_{baseline}", interval.value
            yield f"{name}.vs_{baseline}.low", interval.low
            yield f"{name}.vs_{baseline}.high", interval.high
    for timed in engine.latency:
        yield f"latency_ms.batch_{timed.batch}", timed.median_ms
        for baseline, ratio in timed.vs.items():
            yield f"latency.batch_{timed.batch}.vs_{baseline}", ratio.value
    if engine.verdicts:
        yield "rows", len(engine.verdicts)
        yield "rows.honoured", engine.honoured
    if engine.moved is not None and engine.moved.total is not None:
        yield "moved_mb", engine.moved.total / 1e6
    if engine.kernels is not None:
        yield "kernels", engine.kernels
