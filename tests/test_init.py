"""init: what it writes loads, says what the network is, and leads to a run in one edit or none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import run_main
from torch import nn

from granplugin.recipe.load import load_recipe

NETS = """
from torch import nn
import torch

def conv():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(30, 8), nn.Linear(8, 4)

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.embedding(input_ids)).mean(1)

def words():
    return Words()

def table():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(2, 4, 3)

    def forward(self, x, y):
        return self.layer(x.reshape(-1, 2, 7, 5)) + y.reshape(-1, 4, 5, 3)

def odd():
    return Odd()

class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.boxes = nn.ModuleList([nn.Linear(8, 4), nn.Linear(8, 4)])

    def forward(self, sound=None, **more):
        x = self.stem(sound)
        return [head(x) for head in self.boxes]

def heads():
    return Heads()

class Broken(nn.Linear):
    def forward(self, x):
        raise LookupError("no such table")

def broken():
    return Broken(6, 2)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("net", "runs_with"),
    [
        ("conv", "input float32 Nx3x224x224"),
        ("words", "input_ids int64 Nx16"),
        ("table", "input float32 Nx6"),
    ],
)
def test_without_data_it_tells_what_forward_wants_and_leaves_one_function_to_fill_in(
    here, net, runs_with
):
    done = run_main("init", f"nets.py:{net}")
    assert done.code == 0, done.stderr
    text = (here / f"{net}.yaml").read_text()
    assert f"# forward runs with {runs_with}." in text
    load_recipe(here / f"{net}.yaml")
    refused = run_main("plan", f"{net}.yaml")
    assert refused.code == 2
    assert "let batches() yield your own samples" in refused.stderr
    # The one edit: samples instead of the refusal.
    module = (here / "calibration_data.py").read_text()
    before, _, after = module.partition("    raise NotImplementedError(")
    (here / "calibration_data.py").write_text(before + after.partition("    )\n")[2])
    planned = run_main("plan", f"{net}.yaml")
    assert planned.code == 0, planned.stderr


def test_with_data_there_is_nothing_to_edit_and_the_suspicious_layer_is_named(here):
    rng = np.random.default_rng(0)
    np.savez(
        "samples.npz", images=rng.standard_normal((8, 3, 16, 16), np.float32), classes=np.arange(8)
    )
    net = {}
    exec(NETS, net)
    model = net["conv"]()
    with torch.no_grad():
        model[3].weight[2] *= 500
    torch.save(model.state_dict(), "trained.pt")
    done = run_main("init", "nets.py:conv", "--data", "samples.npz", "--weights", "trained.pt")
    assert done.stdout.splitlines() == [
        "recipe: conv.yaml", "next: granplugin apply conv.yaml  # build and measure it",
    ]  # fmt: skip
    text = (here / "conv.yaml").read_text()
    assert "{npz: samples.npz, inputs: {input: images}, labels: classes}" in text
    assert '- {match: "3", weight: per_channel}' in text
    # What is commented out loads too, without its #.
    start = text.index("# rules:")
    bare = "\n".join(
        line.removeprefix("# ").removeprefix("#") for line in text[start:].splitlines()
    )
    (here / "rules.yaml").write_text(text[:start] + bare)
    for recipe in ("conv.yaml", "rules.yaml"):
        planned = run_main("plan", recipe)
        assert planned.code == 0, planned.stderr


def test_arguments_with_defaults_are_found_and_several_outputs_are_one_rule(here):
    """As those of transformers' models, which take any keyword besides."""
    assert run_main("init", "nets.py:heads").code == 0
    text = (here / "heads.yaml").read_text()
    assert "# forward runs with sound float32 Nx6." in text
    assert "inputs: {sound: sound}, labels: labels}" in text
    assert '"sound": np.zeros((8, 6), np.float32)' in (here / "calibration_data.py").read_text()
    assert "#   # They make the outputs; " in text
    assert '#   - {match: "boxes.*", format: float}' in text
    assert "metrics: [sqnr_db]" in text, "which of two outputs has the classes?"


def test_an_onnx_file_gets_one_too(here):
    layer = nn.Conv2d(3, 4, 3)
    torch.onnx.export(layer, (torch.randn(1, 3, 8, 8),), "net.onnx", dynamo=True, verbose=False)
    done = run_main("init", "net.onnx")
    assert done.code == 0, done.stderr
    assert run_main("plan", "net.yaml").code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nets.py"], "give the function that returns the network"),
        (["nets.py:none"], "none"),
        (["nets.py:broken", "--data", "table.npz"], "LookupError: no such table"),
        (["missing.onnx"], "missing.onnx"),
        (["nets.py:conv", "--data", "no.npz"], "no.npz: "),
        (["nets.py:conv", "--data", "nothing"], "neither an .npz file, nor a folder"),
        (["nets.py:conv", "--shape", "x=3x8x8"], "forward has no such argument; it has input"),
        (["nets.py:conv", "--shape", "3x8x8"], "write it as image=3x224x224"),
        (["nets.py:conv", "--out", "nets.py"], "is there already"),
    ],
)
def test_what_it_cannot_do_is_one_sentence_and_nothing_is_written(here, arguments, said):
    np.savez("table.npz", x=np.zeros((4, 6), np.float32))
    before = sorted(here.iterdir())
    done = run_main("init", *arguments)
    assert done.code == 2
    assert said in done.stderr
    assert [path for path in sorted(here.iterdir()) if path.name != "__pycache__"] == before


def test_a_network_that_no_usual_shape_runs_says_so_and_takes_shapes(here):
    done = run_main("init", "nets.py:odd")
    assert done.code == 0, done.stderr
    assert "forward takes x, y; none of the usual shapes runs" in (here / "odd.yaml").read_text()
    done = run_main(
        "init", "nets.py:odd", "--shape", "x=2x7x5", "--shape", "y=4x5x3", "--out", "b/odd.yaml"
    )
    assert done.code == 0, done.stderr
    assert "x float32 Nx2x7x5, y float32 Nx4x5x3" in (here / "b/odd.yaml").read_text()
