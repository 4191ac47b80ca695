"""What analyze concludes: only what the samples show, against FP32."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import yaml
from analysis_nets import analyzed, images, layer_of, write
from conftest import run_main
from hypothesis import given
from hypothesis import strategies as st

COARSE = {"match": "**", "weight": "per_tensor"}
RUINED = {"norms": False, "kind": "conv", "layer": 2, "channel": 3, "factor": 300.0, "outputs": 1}


@dataclass(frozen=True)
class Loss:
    value: float
    low: float | None
    high: float | None


def ruined(project, asked):
    recipe = write(
        project, "Chain", RUINED, metrics=["sqnr_db"], rules=[COARSE], analyze=asked
    )  # fmt: skip
    return analyzed(recipe, project.out)


@given(st.floats(-5, 50), st.floats(0, 20), st.floats(0, 20), st.floats(0, 10))
def test_a_loss_is_within_the_tolerance_only_with_all_of_its_interval(
    value, below, over, tolerance
):
    from granplugin.analysis.advice import judged

    verdict = judged(Loss(value, value - below, value + over), tolerance)
    assert (verdict == "within") == (value + over <= tolerance)
    assert (verdict == "above") == (value - below > tolerance)
    assert judged(Loss(value, None, None), tolerance) == "cannot tell"


def test_as_many_samples_as_are_said_can_tell_four_times_of_five():
    from granplugin.measures.intervals import tango_interval
    from granplugin.measures.power import samples_to_tell

    share, tolerance = 0.03, 1.0
    deviation = 100 * math.sqrt(share * (1 - share))
    n = samples_to_tell(3.0, tolerance, deviation, math.sqrt(tolerance * (100 - tolerance)))
    flips = np.random.default_rng(0).binomial(n, share, 400)
    told = np.mean([tango_interval(int(lost), 0, n)[0] > tolerance for lost in flips])
    assert 0.72 < told < 0.92
    # Where nothing flips, these are enough for the interval to end below the tolerance.
    enough = samples_to_tell(0.0, tolerance, 0.0, math.sqrt(tolerance * (100 - tolerance)))
    assert tango_interval(0, 0, enough)[1] <= tolerance < tango_interval(0, 0, enough // 2)[1]


def test_a_ruined_network_that_no_setting_mends_is_not_said_to_need_nothing(project):
    """The recipe has the only setting that is asked: against itself it would lose nothing."""
    project.arrays = {"images": images(256)}
    asked = {"weights": "per_tensor", "inputs": "per_tensor", "top": 1}
    found = ruined(project, asked)
    assert found.advice.verdict == "above" and found.start.loss.low > 20
    assert found.advice.promise != "within" and not found.advice.said.startswith("Nothing")
    assert "more than is accepted" in found.advice.said


def test_what_no_setting_mends_is_left_float_and_as_little_as_is_enough(project):
    project.arrays = {"images": images(512)}
    asked = {"weights": ["per_tensor", "float"], "inputs": ["per_tensor", "float"], "tolerance": 5}
    found = ruined(project, asked)
    assert found.advice.verdict == "above" and found.advice.promise == "within"
    changed = {name: o.rule for o in found.advice.overrides for name in o.layers}
    assert changed.keys() == {"convs.2", "convs.3"}
    assert all("float" in rule.values() for rule in changed.values())
    assert not any("nothing to gain" in each.reason for each in found.advice.overrides)
    assert found.advice.suggested.loss.value < 5 < found.start.loss.low


@pytest.mark.parametrize("samples", [4, 64])
def test_samples_that_cannot_tell_are_exit_4_and_how_many_could_is_said(project, samples):
    project.arrays = {"images": images(samples)}
    data = {"calibration": {"npz": "data.npz", "inputs": {"image": "images"}}}
    recipe = write(project, "Chain", {"norms": False}, data=data, analyze={"top": 1})
    done = run_main("analyze", recipe, "--no-costs", "--out", project.out)
    told = " ".join(done.stdout.split())
    assert done.code == 4, done.stderr
    assert "what to do: Cannot tell whether anything needs to change" in told
    assert "samples like these could tell" in told and "Nothing needs to change" not in told


def labelled(project, labels):
    project.arrays = {"images": images(512), "labels": labels}
    asked = {"top": 1}
    return analyzed(write(project, "Residual", rules=[COARSE], analyze=asked), project.out)


def test_labels_on_which_fp32_is_at_chance_decide_nothing_and_that_is_said(project):
    found = labelled(project, np.random.default_rng(1).integers(0, 10, 512))
    assert (found.loss, found.metric, found.fp32) == ("decisions", None, None)
    (note,) = [note for note in found.notes if "at chance" in note]
    assert "10 classes give 10 % blindly" in note
    assert found.start.loss.value == pytest.approx(100 - found.start.agreement.value)


def figure(n, classes, hits, fp32_hits, lost, gained, agree):
    """The sums of n samples, of which so many are as said."""
    from granplugin.analysis.effects import _PARTS
    from granplugin.analysis.figures import sums

    part = dict.fromkeys(_PARTS, 0.0) | {
        "agree": 100.0 * agree, "agree2": 1e4 * agree, "decided": n, "whole": n,
        "classes": n * classes, "hits": hits, "fp32_hits": fp32_hits, "lost": lost,
        "gained": gained,
    }  # fmt: skip
    return np.concatenate([sums(np.ones(n), np.full(n, 1e-2)), list(part.values())])


@pytest.mark.parametrize(
    ("said", "word"),
    [
        (figure(512, 10, 52, 51, 40, 41, 91), "at chance"),
        (figure(512, 10, 300, 301, 80, 79, 350), "the same as fp32's while only 68.4 %"),
        (figure(512, 10, 500, 501, 2, 1, 505), None),
        (figure(512, 10, 100, 501, 401, 0, 102), None),
        (figure(512, 2, 260, 262, 40, 38, 430), "at chance"),
    ],
)
def test_labels_that_contradict_are_told_from_labels_that_do_not(said, word):
    from types import SimpleNamespace

    from granplugin.analysis.effects import effect
    from granplugin.analysis.outputs import contradiction

    outputs = SimpleNamespace(
        start={"a": (0, 0)}, quantizes=True, whole=lambda choice: effect(said)
    )
    found = contradiction(outputs, "top1")
    assert found is None if word is None else word in found
    assert effect(said, by_labels=False).measured_by == "decisions"


@dataclass(frozen=True)
class Whole:
    loss: Loss
    db: float
    measured_by: str


@given(st.floats(-20, 60), st.sampled_from(["metric", "decisions", "outputs"]))
def test_nothing_is_within_whose_outputs_are_very_bad(db, measured_by):
    from granplugin.analysis.advice import verdict_of

    told = verdict_of(Whole(Loss(0.0, -0.5, 0.5), db, measured_by), 1.0)
    assert (told == "cannot tell") == (db < 10)
    assert told in ("within", "cannot tell")


@given(st.floats(1.5, 50), st.floats(0, 50), st.floats(-3, 3))
def test_what_won_only_where_it_was_chosen_is_not_advised(before, final, won_db):
    from granplugin.analysis.advice import held
    from granplugin.analysis.tried import FLOATING

    whole = [
        Whole(Loss(at, at - 0.4, at + 0.4), db, "outputs")
        for at, db in ((before, 30.0), (final, 30 + won_db))
    ]
    told = held({"a": FLOATING}, *whole, 1.0)
    useful = final - 0.4 <= 1.0 or final + 0.4 < before - 0.4 or 30 + won_db >= 31
    assert bool(told.overrides) == useful == (told.promise is not None)


@pytest.mark.parametrize("samples", [1, 2, 7, 64])
def test_what_is_promised_is_measured_on_samples_that_nothing_was_chosen_by(samples):
    from types import SimpleNamespace

    from granplugin.analysis.subject import Subject

    recipe = SimpleNamespace(data=SimpleNamespace(seed=3))
    of = SimpleNamespace(
        data=SimpleNamespace(samples=samples), loaded=SimpleNamespace(recipe=recipe)
    )
    chosen, promised = Subject.halves(of)
    assert len(chosen) == -(-samples // 2)
    if samples > 1:
        assert sorted([*chosen, *promised]) == list(range(samples))


def test_a_loss_of_weight_and_input_is_told_as_both_with_a_way_out_of_each(project):
    project.arrays = {"images": images(64)}
    fault = {"norms": True, "kind": "gamma", "layer": 6, "channel": 9 % 8, "factor": 30_000.0}
    found = analyzed(
        write(project, "Chain", fault, rules=[COARSE], analyze={"top": 3}), project.out
    )  # fmt: skip
    head = layer_of(found, "head")
    assert head.loss_in == "both"
    weight, given = (next(s for s in each if s.start) for each in (head.weights, head.inputs))
    assert min(weight.channels_lost, given.channels_lost) > 0.1
    assert head.why.startswith("its weight and its input each lose by themselves: the weight's ")
    assert "; the input's per_tensor " in head.why
    assert "the weight's granularity cannot help" not in head.why


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_role_that_takes_more_is_named_always(weight, given_):
    from types import SimpleNamespace

    from granplugin.analysis.why import MATTERS, loss_in, roles_of

    lost = {"weight": weight, "input": given_}
    own = {role: SimpleNamespace(channels_lost=share) for role, share in lost.items()}
    roles = roles_of(loss_in(SimpleNamespace(own=own.get)))
    if max(lost.values()) < MATTERS:
        assert roles == ()
    else:
        assert max(lost, key=lost.get) in roles
        assert all(lost[role] >= max(lost.values()) / 2 for role in roles)


CALLED = """
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    \"\"\"A product of its own weight, of which one channel is a thousand times another.\"\"\"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(8, 6) * torch.logspace(-2, 1, 8)[:, None])
        self.v = nn.Parameter(torch.randn(4, 8))
        self.gain = nn.Parameter(torch.logspace(2, -1, 8))

    def forward(self, x):
        return F.linear((F.linear(x, self.w) * self.gain).relu(), self.v)


