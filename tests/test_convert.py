"""convert: a config of modelopt's decides the same as a recipe; ranges of a checkpoint stay to the
bit; and what a recipe does not say is named."""

from __future__ import annotations

import fnmatch
import json

import numpy as np
import onnx
import pytest
import torch
import yaml
from conftest import NETS, run_main
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from granplugin.convert.checkpoint import ranges_of
from granplugin.network.trace import trace
from granplugin.planning.plan import make_plan
from granplugin.planning.quantize_config import attributes
from granplugin.recipe.glob import matcher
from granplugin.recipe.load import load_part
from granplugin.recipe.quant_cfg import rules_of
from granplugin.recipe.quotient import as_match, without_suffix

SUFFIX = ".weight_quantizer"
patterns = st.lists(
    st.sampled_from(
        ["*", "?", "[ab]", "[!a]", "a", "b", ".", "weight_quantizer", "_quantizer", "r"]
    ),
    max_size=5,
).map("".join)
names = st.text("ab.r", max_size=6)


@settings(max_examples=150, deadline=None)
@given(patterns, names)
def test_a_quotient_matches_a_layer_where_the_pattern_matches_its_quantizer(pattern, name):
    found = without_suffix(pattern, SUFFIX)
    expected = fnmatch.fnmatchcase(name + SUFFIX, pattern)
    assert any(fnmatch.fnmatchcase(name, each) for each in found) == expected
    if found:
        assert matcher(as_match(found))(name) == expected


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3, padding=1)
        self.body = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.lm_head = nn.Linear(8, 32)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.body:
            x = layer(x).relu()
        return self.lm_head(self.pool(x).flatten(1))


LAYERS = trace(Net(), torch.zeros(2, 4, 8, 8)).layers
settings_of = st.sampled_from(
    [
        {"num_bits": 8, "axis": None},
        {"num_bits": 8, "axis": 0},
        {"num_bits": (4, 3), "axis": None},
        {"num_bits": 8},
    ]
)
NAMES = [
    "*weight_quantizer",
    "*input_quantizer",
    "*",
    "*body*",
    "stem.*",
    "*.1.*",
    "lm_head*",
    "*pool*",
]


def entry(name, cfg, enable, parent):
    said = {"quantizer_name": name}
    said |= {"cfg": cfg} if enable else {"enable": False}
    return said | ({"parent_class": parent} if parent else {})


entries = st.builds(
    entry,
    st.sampled_from(NAMES),
    # One scale an output channel is of weights; an input has other axes.
    settings_of,
    st.booleans(),
    st.sampled_from([None, None, None, "nn.Conv2d", "nn.Linear"]),
).map(
    lambda each: (
        each
        if "weight" in each["quantizer_name"] or "axis" not in each.get("cfg", {})
        else each | {"cfg": {**each["cfg"], "axis": None}}
    )
)


