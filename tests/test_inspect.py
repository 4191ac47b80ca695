"""inspect: what weights are like, and the verb that tells it without data or modelopt."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from conftest import ROOT, run_main, too_wide
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from granplugin.network.modules import stored_of
from granplugin.network.trace import trace
from granplugin.quant.folding import channel_ranges
from granplugin.quant.multiplications import macs
from granplugin.report.render.names import cut

CHANNELS = 8


@st.composite
def layers_with_batch_norms(draw):
    """(module, bn, its Layer): any weighted type, with statistics of all sizes."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    groups = draw(st.sampled_from([1, 2, 8]))
    kind = draw(st.sampled_from(["Linear", "Conv2d", "ConvTranspose2d", "Conv1d"]))
    if kind == "Linear":
        module, bn, x = nn.Linear(8, CHANNELS), nn.BatchNorm1d(CHANNELS), torch.ones(2, 8)
    else:
        rank = int(kind[-2])
        module = getattr(nn, kind)(8, CHANNELS, 3, groups=groups, bias=draw(st.booleans()))
        bn = getattr(nn, f"BatchNorm{rank}d")(CHANNELS)
        x = torch.ones(2, 8, *(5,) * rank)
    with torch.no_grad():
        module.weight *= 10.0 ** draw(st.integers(-4, 4))
        bn.weight.normal_()
        bn.running_var.uniform_(1e-3, 10.0 ** draw(st.integers(-2, 4)))
    (layer,) = (found for found in trace(nn.Sequential(module, bn), x).layers if found.bn)
    return module, bn, layer


@settings(max_examples=40, deadline=None)
@given(layers_with_batch_norms())
def test_facts_behind_a_batch_norm_are_those_of_the_folded_weight(case):
    module, bn, layer = case
    facts = stored_of(module).facts(bn)
    for weight, ranges in (
        (module.weight.detach().numpy(), facts.ranges_before),
        (stored_of(module).folded(bn)[0], facts.ranges_after),
    ):
        assert np.array_equal(ranges, channel_ranges(weight, stored_of(module).axis, layer.groups))
        assert ranges.max() == abs(weight).max()
    assert facts.spread_after == layer.spread
    assert facts.spread_after == max(facts.ranges_after) / np.median(facts.ranges_after)


@settings(max_examples=40, deadline=None)
@given(layers_with_batch_norms(), st.integers(0, CHANNELS - 1), st.integers(0, CHANNELS - 1))
def test_a_channel_scaled_by_its_batch_norm_is_the_widest_only_after_folding(case, wide, dead):
    module, bn, _ = case
    with torch.no_grad():
        bn.weight.copy_(torch.sqrt(bn.running_var + bn.eps))
        bn.weight[wide] *= 1e4
        if dead != wide:
            bn.weight[dead] = 0
    untouched = stored_of(module).facts(None)
    facts = stored_of(module).facts(bn)
    assert facts.widest_after == wide and facts.outliers_after == (wide,)
    assert facts.dead_after == ((dead,) if dead != wide else ())
    assert facts.spread_after > 100 * facts.spread_before
    assert np.array_equal(facts.ranges_before, untouched.ranges_before)
    assert np.array_equal(untouched.ranges_after, untouched.ranges_before)
    assert facts.outliers_before == facts.dead_before == ()


def test_a_weight_of_zeros_is_dead_and_has_no_spread():
    module = nn.Conv2d(2, 3, 1)
    nn.init.zeros_(module.weight)
    facts = stored_of(module).facts(None)
    assert facts.dead_after == (0, 1, 2)
    assert (facts.spread_after, facts.widest_after, facts.outliers_after) == (None, None, ())


# ---- the verb -----------------------------------------------------------------------------------


def look(recipe: str | Path, out: Path, *more: object) -> dict:
    """What `inspect --json` prints, valid by its schema."""
    done = run_main("inspect", recipe, "--out", out, "--json", *more)
    assert (done.code, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    jsonschema.validate(told, json.loads(run_main("schema", "inspect").stdout))
    return told


def layers_of(told: dict) -> dict[str, dict]:
    return {layer["name"]: layer for layer in told["layers"]}


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory) -> tuple[dict, str]:
    """The shipped MobileNet, as JSON and as text."""
    recipe, out = "recipes/digits_mobilenet.yaml", tmp_path_factory.mktemp("inspected")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        told = look(recipe, out)
        done = run_main("inspect", recipe, "--out", out)
    assert (done.code, done.stderr) == (0, "")
    return told, done.stdout


