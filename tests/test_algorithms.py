"""modelopt's smoothquant, awq_lite and svdquant, by run_algorithm or a rule, as a float network that
computes the same."""

from __future__ import annotations

import copy
import json

import modelopt.torch.quantization as mtq
import numpy as np
import onnx
import pytest
import torch
from conftest import run_main
from torch import nn

import granplugin
from granplugin.errors import RecipeError
from granplugin.network.trace import trace


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 1)
        self.a = nn.Linear(64, 32)
        self.b = nn.Linear(32, 8)

    def forward(self, x):
        return self.b(self.a(self.conv(x).flatten(1)).relu())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def data():
    # Channels whose ranges differ, which one scale for the tensor serves badly.
    torch.manual_seed(1)
    return torch.randn(32, 1, 4, 4) * torch.linspace(0.02, 9, 16).reshape(1, 1, 4, 4)


INT8 = {"version": 1, "defaults": {"bn": "keep"},
        "rules": [{"match": "a", "format": "int8", "weight": "per_channel"}]}  # fmt: skip
INT4 = {"version": 1, "defaults": {"bn": "keep"},
        "rules": [{"match": {"type": "Linear"}, "half": "allow",
                   "weight": {"format": "int4", "per_block": {"size": 16}}}]}  # fmt: skip


def loss(model, data, recipe, reference):
    """Squared error of the output, quantized as a script does it."""
    ready = granplugin.prepare(model, recipe, data)
    made = mtq.quantize(ready, granplugin.modelopt_config(recipe, ready), lambda net: net(data))
    with torch.no_grad():
        return float((made(data) - reference).square().mean())


@pytest.mark.parametrize(("recipe", "method"), [(INT8, "smoothquant"), (INT4, "awq_lite")])
def test_the_float_network_stays_and_the_quantized_one_is_nearer(model, data, recipe, method):
    with torch.no_grad():
        before = model(data)
        changed = granplugin.run_algorithm(model, recipe, data, lambda net: net(data), method)
        assert torch.allclose(changed(data), before, rtol=1e-4, atol=1e-5)
        assert torch.equal(model(data), before)
    assert not torch.equal(changed.a.weight, model.a.weight)
    assert [layer.name for layer in trace(changed, data).layers] == ["conv", "a", "b"]
    assert loss(changed, data, recipe, before) < loss(copy.deepcopy(model), data, recipe, before)


SVD = {"method": "svdquant", "lowrank": 4}


@pytest.fixture(scope="module")
def directed(model):
    """The network, of which four directions hold most of a weight."""
    made = copy.deepcopy(model)
    torch.manual_seed(2)
    with torch.no_grad():
        made.a.weight += torch.randn(32, 4) @ torch.randn(4, 64)
    return made


def test_svdquant_keeps_the_part_of_low_rank_beside_the_layer(directed, data):
    with torch.no_grad():
        before = directed(data)
        changed = granplugin.run_algorithm(directed, INT4, data, lambda net: net(data), SVD, "a")
        assert torch.allclose(changed(data), before, rtol=1e-4, atol=1e-4)
        down, up = changed.a.low_rank
        whole = (changed.a.weight + up.weight @ down.weight) * changed.a.input_scale
    assert torch.allclose(whole, directed.a.weight, atol=1e-5)
    _, a, *branch, b = trace(changed, data).layers
    assert [a.unusable, b.unusable] == [None, None]
    assert {each.unusable for each in branch} == {"low-rank branch of svdquant"}
    alone = {**INT4, "rules": [*INT4["rules"], {"match": "b", "format": "float"}]}
    plain = loss(copy.deepcopy(directed), data, alone, before)
    branched = loss(changed, data, alone, before)
    assert branched < plain / 4


def test_the_scales_are_modelopts_own(model, data):
    changed = granplugin.run_algorithm(
        model, INT8, data, lambda net: net(data), {"method": "smoothquant", "alpha": 0.5}, "a"
    )
    seen = model.conv(data).flatten(1).abs().amax(0)
    weight = model.a.weight.abs().amax(0)
    expected = (weight.sqrt() / seen.sqrt()).detach()
    assert torch.allclose(changed.a.input_scale / expected, torch.ones(64), rtol=1e-4)


@pytest.mark.parametrize(
    ("recipe", "method", "match", "said"),
    [
        (INT8, "smothquant", "**", "did you mean 'smoothquant'?"),
        (INT8, "smoothquant", "conv", "'conv' is a Conv2d, and it is for linear layers"),
        (INT8, "smoothquant", "b", "'b' has a float weight by defaults"),
        (INT4, "smoothquant", "a", "'a' has a float input by defaults"),
        (INT8, "awq_lite", "c", "'c' matches no layer"),
        (INT4, "svdquant", "b", "weight of 8 x 32, of which such a rank leaves nothing"),
    ],
)
def test_an_algorithm_that_does_not_fit_is_refused(model, data, recipe, method, match, said):
    with pytest.raises(RecipeError, match=said.replace("?", r"\?")):
        granplugin.run_algorithm(model, recipe, data, lambda net: net(data), method, match)


