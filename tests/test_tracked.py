"""A run in an MLflow store."""

from __future__ import annotations

import math
import re

import pytest
from conftest import run_main
from report_values import report

from granplugin.runs import tracked


def test_every_figure_has_a_name_that_mlflow_takes_and_is_finite():
    made = report("r")
    engine = made.variants[1].engines[0]
    top1 = engine.metrics["top1"]
    metrics = {
        "top1": top1,
        "sqnr_db": top1.model_copy(update={"value": math.inf, "vs": {}}),
        "mine": top1.model_copy(update={"vs": {"tensorrt@11": top1.vs["fp32"]}}),
    }
    variant = made.variants[1].model_copy(
        update={"engines": [engine.model_copy(update={"metrics": metrics})]}
    )
    found = dict(tracked._metrics(variant))
    assert found["openvino/top1"] == 98.5 and found["openvino/top1.vs_fp32"] == -3.0
    assert found["openvino/latency_ms.batch_1"] == 0.5 and found["onnx_mb"] == 0.01
    assert "openvino/mine.vs_tensorrt-11" in found and "openvino/sqnr_db" not in found
    assert all(re.fullmatch(r"[\w\-. /]+", name) for name in found)
    assert all(map(math.isfinite, found.values()))


def test_without_mlflow_nothing_is_built_and_the_extra_is_named(applied, monkeypatch):
    monkeypatch.setattr(tracked, "find_spec", lambda name: None)
    done = run_main("apply", applied.folder / "recipe.yaml", "--mlflow", "file:store")
    assert (done.code, done.stdout) == (2, "")
    assert 'pip install "granplugin[mlflow]"' in done.stderr


@pytest.fixture
def store(applied, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow-skinny, of the extra `test`, is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return f"file:{applied.folder / 'store'}"


def test_a_run_and_its_variants_are_entered_with_their_files(applied, store):
    from mlflow import MlflowClient

    applied.recipe(name="tiny", rules=[{"match": "head", "weight": "per_tensor"}])
    done = applied.apply(applied.folder / "recipe.yaml", "--mlflow", store)
    assert done.code == 0, done.stderr
    client = MlflowClient(tracking_uri=store, registry_uri=store)
    experiment = client.get_experiment_by_name("tiny")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parents = {run.data.tags.get("mlflow.parentRunId") for run in runs.values()}
    (whole,) = (run for run in runs.values() if run.info.run_id in parents)
    files = {each.path for each in client.list_artifacts(whole.info.run_id)}
    assert files >= {"report.html", "report.json", "recipe.yaml", "plan.json"}
    assert whole.data.params["evaluation_samples"] == "64"
    figure = applied.report().variants[1].engines[0].metrics["top1"].value
    variants = [run for run in runs.values() if run is not whole]
    assert figure in [run.data.metrics["onnxruntime/top1"] for run in variants]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert all(client.list_artifacts(run.info.run_id) for run in variants)
    assert whole.info.run_id in done.stdout


def test_a_store_that_does_not_answer_is_told_before_the_work(applied, store):
    done = run_main("apply", applied.folder / "recipe.yaml", "--mlflow", "foo://bar")
    assert (done.code, done.stdout) == (2, "") and "--mlflow foo://bar: " in done.stderr
