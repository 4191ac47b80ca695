"""Outputs of any form: where their samples lie, what no file has, and passes that do not repeat."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from conftest import run_main
from torch import nn
from torch.nn import functional

from granplugin.errors import ModelError
from granplugin.measures.samples import joined
from granplugin.network.carried import check_carried
from granplugin.network.forward import flatten_outputs
from granplugin.network.repeatable import check_repeatable

NET = """
import torch
from torch import nn


class Cache:
    def __init__(self, states):
        self.states = states


class Net(nn.Module):
    def __init__(self, only=None):
        super().__init__()
        self.body, self.head, self.only = nn.Linear(8, 8), nn.Linear(8, 4), only

    def forward(self, image):
        states = self.body(image[:, 0]).relu()
        logits = self.head(states)
        mean = states.mean(1)
        found = {
            "time_first": logits.transpose(0, 1),
            "loss": logits.square().mean(),
            "pairs": mean @ mean.T,
            "flat": logits.flatten(0, 1),
            "past": (Cache(states), None, Cache("eager")),
            "decided": logits.argmax(-1),
        }
        return found if self.only is None else {self.only: found[self.only]}
"""


def recipe(project, only=None, **changes):
    project.write("nets.py", NET)
    project.arrays = {name: array[:11] for name, array in project.arrays.items()}
    images = {"npz": "data.npz", "inputs": {"image": "images"}}
    return project.recipe(
        model={"callable": "nets.py:Net", "args": {"only": only}},
        data={"calibration": images, "batch_size": 4},
        **{"metrics": ["agreement", "sqnr_db"], **changes},
    )


def test_outputs_without_samples_are_named_and_the_others_measured(project):
    recipe(project)
    done = project.apply()
    assert done.code == 0, done.stderr
    report = project.report()
    (engine,) = report.variants[-1].engines
    assert engine.metrics["sqnr_db"].value > 20 and engine.metrics["agreement"].value > 50
    shown, planned = (
        run_main("plan", project.folder / "recipe.yaml", "--out", project.out, *more).stdout
        for more in ([], ["--json"])
    )
    for told in (
        "output 'time_first' has its samples on axis 1",
        "output 'loss' has no axis of samples",
        "output 'pairs' has no axis of samples",
        "output 'flat' has no axis of samples",
        "output 'past_1' (None) is no tensor",
        "output 'past_2' (Cache) is no tensor",
    ):
        assert sum(note.startswith(told) for note in report.notes) == 1
        assert all(told in " ".join(text.split()) for text in (planned, shown, done.stdout))
    told = " ".join(report.notes)
    assert not any(f"output '{name}" in told for name in ("decided'", "past_0"))
    graph = onnx.load_from_string(project.onnx()).graph
    assert "past_0_states" in {each.name for each in graph.output}  # a cache is kept


@pytest.mark.parametrize(
    "only, metrics, told",
    [
        ("loss", ["sqnr_db"], "recipe.yaml:2:1: nothing can be measured: output 'loss' has no"),
        ("decided", ["agreement", "sqnr_db"], "recipe.yaml:14:3: sqnr_db needs a floating output"),
    ],
)
def test_a_metric_that_no_output_serves_is_refused_before_anything_runs(
    project, only, metrics, told
):
    recipe(project, only, metrics=metrics)
    done = project.apply()
    assert done.code == 2 and told in done.stderr
    assert not list(project.out.glob("cache/statistics*"))


@pytest.mark.parametrize(
    "output, told",
    [
        ({"image": torch.ones(2, 4)}, "'image' has the name of an input"),
        ({"a": torch.ones(2, 4, dtype=torch.complex64)}, "'a' is complex.*view_as_real"),
        ({"a": torch.ones(2, 4).to_sparse()}, "'a' is a sparse_coo tensor.*dense"),
        ({"a": torch.nested.nested_tensor([torch.ones(2)])}, "'a' is a nested tensor"),
    ],
)
def test_an_output_that_no_file_holds_is_refused_by_name(output, told):
    check_carried({"logits": torch.ones(2, 4)}, ["image"])
    with pytest.raises(ModelError, match=told):
        check_carried(output, ["image"])


def test_decisions_agree_where_they_are_equal(project):
    recipe(project, "decided", metrics=["agreement"])
    done = project.apply()
    assert done.code == 0, done.stderr
    (engine,) = project.report().variants[-1].engines
    assert 50 < engine.metrics["agreement"].value <= 100


def test_batches_are_joined_along_the_axis_of_their_samples():
    batches = [{"a": np.zeros((5, n)), "b": np.zeros(()), "c": np.zeros((n, 2))} for n in (4, 3)]
    found = joined(batches, {"a": 1, "b": None})
    assert {name: array.shape for name, array in found.items()} == {"a": (7, 5), "c": (7, 2)}


class Random(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.inner, self.calls = how, nn.Identity(), 0

    def forward(self, x):
        self.calls += 1
        return RANDOM[self.how](self, self.inner(x))


RANDOM = {
    "dropout": lambda net, x: functional.dropout(x, 0.5),
    "randn_like": lambda net, x: x + torch.randn_like(x),
    "bernoulli": lambda net, x: x * x.sigmoid().bernoulli(),
    "rand_like": lambda net, x: x * (torch.rand_like(x[:1, :1]) > 0.2),  # seldom
    "rand": lambda net, x: x + torch.rand(1, generator=torch.Generator().manual_seed(net.calls)),
    "one call to the next": lambda net, x: x * net.calls,
    "another shape": lambda net, x: x[: net.calls],
}


@pytest.mark.parametrize("how", RANDOM)
def test_a_forward_that_does_not_repeat_is_refused_with_what_draws_lots(how):
    net, x = nn.Sequential(Random(how)), torch.randn(2, 8)
    outputs = flatten_outputs(net.eval()(x))
    with pytest.raises(ModelError, match="does not repeat") as error:
        check_repeatable(net, x, outputs)
    assert how in str(error.value)
    if how not in ("one call to the next", "another shape"):
        assert "in '0' (test_outputs.py:" in str(error.value)
    assert ("self.training" in str(error.value)) == (how == "dropout")


class Draws(nn.Module):
    def forward(self, x):
        torch.rand(1)  # for nothing
        return x


def test_a_forward_that_repeats_is_not_refused():
    net, x = nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.5), Draws()).eval(), torch.randn(2, 8)
    check_repeatable(net, x, flatten_outputs(net(x)))