def data(seed=0):
    rng = np.random.default_rng(seed)
    yield {"x": rng.standard_normal((768, 6), np.float32)}
"""


def test_of_the_weight_of_a_call_other_granularities_are_measured_and_advised(tmp_path):
    (tmp_path / "nets.py").write_text(CALLED)
    source = {"callable": "nets.py:data"}
    recipe = tmp_path / "r.yaml"
    told = {
        "version": 1,
        "model": {"callable": "nets.py:Net"},
        "data": {"calibration": source, "analysis": {**source, "args": {"seed": 1}}},
        "rules": [{"match": "linear", "weight": "per_tensor"}],
        "analyze": {"calibrators": "max", "tolerance": 5},
    }
    recipe.write_text(yaml.safe_dump(told))
    found = analyzed(recipe, tmp_path / "run")
    (own, finer) = layer_of(found, "linear").weights
    assert (own.granularity, finer.granularity) == ("per_tensor", "per_channel")
    assert own.channels_lost > 0.1 > 1e-3 > finer.channels_lost
    assert own.alone.db < finer.alone.db
    advised = {each.rule["match"]: each.rule for each in found.advice.overrides}
    assert advised["linear"]["weight"] == "per_channel", found.advice
    assert (found.advice.per_tensor, found.advice.layers) == (0, 2)  # weights of calls count too


READ = """
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    \"\"\"Linear layers whose weights are read by who holds them: they themselves are never called.\"\"\"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.qkv, self.head = nn.Linear(8, 8, bias=False), nn.Linear(8, 4)
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        x = self.attn(x, x, x)[0]
        x = F.linear(x, self.qkv.weight, torch.cat((self.bias, self.bias)))
        return F.linear(x.relu(), self.head.weight, self.head.bias)


def data():
    yield {"x": np.random.default_rng(0).standard_normal((32, 5, 8), np.float32)}
"""


def test_layers_that_are_read_and_never_called_are_analyzed(tmp_path):
    (tmp_path / "nets.py").write_text(READ)
    recipe = tmp_path / "r.yaml"
    source = {"calibration": {"callable": "nets.py:data"}}
    told = {"version": 1, "model": {"callable": "nets.py:Net"}, "data": source}
    recipe.write_text(yaml.safe_dump(told))
    found = analyzed(recipe, tmp_path / "run")
    ranked = {each.layer for each in found.layers if each.alone is not None}
    assert ranked == {"attn.linear", "attn.out_proj", "qkv", "head"}
