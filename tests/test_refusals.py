"""One engine that refuses keeps the results of the others, and says why in the recipe's words."""

from __future__ import annotations

import dataclasses
import re
from contextlib import contextmanager

import numpy as np
import pytest

from granplugin import backends
from granplugin.backends.base import BuildFailed, Runner
from granplugin.engines import ENGINES
from granplugin.errors import EngineError

OURS = re.compile(r"(variant|equal|engine)-[0-9a-f]{8}")


@dataclasses.dataclass(frozen=True)
class Failing(Runner):
    """Around another runner: it fails at batches of a size, or computes NaN."""

    inner: Runner
    size: int = 0
    nan: bool = False

    def _infer(self, feeds):
        outputs = self.inner.run(feeds)
        if len(next(iter(feeds.values()))) == self.size:
            raise self.refusal("a kernel that failed")
        return {name: array * np.nan if self.nan else array for name, array in outputs.items()}


def builds_fail(openvino, monkeypatch, error):
    build, calls = openvino.build, []

    def failing(onnx, out, options=None):
        calls.append(onnx)
        if len(calls) > 1:  # fp32 is the first
            raise error(onnx)
        return build(onnx, out, options)

    monkeypatch.setattr(openvino, "build", failing)


def opens_fail(openvino, monkeypatch, **how):
    opened, refusing = openvino.open, not how

    @contextmanager
    def failing(engine, threads=None, batch=None):
        with opened(engine, threads, batch) as runner:
            if engine.path.name == first[0]:
                yield runner
            elif refusing:
                raise EngineError(f"openvino refused {engine.path.name}: it is of another CPU")
            else:
                yield Failing(engine, runner.inputs, runner, **how)

    first = []
    build = openvino.build

    def noted(onnx, out, options=None):
        first.append(out.name)
        return build(onnx, out, options)

    monkeypatch.setattr(openvino, "build", noted)
    monkeypatch.setattr(openvino, "open", failing)


FAULTS = {
    "refused at build": lambda *at: builds_fail(
        *at, lambda onnx: BuildFailed(f"openvino refused {onnx.name}: opset 21 is not known")
    ),
    "a node is named": lambda *at: builds_fail(
        *at, lambda onnx: BuildFailed(f"openvino refused {onnx.name}: bad", ["head/Gemm"])
    ),
    "the library does not load": lambda *at: builds_fail(
        *at, lambda onnx: EngineError("openvino cannot be loaded: libtbb.so.12 is missing")
    ),
    "refused at load": opens_fail,
    "failed at inference": lambda *at: opens_fail(*at, size=16),
    "not finite": lambda *at: opens_fail(*at, nan=True),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_engine_that_refuses_keeps_the_results_of_the_others(applied, monkeypatch, fault):
    pytest.importorskip("openvino")
    FAULTS[fault](backends.backend_of("openvino"), monkeypatch)
    fast = {"rounds": 6, "seconds": 0.01}
    applied.recipe(
        engines=["onnxruntime"], optional_engines=["openvino"], latency=fast,
        limits={"latency_vs": {"fp32": 100}},
    )  # fmt: skip
    done = applied.apply()
    assert done.code == 4, done.stderr
    fp32, recipe = applied.report().variants
    reference, refusing = recipe.engines
    assert reference.metrics["top1"].vs["fp32"] and reference.refused is None
    assert refusing.refused and not refusing.metrics and not refusing.latency
    assert fp32.engines[1].latency and fp32.engines[1].refused is None
    (limit,) = applied.report().limits
    assert limit.verdict == "cannot tell" and limit.why == refusing.refused
    for told in (done.stdout, (applied.out / "report.md").read_text()):
        told = " ".join(told.replace("\\", "").split())
        assert f"REFUSED: recipe: {refusing.refused}" in told
        assert not OURS.search(told)
    if fault == "a node is named":
        assert re.search(
            r"of layer 'head' \(\S+recipe.yaml:1:1\): write format: float", refusing.refused
        )


def test_a_latency_that_fails_costs_that_latency_alone(applied, monkeypatch):
    pytest.importorskip("openvino")
    opens_fail(backends.backend_of("openvino"), monkeypatch, size=1)
    applied.recipe(engines=["openvino"], latency={"rounds": 6, "seconds": 0.01})
    done = applied.apply()
    assert done.code == 0, done.stderr
    fp32, recipe = (each.engines[0] for each in applied.report().variants)
    assert [len(fp32.latency), len(recipe.latency)] == [2, 1]
    assert "a kernel that failed" in recipe.untimed and recipe.metrics
    assert "NOT TIMED: recipe: openvino cannot run it: a kernel that failed" in " ".join(
        done.stdout.split()
    )


@pytest.mark.parametrize("targeted", [False, True])
def test_an_engine_that_is_required_or_targeted_and_refuses_is_exit_code_3(
    applied, monkeypatch, targeted
):
    pytest.importorskip("openvino")
    FAULTS["the library does not load"](backends.backend_of("openvino"), monkeypatch)
    if targeted:
        facts = dataclasses.replace(ENGINES["openvino"], targeted=True)
        monkeypatch.setitem(ENGINES, "openvino", facts)
        applied.recipe(engines=["onnxruntime"], optional_engines=["openvino"])
    else:
        applied.recipe(engines=["onnxruntime", "openvino"])
    assert applied.apply().code == 3
    assert applied.report().variants[1].engines[1].refused


def test_a_build_in_a_process_that_is_ended_keeps_the_others_results(applied):
    if reason := backends.backend_of("tensorrt_rtx").unavailable():
        pytest.skip(reason)
    applied.recipe(engines=["onnxruntime", "tensorrt_rtx"], build={"seconds": 0.01})
    done = applied.apply()
    assert done.code == 3
    assert "could not build it: it took more than 0.01 s" in " ".join(done.stdout.split())
    assert applied.report().variants[1].engines[0].metrics