def test_inspect_finds_the_layer_that_the_shipped_recipe_rescues(mobilenet):
    told, text = mobilenet
    layers = layers_of(told)
    weighted = [layer for layer in told["layers"] if layer["weight"]]
    widest = max(weighted, key=lambda layer: (layer["folded"] or layer["weight"])["spread"])
    assert widest["name"] == "features.1.depthwise.conv"
    assert widest["folded"]["spread"] > 100 > 10 > widest["weight"]["spread"]
    assert widest["folded"]["outliers"][0] == widest["folded"]["widest"]
    said = f"{widest['name']}: channel {widest['folded']['widest']}'s range is"
    assert said in text
    assert (len(weighted), sum(layer["bn"] is not None for layer in weighted)) == (53, 52)
    assert layers["features.0.conv"]["traits"] == ["first"]
    assert (widest["rules"], widest["defaults"][0]["granularity"]) == ([], "per_channel")
    changed = {row["role"]: row for row in layers["features.3.project.conv"]["rules"]}
    assert changed["weight"]["granularity"] == "per_tensor"
    assert changed["skip"]["format"] == "float"
    assert {row["rule"] for row in changed.values()} == {"coarse"}


def test_inspect_prints_every_layer_with_a_weight_in_80_columns(mobilenet):
    told, text = mobilenet
    lines = text.splitlines()
    # A line to paste is as long as it is.
    assert all(len(line) <= 80 for line in lines if not line.startswith("next: "))
    for layer in told["layers"]:
        if layer["weight"]:
            shape = "x".join(map(str, layer["weight_shape"]))
            assert any(line.split()[:2] == [layer["name"], shape] for line in lines)


def test_the_documents_show_what_inspect_prints(mobilenet):
    page = (ROOT / "docs/rules.md").read_text(encoding="utf-8")
    shown = page.partition("$ granplugin inspect recipes/digits_mobilenet.yaml\n")[2]
    lines = shown.partition("```")[0].splitlines()
    assert len(lines) > 15
    assert set(lines) - {"..."} <= set(mobilenet[1].splitlines())


def test_multiply_accumulates_are_half_of_the_operations_torch_counts():
    class Ups(nn.Sequential):
        def forward(self, x):
            return super().forward(self[0](x))

    ups = Ups(
        nn.Conv2d(4, 4, 3, padding=1), nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),
        nn.Flatten(2), nn.Linear(100, 3),
    )  # fmt: skip
    x = torch.ones(1, 4, 5, 5)
    with FlopCounterMode(display=False) as counter:
        ups(x)
    assert 2 * sum(macs(layer) or 0 for layer in trace(ups, x).layers) == counter.get_total_flops()


def test_inspect_imports_no_modelopt_and_reads_one_batch(project, forks):
    project.write(
        "data.py",
        "import numpy as np\n"
        "def batches():\n"
        "    yield {'image': np.ones((16, 1, 8, 8), np.float32)}\n"
        "    raise SystemError('read on')\n",
    )
    data = {"calibration": {"callable": "data.py:batches"}}
    recipe = project.recipe(data=data, metrics=["agreement"])
    script = (
        "import sys\n"
        "for name in [n for n in sys.modules if n.startswith(('modelopt', 'granplugin'))]:\n"
        "    del sys.modules[name]\n"
        "from granplugin.__main__ import main; code = main(sys.argv[1:])\n"
        "print('modelopt' in sys.modules); sys.exit(code)"
    )
    argv = ["inspect", str(recipe), "--out", str(project.out)]
    done = forks.run(["-c", script, *argv])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    assert "parameters" in done.stdout


def test_without_its_data_the_weights_are_told_all_the_same(project):
    recipe = project.recipe(rules=[{"match": {"trait": "last"}, "weight": "per_tensor"}])
    whole = layers_of(look(recipe, project.out))
    (project.folder / "data.npz").unlink()
    told = look(recipe, project.out)
    bare = layers_of(told)
    assert "data.npz: no such file" in told["missing"]
    assert bare.keys() == whole.keys()
    for name, layer in bare.items():
        for key in ("type", "weight", "weight_shape", "parameters"):
            assert layer[key] == whole[name][key]
        assert (layer["input_shape"], layer["folded"], layer["calls"]) == (None, None, None)
    assert [row["granularity"] for row in bare["head"]["defaults"]] == ["per_channel"]
    text = run_main("inspect", recipe, "--out", project.out).stdout
    assert " ".join(text.split()).count("no forward pass could be run") == 1
    assert run_main("plan", recipe, "--out", project.out).code == 2


