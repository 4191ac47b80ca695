"""What is made of a row that an engine does not have: lowered, coarser, simulated, left float."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import yaml
from conftest import Applied, Project, run_main
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from test_capabilities import CONV, DEPTHWISE, GEMM, LINEAR, promises, rows

from granplugin import backends
from granplugin.capabilities import load_table
from granplugin.capabilities.legality import decide
from granplugin.errors import RecipeError
from granplugin.planning.rows import Plan
from granplugin.quant.granularity import DoesNotApply

ENGINES = ("tensorrt", "tensorrt_rtx")


def decided(layer, of_layer, engine="tensorrt_rtx", on_unsupported=("error",)):
    return decide(Plan(tuple(of_layer)), [layer], [engine], on_unsupported)[engine]


def every_granularity(shape):
    yield from ("per_tensor", "per_element", "per_token")
    for axis, length in enumerate(shape):
        yield {"per_channel": {"axis": axis}}
        for size in (n for n in range(2, length) if length % n == 0):
            yield {"per_block": {"size": size, "axis": axis}}


@st.composite
def cases(draw):
    """A layer, a role, and two rows of it in int8 - or a weight alone in int4."""
    layer = draw(st.sampled_from([CONV, DEPTHWISE, LINEAR, GEMM]))
    fmt = draw(st.sampled_from(["int8", "int8", "int4"]))
    role = "weight" if fmt == "int4" else draw(st.sampled_from(["weight", "input"]))
    chosen = draw(st.sampled_from(list(every_granularity(layer.shape(role)))))
    given_ = {"weight": "per_channel", "input": "float" if fmt == "int4" else "per_tensor"}
    return layer, role, {**given_, role: chosen}, fmt


@given(cases(), st.sampled_from(ENGINES))
def test_coarsen_takes_the_finest_coarser_granularity_the_engine_has(case, engine):
    layer, role, granularities, fmt = case

    def made_of(granularity):
        said = {**granularities, role: granularity}
        return rows(layer, said["weight"], said["input"], (fmt, fmt))

    try:
        asked = made_of(granularities[role])
    except DoesNotApply:
        return
    module = backends.backend_of(engine)
    table = load_table(engine, None if module.unavailable() else module.version())
    (row,) = [row for row in asked if row.operand == role]
    native = []
    for granularity in every_granularity(layer.shape(role)):
        try:
            candidate = made_of(granularity)
        except DoesNotApply:
            continue
        (coarse,) = [row for row in candidate if row.operand == role]
        nested = all(c % b == 0 for c, b in zip(coarse.block, row.block, strict=True))
        if nested and promises(table, layer, candidate)[role].kind == "native":
            native.append(coarse)
    if not native:
        with pytest.raises(RecipeError, match="simulate or float"):
            decided(layer, asked, engine, ("coarsen",))
        return
    written = decided(layer, asked, engine, ("coarsen",))
    (found,) = [row for row in written.rows if row.operand == role]
    assert found.scales == max(row.scales for row in native)
    assert all(c % b == 0 for c, b in zip(found.block, row.block, strict=True))
    assert written.promises[found.site].kind == "native"
    if found.block != row.block:
        assert written.made == {row.site: f"coarsened to {found.granularity}"}
    else:
        assert written.made == {} and found == row


@pytest.mark.parametrize(
    ("choices", "made"),
    [
        (("lower",), None),
        (("coarsen",), ("coarsened to per_channel", "coarsened to per_tensor")),
        (("simulate",), ("simulated", "simulated")),
        (("float",), ("left float", "left float")),
        (("lower", "coarsen"), ("coarsened to per_channel", "lowered")),
        (("lower", "float"), ("left float", "left float")),
        (("lower", "error", "float"), None),
    ],
)
def test_the_first_of_several_that_can_be_done_is_done_row_by_row(choices, made):
    asked = rows(LINEAR, {"per_block": {"size": 16}}, "per_token")
    if made is None:
        with pytest.raises(RecipeError, match="r.yaml:1:1: tensorrt_rtx does not have int8 per_bl"):
            decided(LINEAR, asked, on_unsupported=choices)
        return
    written = decided(LINEAR, asked, on_unsupported=choices)
    assert written.made == {"fc.weight": made[0], "fc.input": made[1]}
    assert [row.quantized for row in written.rows] == ["float" not in word for word in made]
    kinds = {site: promise.kind for site, promise in written.promises.items()}
    words = {"lowered": "lowered", "simulated": "simulated", "left float": "simulated"}
    assert kinds == {site: words.get(word, "native") for site, word in written.made.items()}


def test_a_rules_word_counts_for_its_layers_and_the_recipes_for_the_rest():
    asked = rows(LINEAR, "per_element", "per_tensor")
    own = [replace(row, on_unsupported=("coarsen",)) for row in asked]
    assert decided(LINEAR, own).made == {"fc.weight": "coarsened to per_channel"}
    floats = decided(LINEAR, asked, on_unsupported=("float",))
    assert set(floats.made.values()) == {"left float"}
    with pytest.raises(RecipeError, match="on_unsupported: coarsen makes it per_channel"):
        decided(LINEAR, asked)


def test_what_no_coarser_granularity_helps_is_refused():
    asked = rows(LINEAR, "per_channel", "per_tensor", ("int8", "fp8"))
    with pytest.raises(RecipeError, match="different formats"):
        decided(LINEAR, asked, on_unsupported=("coarsen",))


def test_other_engines_get_the_plan_as_it_is():
    asked = rows(LINEAR, "per_element", "per_tensor")
    written = decided(LINEAR, asked, "openvino", ("coarsen",))
    assert written.rows == tuple(asked) and not written.made


# -- one recipe with all of them -----------------------------------------------------------------

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.mix = nn.Conv2d(16, 32, 1)
        self.up = nn.Linear(32, 64)
        self.down = nn.Linear(64, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, image):
        x = self.mix(self.depthwise(self.stem(image).relu()).relu()).relu()
        x = x.flatten(2).transpose(1, 2)
        x = x + self.down(self.up(x).relu())
        return self.head(x.mean(1))


def net():
    torch.manual_seed(0)
    return Net()
"""
RULES = [
    {"match": "stem", "weight": {"per_block": {"size": 3, "axis": 3}}, "id": "stem"},
    {"match": "depthwise", "weight": "per_element", "on_unsupported": "float"},
    {"match": "mix", "weight": {"per_channel": {"axis": 1}}, "on_unsupported": "simulate"},
    {"match": "up", "input": {"per_token": {"dynamic": True}}},
    {
        "match": "down",
        "weight": {"per_block": {"size": 16}},
        "input": {"per_block": {"size": 16}, "calibrator": {"percentile": 99}},
        "id": "down",
    },
]
COARSE = {
    "rules.stem.weight": "per_channel",
    "rules.down.weight": "per_channel",
    "rules.down.input": {"granularity": "per_tensor", "calibrator": {"percentile": 99}},
}
MADE = {
    "stem.weight": "coarsened to per_channel",
    "depthwise.weight": "left float",
    "depthwise.input": "left float",
    "mix.weight": "simulated",
    "mix.input": "simulated",
    "up.input": "lowered",
    "down.weight": "coarsened to per_channel",
    "down.input": "coarsened to per_tensor",
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Applied:
    pytest.importorskip("tensorrt_rtx")
    project = Project(tmp_path_factory.mktemp("mixed"))
    project.arrays["images"] = np.tile(project.arrays["images"], (4, 1, 1, 1))
    project.arrays["labels"] = np.tile(project.arrays["labels"], 4)
    project.write("nets.py", NET)
    project.recipe(
        model={"callable": "nets.py:net"},
        engines=["tensorrt_rtx", "onnxruntime"],
        rules=RULES,
        variants={"coarse": {"set": COARSE}, "half": {"set": {"precision": "fp16"}}},
        on_unsupported=["lower", "coarsen"],
        statistics={"export": "amax.json"},
    )
    done = project.apply()
    assert done.code == 0, done.stderr
    return Applied(project.out, project.report(), done.stdout, done.stderr, done.code)


def constant(path, name):
    (found,) = [t for t in onnx.load(path).graph.initializer if t.name == name]
    return numpy_helper.to_array(found)


def test_one_recipe_has_lowered_coarsened_simulated_and_float_rows(mixed):
    of_variant = {variant.name: variant for variant in mixed.report.variants}
    rtx, reference = of_variant["recipe"].engines
    assert (rtx.made, reference.made) == (MADE, {})
    verdicts = {verdict.site: verdict for verdict in rtx.verdicts}
    assert {site for site, v in verdicts.items() if v.verdict == "degraded"} == {
        site for site, made in MADE.items() if made in ("left float", "simulated")
    }
    assert verdicts["stem.weight"].detail.startswith("coarsened to per_channel; ")
    assert (verdicts["up.input"].promise, verdicts["up.input"].verdict) == ("lowered", "honoured")
    precisions = {layer.layer: layer.precision for layer in rtx.layers}
    assert precisions["up"] == precisions["stem"] == precisions["down"] == "int8"
    assert precisions["mix"] == precisions["depthwise"] == "float"
    assert of_variant["recipe"].agreement.modelopt_worst_steps <= 1
    assert of_variant["half"].engines[0].made == MADE
    assert of_variant["half"].engines[0].honoured == rtx.honoured == 8


def test_the_amax_of_a_coarsened_row_is_that_of_the_coarser_granularity(mixed):
    coarsened = mixed.folder / "variants/recipe/tensorrt_rtx.onnx"
    coarse = mixed.folder / "variants/coarse/model.onnx"
    for name in ("stem.weight/scale", "down.weight/scale", "down.input/scale"):
        scale = constant(coarsened, name)
        assert scale.tobytes() == constant(coarse, name).tobytes()
        fine = constant(mixed.folder / "variants/recipe/model.onnx", name)
        assert fine.size > scale.size
    for name in ("stem.weight/int8", "down.weight/int8"):
        assert (constant(coarsened, name) == constant(coarse, name)).all()


def test_imported_ranges_are_coarsened_to_the_largest_of_each_block(mixed, tmp_path):
    recipe = mixed.folder.parents[1] / "recipe.yaml"
    told = yaml.safe_load(recipe.read_text())
    told |= {"statistics": {"import": "amax.json"}, "baselines": ["fp32"], "variants": {}}
    imported = recipe.with_name("imported.yaml")
    imported.write_text(yaml.safe_dump(told))
    shutil.copytree(mixed.folder, tmp_path / "run")
    done = run_main("apply", imported, "--out", tmp_path / "run")
    assert done.code == 0, done.stderr
    fine = constant(tmp_path / "run/variants/imported/model.onnx", "down.input/scale")
    coarse = constant(tmp_path / "run/variants/imported/tensorrt_rtx.onnx", "down.input/scale")
    assert coarse == fine.max()


def test_every_report_says_what_was_made_of_what(mixed):
    for text in (mixed.stdout, (mixed.folder / "report.md").read_text()):
        words = " ".join(text.split())
        assert "recipe on tensorrt_rtx, made of what it does not have:" in words
        assert "coarsened to per_channel: stem.weight, down.weight" in words
        assert "left float: depthwise.weight, depthwise.input" in words
        assert "simulated (float on the device, accuracy only): mix.weight, mix.input" in words
        assert "depthwise.weight degraded: left float" in words


def test_the_plan_says_what_will_be_made_and_leaves_the_log_of_apply_alone(mixed):
    recipe = mixed.folder.parents[1] / "recipe.yaml"
    log = (mixed.folder / "log.txt").read_bytes()
    code, out, _ = run_main("plan", recipe, "--out", mixed.folder)
    assert code == 0 and (mixed.folder / "log.txt").read_bytes() == log
    assert "tensorrt_rtx promises: 4 native, 1 lowered, 2 simulated, 3 coarsened, 2 left" in out
    assert "stem.weight: coarsened to per_channel: weight scales along any axis" in out
    assert "per_token(dynamic) 64 at run time" in " ".join(out.split())
    _, told, _ = run_main("plan", recipe, "--out", mixed.folder, "--json")
    plan = json.loads(told)
    found = plan["promises"]["tensorrt_rtx"]
    assert {site: p["made"] for site, p in found.items() if p["made"]} == MADE
    (up,) = [r for r in plan["rows"] if (r["layer"], r["role"]) == ("up", "input")]
    assert up["dynamic"]