def by_modelopt(config):
    """Enabled quantizers with bits and axis, by modelopt itself."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.nn import TensorQuantizer

    model = Net()
    mtq.replace_quant_module(model)
    mtq.set_quantizer_by_cfg(model, config["quant_cfg"])
    return {
        name: (each.num_bits, each.axis)
        for name, each in model.named_modules()
        if isinstance(each, TensorQuantizer) and each.is_enabled
    }


@settings(max_examples=25, deadline=None)
@given(st.lists(entries, min_size=1, max_size=5))
def test_the_rules_of_a_config_enable_the_same_quantizers_alike(listed):
    config = {"quant_cfg": [{"quantizer_name": "*", "enable": False}, *listed], "algorithm": "max"}
    converted = rules_of(config, "config")
    assert not converted.lost
    recipe = load_part({"version": 1, "defaults": {"bn": "keep"}, "rules": converted.rules})
    rows = make_plan(recipe, LAYERS).quantized
    found = {}
    for row in rows:
        said = attributes(row)
        axis = said["axis"]
        found[f"{row.site}_quantizer"] = (said["num_bits"], axis[0] if axis else None)
    expected = by_modelopt(config)
    # Where a tensor has one channel, an axis is one scale all the same.
    assert found == expected


def test_both_forms_are_read_and_what_is_not_in_a_recipe_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    older = {
        "quant_cfg": {
            "*weight_quantizer": {"num_bits": 4, "block_sizes": {"-1": 128}},
            "*input_quantizer": {"enable": False},
            "nn.BatchNorm2d": {"*": {"enable": False}},
            "*[kv]_bmm_quantizer": {"num_bits": 8},
            "default": {"enable": False},
        },
        "algorithm": {"method": "awq_lite"},
    }
    (tmp_path / "awq.json").write_text(json.dumps(older))
    done = run_main("convert", "awq.json")
    assert done.code == 0, done.stderr
    assert "not in it: algorithm: 'awq_lite' changes weights or ranges" in done.stdout
    assert "not in it: quant_cfg['*[kv]_bmm_quantizer']" in done.stdout
    text = (tmp_path / "awq_converted.yaml").read_text()
    assert "weight: {format: int4, granularity: {per_block: {size: 128, axis: -1}}, " in text
    assert text.count("# Not in it:") == 2
    load_part(tmp_path / "awq_converted.yaml")


def calibrated(model, prefix="_"):
    """The state dict of a network that pytorch-quantization calibrated, by its names."""
    state = dict(model.state_dict())
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            dims = tuple(range(1, layer.weight.dim()))
            state[f"{name}.{prefix}weight_quantizer._amax"] = (
                layer.weight.detach().abs().amax(dims, keepdim=prefix == "_")
            )
            state[f"{name}.{prefix}input_quantizer._amax"] = torch.tensor(1.7) / 3
    return state


@pytest.mark.parametrize("prefix", ["_", ""])
def test_ranges_of_a_checkpoint_are_kept_to_the_bit(project, monkeypatch, prefix):
    monkeypatch.chdir(project.folder)
    nets: dict = {}
    exec(NETS, nets)
    state = calibrated(nets["tiny"](), prefix)
    torch.save(state, "trained.pth")
    done = run_main("convert", "trained.pth", "--out", "base.yaml")
    assert done.code == 0, done.stderr
    assert {path.name for path in project.folder.glob("base.*")} == {
        "base.yaml", "base.amax.json", "base.safetensors",
    }  # fmt: skip
    recipe = project.recipe(
        extends="base.yaml", model={"callable": "nets.py:tiny", "weights": "base.safetensors"},
        baselines=["fp32"],
    )  # fmt: skip
    done = project.apply(recipe)
    assert done.code == 0, done.stderr
    graph = onnx.load_from_string(project.onnx()).graph
    held = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    scales = [held[node.input[1]] for node in graph.node if node.op_type == "DequantizeLinear"]
    expected = [
        (amax.float().numpy().reshape(-1) / np.float32(127))
        for name, amax in state.items()
        if name.endswith("._amax")
    ]
    for each in expected:
        assert any(np.array_equal(each, scale.reshape(-1)) for scale in scales)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stem._weight_quantizer._amax": torch.ones(5)}, "fits no axis of the weight"),
        ({"stem._input_quantizer._amax": torch.tensor(float("nan"))}, "a range is NaN"),
        ({"stem._input_quantizer._amax": torch.tensor(-1.0)}, "a range is NaN, infinite or neg"),
        (None, "holds no amax of a quantizer"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_sentence_and_nothing_is_written(
    tmp_path, monkeypatch, change, said
):
    monkeypatch.chdir(tmp_path)
    state = Net().state_dict() if change is None else calibrated(Net()) | change
    torch.save(state, "net.pth")
    done = run_main("convert", "net.pth")
    assert done.code == 2
    assert said in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]


@pytest.mark.parametrize(
    ("source", "content", "said"),
    [
        ("a.json", "[]", "no config of modelopt"),
        ("a.json", '{"quant_cfg": 3}', "quant_cfg is a list of entries or a dict"),
        ("a.json", '{"quant_cfg": [{"cfg": {}}]}', "an entry has a quantizer_name"),
        ("a.json", '{"quant_cfg": {"*": 3}}', "attributes are a dict"),
        ("a.json", "{", "a.json"),
        ("a.pth", "nothing", "a.pth"),
        ("modelopt.torch.quantization:NONE_CFG", None, "has no 'NONE_CFG'"),
    ],
)
def test_what_is_no_config_is_refused(tmp_path, monkeypatch, source, content, said):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / source).write_text(content)
    done = run_main("convert", source)
    assert done.code == 2
    assert said in done.stderr
    assert not list(tmp_path.glob("*_converted*"))


def test_a_preset_of_modelopt_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_main("convert", "modelopt.torch.quantization:INT8_DEFAULT_CFG")
    assert done.code == 0, done.stderr
    recipe = yaml.safe_load((tmp_path / "int8_default_cfg.yaml").read_text())
    assert recipe["rules"][0]["match"] == {"name": "**", "without": "call"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stem.weight_quantizer._amax": torch.ones(8)}, "some modelopt's (weight_quantizer)"),
        ({"stem._input_quantizer._pre_quant_scale": torch.ones(4)}, "smoothquant or awq"),
    ],
)
def test_quantizers_that_no_recipe_says_are_refused(tmp_path, monkeypatch, change, said):
    monkeypatch.chdir(tmp_path)
    torch.save(calibrated(Net()) | change, "net.pth")
    done = run_main("convert", "net.pth")
    assert (done.code, said in done.stderr) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]


def test_learned_ranges_and_ranges_of_two_axes_are_read_and_said():
    weight = torch.rand(4, 4).numpy()
    arrays = {
        "fc.weight": weight,
        "fc._weight_quantizer._amax": abs(weight).max(0),
        "fc._input_quantizer.clip.clip_value_min": np.float32(-3),
        "fc._input_quantizer.clip.clip_value_max": np.float32(2),
    }
    found = ranges_of(arrays, "net.pth")
    (rule,) = found.rules
    assert rule["input"]["amax"] == 3.0
    assert rule["weight"]["granularity"] == {"per_channel": {"axis": 1}}
    assert found.lost == [
        "fc.weight: its 4 ranges fit axes 0, 1; taken for axis 1, whose largest values are nearest"
    ]