def test_rules_that_fit_no_layer_are_refused_but_the_layers_are_shown(project):
    recipe = project.recipe(rules=[{"match": "hed", "weight": "per_tensor"}])
    done = run_main("inspect", recipe, "--out", project.out)
    assert done.code == 2
    assert "'hed' matches no layer; nearest: 'head'" in done.stderr
    assert "head" in done.stdout and "per_channel" in done.stdout
    assert not project.out.exists()


ODD = '''
import torch
from torch import nn


class Odd(nn.Module):
    """A layer that never runs, one that runs twice, an embedding whose weight is read, a
    parameter, and a batch norm that has to stay: two layers read what is before it."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Embedding(8, 8)
        self.shift = nn.Parameter(torch.zeros(8, 8))
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.never = nn.Conv2d(4, 4, 1)
        self.a_module_with_a_long_name = nn.Sequential(nn.Sequential(nn.Linear(8, 8)))
        self.a_module_with_a_long_name[0].named_to_be_cut_somewhere = nn.Linear(8, 8)

    def forward(self, image):
        x = self.conv(image)
        x = self.bn(x) + x + self.positions.weight + self.shift
        return self.a_module_with_a_long_name(self.a_module_with_a_long_name(x)).flatten(1)
'''


def test_what_cannot_be_quantized_or_folded_is_told_with_its_reason(project):
    project.write("nets.py", ODD)
    recipe = project.recipe(model={"callable": "nets.py:Odd"}, metrics=["agreement"])
    told = look(recipe, project.out)
    layers = layers_of(told)
    assert layers["never"]["unusable"] == "never runs in the forward pass"
    assert (layers["never"]["calls"], layers["never"]["defaults"]) == (0, [])
    assert layers["never"]["weight"]["spread"] >= 1
    long = "a_module_with_a_long_name.0.named_to_be_cut_somewhere"
    assert layers[long]["calls"] == layers["a_module_with_a_long_name.0.0"]["calls"] == 2
    assert layers["conv"]["bn"] is layers["conv"]["folded"] is None
    assert told["others"] == [{"type": "Odd", "modules": 1, "parameters": 64}]
    assert told["parameters"] == 64 + sum(layer["parameters"] for layer in told["layers"])
    text = run_main("inspect", recipe, "--out", project.out).stdout
    assert not too_wide(text)
    assert "cannot be quantized: never: never runs in the forward pass" in text
    assert "the module is never called: its weight is read directly" in " ".join(text.split())
    assert "batch norms that cannot be folded: bn" in text
    assert "never quantized: 1 Odd (64 parameters)" in text


@pytest.mark.parametrize("rule", [{"input": {"calibrator": "entropy"}}, {"bn": "keep"}])
def test_a_rule_about_the_calibrator_or_the_batch_norm_alone_is_a_change_too(project, rule):
    recipe = project.recipe(rules=[{"match": "conv", **rule}])
    told = look(recipe, project.out)
    changed = {layer["name"]: layer["rules"] for layer in told["layers"] if layer["rules"]}
    assert changed.keys() == {"conv"}
    text = run_main("inspect", recipe, "--out", project.out).stdout
    what = "bn keep" if "bn" in rule else "input int8 per_tensor entropy"
    assert f"rules make it {what}: 1 layer: conv" in " ".join(text.split())


@given(st.lists(st.from_regex(r"[a-z_]{1,14}|\d{1,3}", fullmatch=True), min_size=1, max_size=8))
def test_a_name_that_is_cut_fits_and_keeps_its_numbers_where_parts_can_be_shortened(parts):
    name = ".".join(parts)
    short = cut(name, 24)
    assert len(short) == min(len(name), 24)
    if sum(min(len(part), 3) + 1 for part in parts) <= 24:
        assert [p for p in short.split(".") if p.isdigit()] == [p for p in parts if p.isdigit()]
