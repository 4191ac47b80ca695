"""convert --to: what a recipe decides, in the words of modelopt and of pytorch-quantization, means
the same there."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_main
from hypothesis import given, settings
from hypothesis import strategies as st
from test_convert import LAYERS, Net, by_modelopt, entries
from torch import nn

from granplugin.calibration.statistics import export_amax
from granplugin.convert.to_pytorch_quantization import program
from granplugin.convert.to_quant_cfg import quant_cfg, written
from granplugin.network.trace import trace
from granplugin.planning.plan import make_plan
from granplugin.quant.formats import FORMATS, fake_quantize, scale_of
from granplugin.quant.granularity import reduce_blocks
from granplugin.recipe.load import load_part
from granplugin.recipe.quant_cfg import rules_of
from granplugin.recipe.source import parse_value


def plan_of(rules, **more):
    part = {"version": 1, "defaults": {"bn": "keep"}, "rules": rules, **more}
    return make_plan(load_part(part), LAYERS)


@settings(max_examples=8, deadline=None)
@given(st.lists(entries, min_size=1, max_size=5))
def test_a_config_through_a_recipe_enables_the_same_quantizers(listed):
    config = {"quant_cfg": [{"quantizer_name": "*", "enable": False}, *listed], "algorithm": "max"}
    back, lost = quant_cfg(plan_of(rules_of(config, "config").rules), LAYERS)
    assert not lost
    assert by_modelopt(back) == by_modelopt(config)


WEIGHTS = ["per_tensor", "per_channel", "per_element", "fp8", "float",
           {"per_block": {"size": 4, "axis": 1}}, {"per_channel": {"axis": 1}},
           {"format": "int4", "amax": 2.5, "granularity": "per_tensor"}]  # fmt: skip
INPUTS = ["per_tensor", {"per_channel": {"axis": 1}}, "fp8", "float"]
rules = st.lists(
    st.builds(
        lambda match, weight, input_: {"match": match, "weight": weight, "input": input_},
        st.sampled_from(["**", "body.*", "stem", {"type": "Conv2d"}, "body.1"]),
        st.sampled_from(WEIGHTS),
        st.sampled_from(INPUTS),
    ),
    min_size=1,
    max_size=4,
)
START = {"match": {"name": "**", "type": ["Conv2d", "Linear"]}, "half": "allow",
         "weight": {"format": "int8", "calibrator": "max"},
         "input": {"format": "int8", "calibrator": "max"}}  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(rules, st.sampled_from([".yaml", ".json"]))
def test_a_recipe_through_a_config_makes_the_same_plan(rules, form):
    plan = plan_of([START, *({**rule, "optional": True} for rule in rules)])
    config, lost = quant_cfg(plan, LAYERS)
    assert not lost
    read = rules_of(parse_value(written(config, form, "r.yaml"), "config"), "config")
    assert not read.lost
    again = plan_of(read.rules)
    said = [
        [(row.site, row.form, row.amax) for row in each.rows if row.quantized]
        for each in (plan, again)
    ]
    assert said[0] == said[1]


@pytest.mark.parametrize("block", [(1, 4, 3, 3), (1, 4, 1, 1), (1, 1, 1, 1), (4, 1, 3, 3)])
def test_modelopt_rounds_blocks_of_a_config_as_the_oracle_does(block):
    import modelopt.torch.quantization as mtq

    rule = {"match": "body.0", "half": "allow",
            "weight": {"format": "int8", "granularity": {"per_block": {"shape": list(block)}}}}  # fmt: skip
    config, lost = quant_cfg(plan_of([rule]), LAYERS)
    assert not lost
    model = mtq.quantize(Net(), config, lambda net: net(torch.randn(2, 4, 8, 8)))
    layer = model.body[0]
    weight = layer.weight.detach().numpy()
    fmt = FORMATS["int8"]
    expected = fake_quantize(weight, scale_of(reduce_blocks(abs(weight), block), fmt), block, fmt)
    with torch.no_grad():
        assert np.abs(layer.weight_quantizer(layer.weight).numpy() - expected).max() < 1e-6


def test_what_a_config_does_not_say_is_named():
    rule = {"match": "stem", "weight": "per_channel", "format": "int8",
            "input": {"calibrator": "entropy", "granularity": {"per_block": {"size": 2, "axis": 1}}}}  # fmt: skip
    _, lost = quant_cfg(plan_of([rule, {"match": "lm_head", "format": "int8", "input": {
        "calibrator": {"percentile": 99.9}}}]), LAYERS)  # fmt: skip
    assert any("stem.input: blocks of an input or output would fix the batch" in x for x in lost)
    assert any("calibrator percentile 99.9 of 1 sites" in x for x in lost)


def test_the_file_is_one_of_modelopts_recipes_or_runs_as_python(project, monkeypatch):
    from modelopt.recipe import load_recipe

    monkeypatch.chdir(project.folder)
    recipe = project.recipe(rules=[{"match": "head", "format": "fp8"}])
    for out in ("a.yaml", "a.py", "a.json"):
        done = run_main("convert", recipe, "--to", "quant_cfg", "--out", out)
        assert done.code == 0, done.stderr
    told: dict = {}
    exec(Path("a.py").read_text(), told)
    loaded = load_recipe(str(Path("a.yaml").resolve())).quantize.model_dump()["quant_cfg"]
    for ours, theirs in zip(told["QUANT_CFG"]["quant_cfg"], loaded, strict=True):
        assert ours["quantizer_name"] == theirs["quantizer_name"]
        for key, value in ours.get("cfg", {}).items():
            assert theirs["cfg"][key] == value
    done = run_main("convert", recipe, "--to", "quant_cfg", "--out", "a.yaml")
    assert done.code == 2 and "is there already" in done.stderr
    done = run_main("convert", recipe, "--to", "quantcfg")
    assert "did you mean 'quant_cfg'?" in done.stderr
    done = run_main("convert", recipe, "--to", "pytorch-quantization", "--out", "a.txt")
    assert "is written as .py" in done.stderr


@pytest.fixture(scope="module")
def library():
    """pytorch-quantization, which runs on the CPU without its CUDA extension."""
    sys.modules.setdefault("pytorch_quantization.cuda_ext", types.ModuleType("cuda_ext"))
    return pytest.importorskip(
        "pytorch_quantization",
        reason="pytorch-quantization 2.1.3 is not installed: nothing here is held to the real "
        'library; pip install -c constraints.txt -e ".[test]"',
    )


class Made(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.body(self.stem(x).relu())
        return self.head(self.norm(self.pool(x).flatten(1)))


PINNED = [
    {"match": {"type": ["Conv2d", "Linear"]}, "format": "int8", "weight": "per_channel"},
    {"match": "body", "weight": "per_tensor", "input": {"calibrator": {"percentile": 99.0}}},
    {"match": "head", "weight": {"per_channel": {"axis": 1}}, "input": {"amax": 3.0}},
    {"match": "norm", "input": {"format": "int8", "granularity": "per_tensor"}},
]


def program_of(rules, model, example):
    layers = trace(model, example).layers
    plan = make_plan(load_part({"version": 1, "defaults": {"bn": "keep"}, "rules": rules}), layers)
    text, lost = program(plan, layers, "r.yaml")
    module: dict = {}
    exec(compile(text, "made.py", "exec"), module)
    return plan, module, lost


def test_the_program_runs_with_the_real_library_and_rounds_as_the_plan(library, tmp_path):
    torch.manual_seed(0)
    model, data = Made().eval(), torch.randn(16, 4, 8, 8)
    plan, module, lost = program_of(PINNED, model, data)
    assert lost == ["norm.input: it has no class for such layers; they stay float"]
    statistics = {}
    hooks = [
        layer.register_forward_pre_hook(lambda m, args, n=name: statistics.update({n: args[0]}))
        for name, layer in model.named_modules()
    ]
    model(data)
    for hook in hooks:
        hook.remove()
    weights = model.state_dict()
    amax, rows = {}, {row.site: row for row in plan.quantized if row.layer != "norm"}
    for site, row in rows.items():
        weighted = row.operand == "weight"
        tensor = weights[site] if weighted else statistics[row.layer].abs().amax(0, keepdim=True)
        amax[site] = reduce_blocks(tensor.detach().abs().numpy(), row.block)
    export_amax(tmp_path / "amax.json", rows.values(), amax)

    ours = module["quantize"](Made).eval()
    ours.load_state_dict(weights)
    assert module["load_amax"](ours, tmp_path / "amax.json") == []
    assert set(found := module["quantizers"](ours)) == set(rows)
    for site, quantizer in found.items():
        row, held = rows[site], np.asarray(quantizer._amax)
        assert np.array_equal(held.reshape(row.grid), amax[site])
        tensor = weights[site] if row.operand == "weight" else statistics[row.layer]
        x, fmt = tensor.detach().numpy(), FORMATS[row.format]
        block = row.block if row.operand == "weight" else x.shape
        with torch.no_grad():
            rounded = quantizer(torch.from_numpy(x.copy())).numpy()
        # It rounds x * (127 / amax), and the oracle x / (amax / 127): ties may differ by a step.
        step = amax[site].max() / fmt.largest
        off = np.abs(rounded - fake_quantize(x, scale_of(amax[site], fmt), block, fmt))
        assert (off > step / 2).mean() < 1e-3 and off.max() < 1.5 * step

    fresh = module["quantize"](Made).eval()
    fresh.load_state_dict(weights)
    module["calibrate"](fresh, lambda net: net(data))
    calibrated = module["quantizers"](fresh)
    assert float(calibrated["head.input"]._amax) == 3.0
    assert torch.equal(calibrated["stem.input"]._amax.max(), data.abs().max())
    assert float(calibrated["body.input"]._amax) < float(statistics["body"].abs().max())