NET = """
import torch
from test_algorithms import Net

def net():
    torch.manual_seed(0)
    return Net().eval()

def batches():
    torch.manual_seed(1)
    yield torch.randn(32, 1, 4, 4) * torch.linspace(0.02, 9, 16).reshape(1, 1, 4, 4)
"""


def recipe_of(tmp_path, rules, **more):
    (tmp_path / "net.py").write_text(NET)
    return {
        "version": 1, "defaults": {"bn": "keep", "weight": "per_channel", "input": "per_tensor"},
        "model": {"callable": f"{tmp_path}/net.py:net"},
        "data": {"calibration": {"callable": f"{tmp_path}/net.py:batches"}},
        "engines": ["onnxruntime"], "optional_engines": [], "baselines": ["fp32"], "rules": rules,
        **more,
    }  # fmt: skip


def test_a_rule_lets_modelopt_change_its_layers_and_no_other(model, data, tmp_path):
    recipe = recipe_of(tmp_path, [{"id": "smooth", "match": "a", "algorithm": "smoothquant"}])
    done = granplugin.apply(recipe, out=tmp_path / "run")
    assert done.exit_code == 0
    part = {key: recipe[key] for key in ("version", "defaults")}
    changed = granplugin.run_algorithm(model, part, data, lambda net: net(data), "smoothquant", "a")
    written = onnx.load(tmp_path / "run" / "float.onnx").graph.initializer
    weights = {str(each.name): onnx.numpy_helper.to_array(each) for each in written}
    for layer in ("a", "b"):
        weight = changed.get_submodule(layer).weight.detach().numpy()
        assert any(np.array_equal(weight, each) for each in weights.values()), layer
    assert any(np.array_equal(changed.a.input_scale, each) for each in weights.values())
    assert "smoothquant changed the weights of 1 layer" in " ".join(done.report.notes)
    told = granplugin.plan(recipe, out=tmp_path / "run").why("a")
    assert "=> its weight is changed first: smoothquant" in told


def test_svdquant_by_a_rule_leaves_its_branch_float_in_the_file(tmp_path):
    rules = [*INT4["rules"], {"match": "a", "algorithm": SVD}]
    done = granplugin.apply(recipe_of(tmp_path, rules), out=tmp_path / "run")
    assert done.exit_code == 0
    (own,) = (each for each in done.report.variants if each.kind == "recipe")
    graph = onnx.load(tmp_path / "run" / "variants" / own.name / "model.onnx").graph
    made = {node.output[0]: node for node in graph.node}
    read = {node.name: [made[x].op_type for x in node.input if x in made] for node in graph.node}
    assert read["a/Gemm"] == ["DequantizeLinear"] * 2
    assert read["a.low_rank.0/Gemm"] == ["Mul"] and read["a.low_rank.1/Gemm"] == ["Gemm"]
    told = [(each.reason, each.products) for each in own.coverage.floats]
    assert told == [("low-rank branch of svdquant", 2)]


@pytest.mark.parametrize(
    ("rules", "more", "said"),
    [
        ([{"match": "**", "algorithm": "smoothquant"}], {}, "'conv' is a Conv2d, and it is for"),
        ([{"match": "a", "format": "float"}, {"match": "a", "algorithm": "smoothquant"}], {},
         "'a' has a float weight by rule 1"),
        ([{"match": "a", "half": "allow", "input": "float"},
          {"match": {"type": "Linear"}, "algorithm": "smoothquant"}], {}, "'a' has a float input"),
        ([{"match": "a", "algorithm": {"method": "svdquant", "lowrank": 0.5}}], {}, "a whole number"),
        ([{"match": "a", "algorithm": SVD, "output": {"format": "int8"}}], {}, "a quantized output"),
        ([{"match": "a", "algorithm": "gptq"}], {}, "it rounds the weights it finds itself"),
        ([{"match": "a", "algorithm": {"method": "awq_lite", "alpha": 1}}], {}, "alpha_step"),
        ([{"id": "s", "match": "a", "algorithm": "smoothquant"}],
         {"variants": {"plain": {"drop": ["s"]}}}, "one float network"),
        ([{"match": "a", "algorithm": "awq_lite"}], {"model": {"onnx": "a.onnx"}}, "names a file"),
    ],
)  # fmt: skip
def test_a_rule_whose_algorithm_does_not_fit_is_refused_at_its_line(tmp_path, rules, more, said):
    (tmp_path / "a.onnx").touch()
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(recipe_of(tmp_path, rules, **more), indent=1))
    done = run_main("plan", path, "--out", tmp_path / "run")
    assert done.code == 2 and said in done.stderr and f"{path.name}:" in done.stderr


def test_what_takes_no_algorithm_says_so(model, data):
    recipe = {**INT8, "rules": [*INT8["rules"], {"match": "a", "algorithm": "smoothquant"}]}
    with pytest.raises(RecipeError, match=r"call granplugin\.run_algorithm first"):
        granplugin.prepare(model, recipe, data)
    again = [*recipe["rules"], {"match": "a", "algorithm": "none"}]
    granplugin.prepare(copy.deepcopy(model), {**recipe, "rules": again}, data)
