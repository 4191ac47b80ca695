"""The presets against what they are named after."""

import copy
import json
from importlib import metadata

import modelopt.torch.quantization as mtq
import pytest
import torch
from torch import nn

from granplugin.network.trace import trace
from granplugin.planning.plan import make_plan
from granplugin.recipe.load import load_recipe
from granplugin.recipe.presets import _MODELOPT_EXCLUDED


class Net(nn.Module):
    """One of every kind of layer, some in names that modelopt excludes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.act = nn.LeakyReLU()
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.instance = nn.InstanceNorm2d(8)
        self.max_pool = nn.MaxPool2d(2)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.up_grouped = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
        self.avg_pool = nn.AvgPool2d(4)
        self.router = nn.Conv2d(4, 4, 1)
        self.adaptive = nn.AdaptiveAvgPool2d(2)
        self.conv1d = nn.Conv1d(4, 8, 1)
        self.norm = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 8)
        self.lm_head = nn.Linear(8, 8)
        self.proj_out = nn.ModuleList([nn.Linear(8, 8)])
        self.mlp = nn.ModuleDict({"gate": nn.Linear(8, 8), "gate_proj": nn.Linear(8, 8)})

    def forward(self, x):
        x = self.act(self.bn(self.conv(x)))
        x = self.max_pool(self.instance(self.depthwise(x)))
        x = self.avg_pool(self.up_grouped(self.up(self.grouped(x))))
        x = self.conv1d(self.adaptive(self.router(x)).flatten(2)).transpose(1, 2)
        x = self.lm_head(self.fc(self.norm(x)))
        return self.mlp["gate_proj"](self.mlp["gate"](self.proj_out[0](x)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def example():
    return torch.randn(2, 3, 16, 16)


def plan_of(model, example, folder, preset):
    recipe = {
        "version": 1,
        "model": {"callable": "a:b"},
        "data": {"calibration": {"callable": "a:c"}},
        "defaults": preset,
    }
    path = folder / "r.yaml"
    path.write_text(json.dumps(recipe))
    return make_plan(load_recipe(path), trace(model, example).layers)


def test_modelopt_0_47_is_its_int8_default_cfg(model, example, tmp_path):
    plan = plan_of(model, example, tmp_path, "modelopt@0.47")
    quantized = mtq.quantize(
        copy.deepcopy(model), copy.deepcopy(mtq.INT8_DEFAULT_CFG), lambda net: net(example)
    )
    modules = dict(quantized.named_modules())
    assert {row.layer for row in plan.rows} == {
        name.rpartition(".")[0] for name in modules if name.endswith(".input_quantizer")
    }
    for row in plan.rows:
        quantizer = modules[f"{row.layer}.{row.operand}_quantizer"]
        assert row.quantized == quantizer.is_enabled, row.site
        if row.quantized:
            assert (row.format, quantizer.num_bits) == ("int8", 8)
            assert row.amax is None and str(row.calibrator) == "max"
            scales = tuple(quantizer.amax.shape) or (1,) * len(row.shape)
            assert row.grid == scales, row.site
    assert plan.folded == set()


def test_tensorrt_11_quantizes_weighted_layers_alone(model, example, tmp_path):
    plan = plan_of(model, example, tmp_path, "tensorrt@11")
    weighted = {name for name, module in model.named_modules() if hasattr(module, "weight")}
    weighted -= {"bn", "norm", "instance"}
    sites = {f"{name}.{role}" for name in weighted for role in ("weight", "input")}
    assert {row.site for row in plan.quantized} == sites
    by_site = {row.site: row for row in plan.rows}
    for name in weighted:
        assert by_site[f"{name}.input"].scales == 1
        outputs = model.get_submodule(name).bias.shape[0]
        assert by_site[f"{name}.weight"].scales == (1 if name == "up_grouped" else outputs)
    assert by_site["up.weight"].grid == (1, 6, 1, 1)
    assert plan.folded == {"conv"}


def test_the_names_modelopt_excludes_are_all_known():
    if not metadata.version("nvidia-modelopt").startswith("0.47."):
        pytest.skip("modelopt@0.47 is what 0.47 excludes, and another version is installed")
    names = [
        entry["quantizer_name"]
        for entry in mtq.INT8_DEFAULT_CFG["quant_cfg"]
        if entry.get("enable") is False and "parent_class" not in entry
    ]
    assert ["*", *_MODELOPT_EXCLUDED] == names
