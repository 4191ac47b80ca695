"""base: a config of modelopt's decides what modelopt would do, each entry at its own line, and a
recipe's own rules override it."""

from __future__ import annotations

import contextlib
import copy
import json

import modelopt.torch.quantization as mtq
import pytest
import torch
from conftest import run_main
from hypothesis import given, settings
from hypothesis import strategies as st
from modelopt.torch.quantization.nn import TensorQuantizer
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2Model

from granplugin.errors import RecipeError, UserError
from granplugin.network.trace import trace
from granplugin.planning.plan import make_plan
from granplugin.recipe.configs import _library, presets, read_config
from granplugin.recipe.load import load_part, load_recipe
from granplugin.recipe.quant_cfg import _bits, rules_of

PRESETS = presets(_library())


def in_python(value):
    """As modelopt has it in Python: e4m3 is (4, 3), and a list of two numbers too."""
    if isinstance(value, dict):
        return {
            str(key): _bits(inside) if str(key).endswith("_bits") else in_python(inside)
            for key, inside in value.items()
        }
    return [in_python(inside) for inside in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_read_as_modelopt_reads_it(name):
    config = read_config(f"modelopt:{name}")
    theirs = getattr(mtq, name, None)
    if theirs is None:
        pytest.skip("modelopt does not export it")
    assert in_python(config.value["quant_cfg"]) == in_python(theirs["quant_cfg"])
    assert len(config.marks) == len(theirs["quant_cfg"])
    assert all(mark.line > 1 for mark in config.marks)


class Convs(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.pool = nn.AvgPool2d(2)
        self.filter = nn.Parameter(torch.randn(8, 8, 1, 1))
        self.proj_out = nn.Sequential(nn.Linear(8, 8))
        self.lm_head = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = F.conv2d(self.pool(self.bn(self.stem(x))), self.filter).mean((2, 3))
        return self.fc(self.lm_head(self.proj_out(x)) @ self.filter[:, :, 0, 0])


def gpt2():
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=20, n_positions=8)
    return GPT2Model(config), torch.arange(8).reshape(1, 8)


NETWORKS = {
    "convs": lambda: (Convs(), torch.randn(2, 3, 8, 8)),
    "attention": lambda: (
        nn.TransformerEncoderLayer(16, 2, 16, batch_first=True), torch.randn(2, 4, 16),
    ),
    "gpt2": gpt2,
}  # fmt: skip


def by_modelopt(model, quant_cfg):
    """Enabled quantizers with bits and axis, by modelopt."""
    mtq.replace_quant_module(model)
    mtq.set_quantizer_by_cfg(model, copy.deepcopy(quant_cfg))
    return {
        name: (each.num_bits, each.axis)
        for name, each in model.named_modules()
        if isinstance(each, TensorQuantizer) and each.is_enabled
    }


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("said", [{"base": "INT8_DEFAULT_CFG"}, {"base": "FP8_DEFAULT_CFG"},
                                  {"defaults": "modelopt@0.47"}])  # fmt: skip
def test_the_same_quantizers_are_on_as_by_modelopt(name, said):
    torch.manual_seed(0)
    model, example = NETWORKS[name]()
    layers = trace(model.eval(), example).layers
    plan = make_plan(load_part({"version": 1, **said}), layers)
    ours = {}
    for row in plan.quantized:
        axes = [axis for axis, cells in enumerate(row.grid) if cells > 1]
        bits = {"int8": 8, "fp8": (4, 3)}[row.format]
        ours[f"{row.site}_quantizer"] = (bits, axes[0] if axes else None)
    theirs = by_modelopt(model, getattr(mtq, said.get("base", "INT8_DEFAULT_CFG"))["quant_cfg"])
    assert ours == theirs


RECIPE = """version: 1
base: {base}
model: {{callable: nets.py:tiny}}
data: {{calibration: {{callable: nets.py:samples}}}}
rules:
- {{match: fc, weight: per_tensor}}
"""


def write(folder, base, name="r.yaml"):
    (folder / "nets.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def tiny(): return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(72, 4))\n"
        "def samples(): yield torch.ones(4, 3, 5, 5)\n"
    )
    (folder / name).write_text(RECIPE.format(base=base))
    return folder / name


def test_the_plan_tells_which_line_of_which_file_decided(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, "modelopt:INT8_DEFAULT_CFG")
    path.write_text(path.read_text().replace("fc", "'2'"))
    done = run_main("plan", "r.yaml", "--json")
    assert done.code == 0, done.stderr
    rows = {f"{row['layer']}.{row['role']}": row for row in json.loads(done.stdout)["rows"]}
    assert rows["0.weight"]["rule"] == "INT8_DEFAULT_CFG[1]"
    assert rows["0.weight"]["where"].startswith("modelopt_recipes/configs/ptq/presets/model/int8")
    assert (rows["2.weight"]["rule"], rows["2.weight"]["where"]) == ("rule 1", "r.yaml:6:3")
    assert rows["2.weight"]["granularity"] == "per_tensor"
    done = run_main("plan", "r.yaml", "--why", "0")
    assert (
        "INT8_DEFAULT_CFG[0]: weight.format = float  (a later rule says otherwise)" in done.stdout
    )
    assert run_main("check", "r.yaml", "--set", "base=FP8_DEFAULT_CFG").code == 0
    assert run_main("check", "r.yaml", "--set", "rules.INT8_DEFAULT_CFG[1].weight=int4").code == 0


OWN = """# as modelopt's recipes are written
imports:
  base_disable_all: configs/ptq/units/base_disable_all
  fp8: configs/numerics/fp8
metadata: {recipe_type: ptq}
quantize:
  algorithm: max
  quant_cfg:
  - $import: base_disable_all
  - quantizer_name: '*weight_quantizer'
    cfg: {$import: fp8, axis: 0}
  - quantizer_name: '*nothing*input_quantizer'
    cfg: {num_bits: 8}
"""


def test_a_file_of_modelopts_form_is_a_base_and_what_matches_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(OWN)
    path = write(tmp_path, "own.yaml")
    loaded = load_recipe(path)
    assert [rule.id for rule in loaded.recipe.rules][1:] == ["own[0]", "own[1]", "own[2]", None]
    layers = trace(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4)).layers
    plan = make_plan(load_part({"version": 1, "base": "own.yaml"}), layers)
    (row,) = plan.quantized
    assert (row.format, str(row.granularity), row.rule) == ("fp8", "per_channel(axis 0)", "own[1]")
    assert plan.notes == (f"{row.where.replace(':10:', ':12:')}: own[2] matches no layer",)


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("modelopt:NVFP4_DEFAULT_CFG", "E2M1 with scales of E4M3 is none of the formats int8"),
        ("W4A8_AWQ_BETA_CFG", "w4a8_awq_beta.yaml:28:5): quant_cfg[1]: several quantizers"),
        ("modelopt:INT8_DEFALT_CFG", "did you mean 'INT8_DEFAULT_CFG'?"),
        ("INT8_DEFALT_CFG", "did you mean 'INT8_DEFAULT_CFG'?"),
        ("modelopt@0.99:INT8_DEFAULT_CFG", "is installed, whose presets may be others"),
        ("nothing.yaml", "no such file"),
        ("nets.py", "is neither a preset of modelopt's nor a file"),
        ("3", "text is expected"),
        ("modelopt:../../etc", "modelopt has no"),
    ],
)
def test_what_is_no_base_or_cannot_be_said_is_one_sentence_at_its_line(
    tmp_path, monkeypatch, base, said
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, base)
    done = run_main("check", "r.yaml")
    assert done.code == 2
    assert "r.yaml:2:1: " in done.stderr and said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_base_has_no_defaults_beside_it():
    with pytest.raises(RecipeError, match="leave one out"):
        load_part({"version": 1, "base": "INT8_DEFAULT_CFG", "defaults": "tensorrt@11"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("imports: {a: b.yaml}\nquant_cfg: [{$import: a}]\n", "imports itself, or over"),
        ("quant_cfg: [{$import: a}]\n", "nothing is imported as 'a'"),
        ("imports: {a: missing}\nquant_cfg: []\n", "neither below the current folder nor in"),
        ("imports: [a]\nquant_cfg: []\n", "imports are names with files"),
        ("quant_cfg: 3\n", "quant_cfg is a list of entries or a dict"),
        ("- 1\n---\n- 2\n---\n- 3\n", "3 documents"),
        ("quant_cfg: [{quantizer_name: 3}]\n", "an entry has a quantizer_name"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.yaml").write_text(text)
    with pytest.raises(RecipeError, match=said):
        load_part({"version": 1, "base": "b.yaml"})


ANY = st.sampled_from(
    [None, True, 0, -1, 8, 2.5, float("nan"), "", "*", "e4m3", "dynamic", [], [4, 3], ["a"], {},
     {"-1": 16}, {"-1": None}, {"a": 1}, {"0": -4}, {"-1": 16, "-2": 16}]
)  # fmt: skip
KEYS = st.sampled_from(
    ["num_bits", "axis", "block_sizes", "type", "constant_amax", "calibrator", "unsigned", "other"]
)
ENTRY = st.fixed_dictionaries(
    {"quantizer_name": st.sampled_from(["*", "*weight_quantizer", "*[!", "stem.*"]) | ANY},
    optional={"cfg": st.dictionaries(KEYS, ANY) | ANY, "enable": ANY, "parent_class": ANY},
)


@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries({"quant_cfg": st.lists(ENTRY, max_size=3) | st.dictionaries(KEYS, ANY),
                              "algorithm": ANY}))  # fmt: skip
def test_whatever_a_config_holds_is_rules_or_one_sentence(config):
    with contextlib.suppress(UserError):
        found = rules_of(config, "config")
        assert all(str(loss) for loss in found.lost)
        load_part({"version": 1, "rules": found.rules})
