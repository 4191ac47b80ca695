"""convert --to: what a recipe decides, in the words of modelopt and of pytorch-quantization, means
the same there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_main
from hypothesis import given, settings
from hypothesis import strategies as st
from test_convert import LAYERS, Net, by_modelopt, entries

from granplugin.convert.to_quant_cfg import quant_cfg, written
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
