"""Products that no module stands for - calls of functions - are layers like any other."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from conftest import Project
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import granplugin
import granplugin.modelopt_bridge as bridge
from granplugin.modelopt_bridge.library import mto, mtq
from granplugin.network import call_quantizers
from granplugin.network.forward import call
from granplugin.network.opened import opened
from granplugin.network.trace import trace

NETS = '''
"""Own forwards and functions, as networks of the wild have them."""

import torch
from torch import nn
from torch.nn import functional as F


class Std(nn.Conv2d):
    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w / w.std((1, 2, 3), keepdim=True), self.bias, 1, self.padding)


class Same(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


class Own(nn.Module):
    def __init__(self, given, made):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(made, given)), nn.Parameter(torch.randn(made))

    def forward(self, x):
        return F.linear(2 * x, self.w, self.b)


class Lora(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.down = nn.Parameter(torch.randn(2, self.in_features))
        self.up = nn.Parameter(torch.randn(self.out_features, 2))

    def forward(self, x):
        return super().forward(x) + F.linear(F.linear(x, self.down), self.up)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.std, self.same = Std(1, 32, 3, padding=1), Same(32, 32, 3, bias=False)
        self.bn = nn.BatchNorm2d(32)
        self.kernel = nn.Parameter(torch.randn(32, 1, 3, 3))
        self.around, self.left = nn.BatchNorm2d(32), nn.Parameter(torch.randn(32, 16))
        self.own, self.lora = Own(16, 16), Lora(16, 4)
        self.mha = nn.MultiheadAttention(32, 2, batch_first=True)
        self.register_buffer("hidden", torch.arange(49) % 2 == 1)
        for bn in (self.bn, self.around):
            bn.running_mean.normal_()
            bn.running_var.uniform_(0.5, 2)

    def forward(self, image):
        x = self.bn(self.same(self.std(image).relu())).relu()
        y = self.around(F.conv2d(x, self.kernel, padding=1, groups=32))
        tokens = (x + y).flatten(2).transpose(1, 2)
        seen = tokens.flip(1)  # so its one weight is split: of queries, of keys and values
        tokens = tokens + self.mha(tokens, seen, seen, need_weights=False)[0]
        causal = F.scaled_dot_product_attention(tokens, tokens, tokens, is_causal=True)
        shares = (torch.bmm(causal, tokens.mT) / 8).masked_fill(self.hidden, -1e9).softmax(-1)
        x = torch.bmm(shares, tokens).mean(1) @ self.left
        return self.lora(self.own(x).relu())
'''
CALLED = {
    "std": "Conv2d", "same": "Conv2d", "conv2d": "Conv2d",
    "mha.linear": "Linear", "mha.linear_1": "Linear",
    "mha.matmul": "MatMul", "mha.matmul_1": "MatMul", "mha.out_proj": "Linear",
    "matmul": "MatMul", "matmul_1": "MatMul", "bmm": "MatMul", "bmm_1": "MatMul",
    "matmul_2": "Linear", "own": "Linear",
    "lora.linear": "Linear", "lora.linear_1": "Linear", "lora.linear_2": "Linear",
}  # fmt: skip


@pytest.fixture(scope="module")
def called(tmp_path_factory) -> Project:
    """A run of what has no module that modelopt knows."""
    project = Project(tmp_path_factory.mktemp("called"))
    project.write("nets.py", NETS)
    project.recipe(model={"callable": "nets.py:Net"})
    assert project.apply().code == 0
    return project


@pytest.fixture(scope="module")
def make():
    """Makes the network."""
    names: dict = {}
    exec(NETS, names)
    return lambda: names["Net"]().eval()


def test_calls_are_layers_named_after_their_module_and_function(make):
    model, image = make(), torch.randn(2, 1, 8, 8)
    traced = trace(model, image)
    products = [layer for layer in traced.layers if layer.multiplied]
    assert {layer.name: layer.type for layer in products} == CALLED
    assert not any(layer.unusable for layer in products)
    assert [layer.name for layer in products if not layer.call] == [], "it is read, not called"
    assert traced.batch_norms == {"same": "bn", "conv2d": "around"}
    by_name = {layer.name: layer for layer in traced.layers}
    assert by_name["conv2d"].traits >= {"depthwise"} and by_name["conv2d"].site("skip")
    assert by_name["matmul_2"].shape("weight") == (16, 32), "as a linear layer has it"
    for scores, values in (
        ("mha.matmul", "mha.matmul_1"),
        ("matmul", "matmul_1"),
        ("bmm", "bmm_1"),
    ):
        assert "attention_scores" in by_name[scores].traits
        assert "attention_values" in by_name[values].traits
        assert by_name[values].shape("other")[-2] == 49
    assert [each.place for each in traced.products] == list(CALLED), "counted where they are called"
    assert trace(make(), image).layers == traced.layers


def test_every_product_of_a_call_is_quantized_and_as_modelopt_computes_it(called):
    report = called.report()
    coverage = report.variants[-1].coverage
    assert (coverage.quantized, coverage.products, coverage.half) == (len(CALLED), len(CALLED), 0)
    assert coverage.quantized_weights == coverage.weights
    plan = json.loads((called.folder / "runs/recipe/plan.json").read_text())["variants"]["recipe"]
    assert {row["bn"] for row in plan if row["layer"] in ("same", "conv2d")} == {"fold"}
    agreement = report.variants[-1].agreement
    assert agreement.oracle_differs == agreement.modelopt_differs == 0
    assert agreement.network_sqnr_db > 50


def test_quantizers_of_calls_are_saved_and_restored(make, tmp_path):
    image = torch.randn(16, 1, 8, 8)
    recipe = {"version": 1, "defaults": "tensorrt@11"}
    model = granplugin.prepare(make(), recipe, image)
    before = model(image)
    config = granplugin.modelopt_config(recipe, model)
    model = mtq.quantize(model, config, lambda net: net(image))
    mto.save(model, tmp_path / "model.pt")
    restored = mto.restore(granplugin.prepare(make(), recipe, image), tmp_path / "model.pt")
    for each in (restored.eval(), copy.deepcopy(model).eval()):
        with torch.no_grad():
            assert torch.equal(each(image), model(image))
    assert not torch.equal(before, model(image))
    model(image).sum().backward()
    assert model.kernel.grad.any() and model.std.weight.grad.any(), "trained through rounding"
    granplugin.export_onnx(model.eval(), image, tmp_path / "model.onnx")


def test_a_call_keeps_off_names_that_its_module_has():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.w = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return F.linear(self.linear(x) + F.linear(x, self.w), self.w)

    found = [layer.name for layer in trace(Net().eval(), torch.ones(2, 4)).layers]
    assert found == ["linear", "linear_1", "linear_2"]


def test_a_product_that_no_engine_quantizes_says_why():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.head = nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 4)

        def forward(self, x):
            left = 2 * self.w @ x  # (4, 4) by (n, 4, 4)
            moved = F.conv1d(x, torch.relu(x[:1, :, :2]))
            constant = self.w @ self.w
            return self.head(left @ constant) + moved.mean() + (x @ self.w[0]).sum()

    layers = {layer.name: layer for layer in trace(Net().eval(), torch.randn(2, 4, 4)).layers}
    assert "first operand" in layers["matmul"].unusable
    assert "computed from the data" in layers["conv1d"].unusable
    assert "no data reaches it" in layers["matmul_1"].unusable
    assert layers["matmul_2"].unusable is None, "a constant is computed once"
    assert "vector" in layers["matmul_3"].unusable


HEADS = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 6, 8), torch.randn(2, 4, 6, 8)
PAIRS = torch.randn(2, 1, 5, 6)
PAIRS[0, 0, 1] = -math.inf  # of which all is masked
ATTENTIONS = [
    {}, {"scale": 0.3}, {"is_causal": True}, {"attn_mask": PAIRS}, {"attn_mask": PAIRS > 0},
    {"attn_mask": torch.zeros(5, 6, dtype=torch.bool)}, {"enable_gqa": True},
]  # fmt: skip


@pytest.mark.parametrize("said", ATTENTIONS)
def test_attention_in_parts_is_what_torchs_one_function_computes(said):
    query, key, value = HEADS
    if "enable_gqa" in said:
        key, value = key[:, :2], value[:, :2]
    parts = opened(F.scaled_dot_product_attention, (query, key, value), said)
    whole = F.scaled_dot_product_attention(query, key, value, **said)
    torch.testing.assert_close(parts(query, key, value, **said), whole, rtol=1e-5, atol=1e-6)


def test_attention_that_drops_at_random_stays_whole():
    assert opened(F.scaled_dot_product_attention, HEADS, {"dropout_p": 0.1}) is None


def test_without_quantizers_a_converted_attention_computes_the_same(make):
    image = torch.randn(16, 1, 8, 8)
    before, layers = make()(image), trace(make(), image).layers
    model, _ = bridge.convert(make(), [], lambda net: None, layers)
    torch.testing.assert_close(model(image), before, rtol=1e-4, atol=1e-5)


def test_what_a_forward_that_raised_had_entered_is_left():
    model = nn.Sequential(nn.Linear(2, 2))
    quantizers = call_quantizers.CallQuantizers(model)
    with call_quantizers.left_behind():  # an exporter runs no hook behind it
        for module in model.modules():
            quantizers._enter(module, ())
    assert not call_quantizers._RUNNING.modes and not call_quantizers._RUNNING.frames


@pytest.mark.parametrize("what", ["vmap", "script", "function"])
def test_data_reach_what_is_computed_unseen(what):
    """So a product of two of them has no weight."""
    unseen = {
        "vmap": torch.vmap(lambda x: x + 1),
        "script": torch.jit.script(_plus_one),
        "function": _PlusOne.apply,
    }[what]

    class Net(nn.Module):
        def forward(self, x):
            y = unseen(x)
            return (y @ y.mT).softmax(-1) @ y

    layers = {each.name: each for each in trace(Net(), torch.ones(2, 3, 4)).layers}
    assert {each.type for each in layers.values()} == {"MatMul"}
    assert "attention_values" in layers["matmul_1"].traits


def _plus_one(x: torch.Tensor) -> torch.Tensor:
    return x + 1


class _PlusOne(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x + 1


def test_what_dispatch_counts_is_found(make):
    products = trace(make(), torch.randn(2, 1, 8, 8)).products
    assert {product.place for product in products} == CALLED.keys()
    counted = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH):  # torch counts nothing of the CPU's fused kernel
        call(make(), torch.randn(2, 1, 8, 8), counted)
    flops = counted.get_total_flops() // 2  # of two samples, two a multiply-accumulate
    assert sum(product.macs for product in products) == flops // 2


def test_the_shares_of_an_attention_may_be_its_second_factor():
    class Net(nn.Module):
        """As in YOLO11: values by shares, transposed."""

        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(4, 4) for _ in "qkv")

        def forward(self, x):
            shares = (self.q(x) @ self.k(x).mT).softmax(-1)
            return self.v(x).mT @ shares.mT

    layers = {layer.name: layer.traits for layer in trace(Net().eval(), torch.ones(2, 3, 4)).layers}
    assert "attention_scores" in layers["matmul"] and "attention_values" in layers["matmul_1"]
