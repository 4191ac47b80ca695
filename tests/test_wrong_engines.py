"""What an engine computes wrongly is found, named with its rule, and left float for that engine."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager

import onnx
import pytest

from granplugin import backends
from granplugin.backends.base import Runner
from granplugin.engines import ENGINES
from granplugin.runs import variants

MAXIMUM = '''
import numpy as np
import torch
from torch import nn


class Maximum(nn.Module):
    """OpenVINO 2026.4.1 computes the linear layer behind the maximum wrongly in the plain form."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.middle, self.head = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, image):
        return self.head(self.middle(self.conv(image).tanh().amax((2, 3))).relu())


def images():
    random = np.random.default_rng(1)
    for _ in range(4):
        yield {"image": random.standard_normal((8, 3, 16, 16), np.float32)}


def maximum():
    torch.manual_seed(0)
    return Maximum().eval()
'''


@dataclasses.dataclass(frozen=True)
class Wrong(Runner):
    """Around another runner: its outputs turned around."""

    inner: Runner

    def _infer(self, feeds):
        return {name: array[:, ::-1] for name, array in self.inner.run(feeds).items()}


@pytest.fixture
def planted(monkeypatch):
    """Makes OpenVINO compute files wrongly in which all of these layers are quantized."""
    pytest.importorskip("openvino")
    openvino = backends.backend_of("openvino")
    build, opened = openvino.build, openvino.open

    def plant(*layers):
        wrong = {}

        def noted(path, out, options=None):
            names = {node.name for node in onnx.load(path).graph.node}
            pairs = {f"{layer}.input/QuantizeLinear" for layer in layers}
            wrong[out] = pairs <= names and (bool(layers) or "head/Gemm" in names)
            return build(path, out, options)

        @contextmanager
        def wrongly(engine, threads=None, batch=None):
            with opened(engine, threads, batch) as runner:
                yield Wrong(engine, runner.inputs, runner) if wrong[engine.path] else runner

        monkeypatch.setattr(openvino, "build", noted)
        monkeypatch.setattr(openvino, "open", wrongly)

    return plant


def apply(project, code=0, **changes):
    fast = {"rounds": 6, "seconds": 0.01}
    project.recipe(
        engines=["onnxruntime", "openvino"], metrics=["sqnr_db"], latency=fast,
        rules=[{"match": "*", "weight": "per_tensor"}], **changes,
    )  # fmt: skip
    done = project.apply()
    assert done.code == code, done.stderr
    return project.report().variants[-1].engines, " ".join(done.stdout.split())


@pytest.mark.parametrize(("layers", "targeted"), [(["depthwise"], False), (["conv", "head"], True)])
def test_what_is_computed_wrongly_is_named_and_left_float(
    applied, planted, monkeypatch, layers, targeted
):
    planted(*layers)
    facts = dataclasses.replace(ENGINES["openvino"], targeted=targeted)
    monkeypatch.setitem(ENGINES, "openvino", facts)
    (_, engine), told = apply(applied, code=3 if targeted else 0)
    traced = engine.traced
    assert traced.held.wrong and traced.builds <= 2 + 3 * len(layers)
    ((*_, last),) = traced.sets
    assert [part.name for part in traced.sets[0]] == layers
    assert traced.left_float == [last] and last.write == "format: float"
    text = (applied.folder / "recipe.yaml").read_text().splitlines()
    line = next(at for at, each in enumerate(text, 1) if "match:" in each)
    assert last.where == f"{applied.folder / 'recipe.yaml'}:{line}:3"
    # Its row is that of the file in which it is float.
    assert not engine.held.wrong and "LEFT FLOAT: openvino does not compute" in told
    assert engine.made == dict.fromkeys(last.sites, "left float: computed wrongly")
    assert f"'{layers[-1]}' ({last.where}): write format: float there" in told
    quantized = [
        node.name for node in onnx.load(applied.out / "variants/recipe/openvino.onnx").graph.node
    ]
    assert f"{layers[-1]}.input/QuantizeLinear" not in quantized
    assert f"{layers[-1]}.input/QuantizeLinear" in {
        node.name for node in onnx.load(applied.out / "variants/recipe/model.onnx").graph.node
    }
    assert "LEFT FLOAT" in (applied.out / "report.md").read_text()
    # What was found is kept.
    planted(*layers)
    assert apply(applied, code=3 if targeted else 0)[0][1].traced == traced


def test_what_no_quantization_causes_stays_wrong(applied, planted):
    planted()
    (_, engine), told = apply(applied, code=4, limits={"latency_vs": {"fp32": 1000}})
    (limit,) = applied.report().limits
    assert limit.verdict == "cannot tell" and "does not compute what its file says" in limit.why
    assert "WRONG: openvino does not compute what the file of recipe says" in told
    assert engine.held.wrong and not engine.traced.left_float
    assert "it is computed wrongly with nothing quantized, too" in told


def test_openvino_is_right_where_what_it_is_given_no_right_form_of_is_float(project, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr(variants, "forms_of", lambda engine: ())
    project.write("nets.py", MAXIMUM)
    data = {"calibration": {"callable": "nets.py:images"}, "batch_size": 8}
    (reference, engine), _ = apply(project, model={"callable": "nets.py:maximum"}, data=data)
    assert [part.name for part in engine.traced.left_float] == ["middle"]
    assert engine.traced.held.engine_db < engine.traced.held.reference_db - 10
    figures = [each.metrics["sqnr_db"].value for each in (reference, engine)]
    assert figures[1] > figures[0] - 1
