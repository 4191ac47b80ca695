"""Inputs of any size and form: dynamic axes, samples of several lengths, nested inputs, one batch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import yaml
from conftest import run_main
from torch import nn

from granplugin.backends.onnxruntime import OnnxRuntime
from granplugin.data.batches import rebatched
from granplugin.engines import ENGINES
from granplugin.errors import ModelError
from granplugin.measures import metrics
from granplugin.measures.samples import filled, joined, present
from granplugin.network.export import export_float
from granplugin.recipe.model import FileForm

NET = """
import dataclasses

import numpy as np
import torch
from torch import nn


@dataclasses.dataclass
class Past:
    keys: torch.Tensor
    more: tuple


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, tokens, past: Past):
        x = self.body(self.embed(tokens)).relu() + past.keys.mean(1, keepdim=True) + past.more[0]
        return self.head(x), x.argmax(-1)


def data(lengths=(6, 6, 10)):
    rng = np.random.default_rng(0)
    for length in lengths:
        keys = rng.standard_normal((4, 3, 8), np.float32)
        past = Past(keys, (keys[:, :1],))
        yield {"tokens": rng.integers(0, 20, (4, length)), "past": past}
"""


def recipe(project, lengths, **model):
    project.write("nets.py", NET)
    data = {"callable": "nets.py:data", "args": {"lengths": lengths}}
    return project.recipe(
        model={"callable": "nets.py:Net", **model},
        data={"calibration": data, "batch_size": 8},
        metrics=["agreement", "sqnr_db"],
        classes={"output": "output_0", "axis": -1},
    )


def test_nested_inputs_and_samples_of_several_lengths_go_through_every_stage(project, tmp_path):
    path = recipe(project, [6, 6, 10], dynamic={"tokens": {1: "length"}, "past.keys": {1: "kept"}})
    done = project.apply()
    assert done.code == 0, done.stderr
    graph = onnx.load_from_string(project.onnx()).graph
    axes = {
        each.name: [d.dim_param for d in each.type.tensor_type.shape.dim] for each in graph.input
    }
    assert axes == {
        "tokens": ["batch", "length"],
        "past.keys": ["batch", "kept", ""],
        "past.more.0": ["batch", "", ""],
    }
    report = project.report()
    (engine,) = report.variants[-1].engines
    assert engine.metrics["sqnr_db"].value > 25
    assert 50 < engine.metrics["agreement"].value <= 100
    onnx_path = project.out / "variants" / "recipe" / "model.onnx"
    reference = OnnxRuntime(ENGINES["onnxruntime"])
    with reference.open(reference.build(onnx_path, tmp_path)) as runner:
        found = runner.run(
            {
                "tokens": np.zeros((1, 3), np.int64),
                "past.keys": np.zeros((1, 9, 8), np.float32),
                "past.more.0": np.zeros((1, 1, 8), np.float32),
            }
        )
    assert found["output_0"].shape == (1, 3, 4)
    exported = run_main(
        "export", path, "--engine", "tensorrt", "--run", project.out, "--out", tmp_path / "export"
    )
    assert exported.code == 0, exported.stderr
    script = (tmp_path / "export" / "run_10.sh").read_text()
    assert "--minShapes=tokens:1x6,past.keys:1x3x8,past.more.0:1x1x8" in script
    assert "--maxShapes=tokens:8x10,past.keys:8x3x8,past.more.0:8x1x8" in script


@pytest.mark.parametrize(
    "changes, told",
    [
        (
            {},
            "but batch 1 has tokens [6], past.keys [3, 8], past.more.0 [1, 8] and no labels; where ",
        ),
        ({}, "model.dynamic: {tokens: {1: axis1}}"),
        (
            {"static_batch": True, "dynamic": {"tokens": {"1": "length"}}},
            "12 are no multiple of it",
        ),
        ({"dynamic": {"tokens": {"0": "n"}}}, "an axis is a number from 1, as the batch is axis 0"),
        ({"dynamic": {"tokens": {"1": "batch"}}}, "'batch' is the name of axis 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused_before_anything_runs(project, changes, told):
    recipe(project, [6, 6, 10], **changes)
    done = project.apply()
    assert done.code == 2 and told in done.stderr
    assert not list(project.out.glob("cache/statistics*"))


@pytest.mark.parametrize(
    "shapes, told",
    [
        (
            [[1, 4], [4, 6], [8, 8]],
            "tokens is built for length of 4 to 8, and one of the data's is 10",
        ),
        ([[1, 6, 1], [4, 6, 1], [8, 10, 1]], "tokens is [batch, length], and only its batch and"),
        (
            [[9, 6], [9, 6], [9, 10]],
            "tokens is built for batches of 9 to 9, and data.batch_size is 8",
        ),
    ],
)
def test_shapes_to_build_for_hold_what_the_data_have(project, shapes, told):
    path = recipe(project, [6, 10], dynamic={"tokens": {1: "length"}})
    text = yaml.safe_load(path.read_text())
    build = {"shapes": {"tokens": dict(zip(("min", "opt", "max"), shapes, strict=True))}}
    engines = ["onnxruntime", "openvino"]
    path.write_text(yaml.safe_dump({**text, "build": build, "engines": engines}))
    done = project.apply()
    assert done.code == 2 and told in done.stderr


def test_no_batch_has_samples_of_two_shapes():
    chunks = [{"x": np.full((3, n), n)} for n in (2, 2, 5, 2)]
    made = [batch["x"].shape for batch in rebatched(chunks, [4, 4, 4, 4])]
    assert made == [(4, 2), (2, 2), (3, 5), (3, 2)]


def test_metrics_are_of_what_each_sample_has():
    rng = np.random.default_rng(0)
    batches = [
        {"y": rng.standard_normal((2, n, 3)), "best": rng.integers(0, 3, (2, n))} for n in (2, 5)
    ]
    noisy = [
        {**batch, "y": batch["y"] + 0.1 * rng.standard_normal(batch["y"].shape)}
        for batch in batches
    ]
    ours, theirs = joined(noisy, {}), joined(batches, {})
    metrics.check_finite(ours)
    score = metrics.sqnr_db(ours, theirs, None)
    error, signal = (
        sum(np.square(a["y"] - (b["y"] if b else 0)).sum() for a, b in pairs)
        for pairs in (zip(noisy, batches, strict=True), zip(batches, [None, None], strict=True))
    )
    assert score.value == pytest.approx(10 * np.log10(signal / error))
    classes = type("Classes", (), {"output": "y", "axis": 2})
    agreed = [
        (a["y"].argmax(2) == b["y"].argmax(2)).mean(1) for a, b in zip(noisy, batches, strict=True)
    ]
    found = metrics.agreement(ours, theirs, None, classes)
    assert found.per_sample == pytest.approx(100 * np.concatenate(agreed))
    ours["y"][0, 0, 0] = np.nan
    with pytest.raises(ModelError, match="'y' has NaN, first in sample 0"):
        metrics.check_finite(ours)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "uint8", "bool"])
def test_what_is_filled_up_is_told_from_any_number(dtype):
    values = np.array([[0, 1], [np.nan, np.inf]] if dtype.startswith("float") else [[0, 1]], dtype)
    there = present(filled(values, (3,)))
    assert there.tolist() == [[True, True, False]] * len(values)


class OneSize(nn.Module):
    def forward(self, x):
        return x.reshape(2, 3, 4).sum(1)


def test_a_network_that_takes_one_batch_alone_is_exported_for_it(tmp_path):
    path = tmp_path / "net.onnx"
    with pytest.raises(ModelError, match="write model: static_batch: true"):
        export_float(OneSize(), torch.ones(2, 12), path)
    export_float(OneSize(), torch.ones(2, 12), path, form=FileForm(static_batch=True))
    (taken,) = onnx.load(path).graph.input
    assert [d.dim_value for d in taken.type.tensor_type.shape.dim] == [2, 12]
    with pytest.raises(ModelError, match=r"axis 1 of 'x' for the constant 12.*leave it out"):
        export_float(OneSize(), torch.ones(2, 12), path, form=FileForm({"x": {1: "n"}}, True))


@torch.library.custom_op("granplugin_tests::gated", mutates_args=())
def gated(x: torch.Tensor, y: torch.Tensor, alpha: float, axis: int = 1) -> torch.Tensor:
    return x * (y * alpha).sigmoid()


@gated.register_fake
def _(x, y, alpha, axis=1):
    return torch.empty_like(x)


@torch.library.custom_op("granplugin_tests::nms", mutates_args=())
def nms(x: torch.Tensor) -> torch.Tensor:
    return (x[:, 0] > 0).nonzero()[:, 0]


@nms.register_fake
def _(x):
    return torch.empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


class Gated(nn.Module):
    def forward(self, x):
        return torch.ops.granplugin_tests.gated(x, x.relu(), 0.5)


class Kept(nn.Module):
    def forward(self, x):
        kept = x[torch.ops.granplugin_tests.nms(x)]
        return kept[:2] if len(kept) > 2 else kept


def test_an_operator_of_ones_own_is_a_node_of_its_domain(tmp_path):
    path = tmp_path / "net.onnx"
    with pytest.raises(ModelError, match=r"write model: custom_ops: \[granplugin_tests\]"):
        export_float(Gated(), torch.ones(2, 4), path)
    export_float(Gated(), torch.ones(2, 4), path, form=FileForm(custom_ops=("granplugin_tests",)))
    (own,) = [node for node in onnx.load(path).graph.node if node.domain]
    assert (own.domain, own.op_type, len(own.input)) == ("granplugin_tests", "gated", 2)
    found = {each.name: onnx.helper.get_attribute_value(each) for each in own.attribute}
    assert found == {"alpha": 0.5, "axis": 1}
    with pytest.raises(ModelError, match="'granplugin_test'; did you mean 'granplugin_tests'"):
        export_float(
            Gated(), torch.ones(2, 4), path, form=FileForm(custom_ops=("granplugin_test",))
        )


def test_what_depends_on_values_is_told_with_the_operator_that_does(tmp_path):
    told = r"cannot follow \(test_sizes.py:\d+\); it has granplugin_tests.nms \(test_sizes.py:\d+"
    with pytest.raises(ModelError, match=f"{told}.*name model.onnx"):
        export_float(Kept(), torch.ones(2, 4), tmp_path / "net.onnx")


def test_of_outputs_without_samples_it_is_told_what_chose_them(project):
    project.write(
        "nets.py",
        """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.score = nn.Linear(4, 2)

    def forward(self, x):
        return torch.nonzero(self.score(x) > 0)[:1, :1] * 1.0


def data():
    yield {"x": torch.ones(8, 4) * torch.arange(8)[:, None]}
""",
    )
    project.recipe(
        model={"callable": "nets.py:Net"}, metrics=["sqnr_db"],
        data={"calibration": {"callable": "nets.py:data"}},
    )  # fmt: skip
    done = project.apply()
    assert done.code == 2
    told = " ".join(done.stderr.split())
    assert "no output has an axis of samples; what is put out depends on values" in told
    assert "it has aten.nonzero (nets.py:12" in told and "name model.onnx" in told
    planned = run_main("plan", project.folder / "recipe.yaml")
    assert "apply will refuse it: nothing can be measured" in " ".join(planned.stdout.split())
    assert "next:" not in planned.stdout + planned.stderr
