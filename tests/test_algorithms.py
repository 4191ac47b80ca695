"""run_algorithm: modelopt's smoothquant and awq_lite, as a float network that computes the same."""

from __future__ import annotations

import copy

import modelopt.torch.quantization as mtq
import pytest
import torch
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
    ],
)
def test_an_algorithm_that_does_not_fit_is_refused(model, data, recipe, method, match, said):
    with pytest.raises(RecipeError, match=said.replace("?", r"\?")):
        granplugin.run_algorithm(model, recipe, data, lambda net: net(data), method, match)
