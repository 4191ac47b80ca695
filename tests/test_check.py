"""check: what it says of good and bad recipes, and that it needs no framework to say it."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from plan_values import layer_of

from granplugin.pipelines.check import check_recipe
from granplugin.planning.plan_file import text_key
from granplugin.quant.layers import layer_to_json
from granplugin.recipe.load import load_recipe

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
NET = [
    layer_of("conv", shapes={"input": (1, 3, 8, 8), "output": (1, 8, 8, 8),
                             "weight": (8, 3, 3, 3)}),
]  # fmt: skip
TEXT = """\
version: 1
model: {callable: net.py:net}
data: {calibration: {callable: net.py:data}}
rules:
  - {match: conv, weight: per_tensor}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("# a network")
    Path("r.yaml").write_text(TEXT)
    return tmp_path


def planned(layers=NET):
    """As if `granplugin plan r.yaml` had been run."""
    run = Path("runs/r")
    run.mkdir(parents=True, exist_ok=True)
    plan = {"text_key": text_key(load_recipe(Path("r.yaml")).recipe),
            "layers": [layer_to_json(layer) for layer in layers]}  # fmt: skip
    (run / "plan.json").write_text(json.dumps(plan))


def check(text=None):
    if text:
        Path("r.yaml").write_text(text)
    return check_recipe(Path("r.yaml"), (), None)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_recipes_that_ship_are_good(path, tmp_path):
    found = check_recipe(path, (), tmp_path / "none")
    assert found.ok and found.checked == "text"


def test_without_a_plan_the_text_alone_is_checked(folder):
    found = check(TEXT.replace("match: conv", "match: cnv"))
    assert found.ok and found.checked == "text" and "no plan in runs/r yet" in found.why
    assert not Path("runs").exists()


def test_with_a_plan_of_this_model_the_rules_are_checked_too(folder):
    planned()
    found = check()
    assert found.ok and found.checked == "text and its rules"
    found = check(TEXT.replace("match: conv", "match: cnv"))
    assert not found.ok and found.checked == "text and its rules"
    assert list(found.errors) == ["r.yaml:5:6: 'cnv' matches no layer; nearest: 'conv'"]


def test_the_rules_of_variants_are_checked_too(folder):
    planned()
    found = check(TEXT + "variants: {v: {rules: [{match: nowhere, bn: fold}]}}")
    assert list(found.errors) == ["r.yaml:6:25: 'nowhere' matches no layer"]


def test_a_plan_of_another_model_is_not_used(folder):
    planned()
    Path("net.py").write_text("# another network")
    found = check(TEXT.replace("match: conv", "match: cnv"))
    assert found.ok and found.checked == "text" and "of another model" in found.why


def test_a_plan_of_other_code_beside_the_models_is_not_used(folder):
    Path("net.py").write_text("from parts import Net")
    Path("parts.py").write_text("# a part of it")
    planned()
    assert check().checked == "text and its rules"
    Path("parts.py").write_text("# another part")
    found = check()
    assert found.checked == "text" and "of another model" in found.why


def test_the_code_of_an_installed_module_is_found_without_importing_what_it_is_in(folder):
    package = folder / "big"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "net.py").write_text("# a network")
    code = (
        "from granplugin.recipe.code_key import code_key; "
        "from granplugin.recipe.strict import Target; "
        "print(code_key(Target(module='big.net', name='net')))"
    )

    def key():
        return subprocess.check_output([sys.executable, "-c", code], text=True)

    before = key()
    (package / "net.py").write_text("# another network")
    assert key() != before


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"text_key": 1}', "{"])
def test_a_broken_plan_is_not_used(folder, content):
    planned()
    Path("runs/r/plan.json").write_text(content)
    found = check()
    assert found.ok and found.checked == "text" and found.why


@pytest.mark.parametrize(
    "layers", [None, [{}], ["conv"], [{"name": "conv", "type": "Conv2d", "new": 1}], 3]
)
def test_a_plan_that_another_version_wrote_is_not_used(folder, layers):
    planned()
    plan = json.loads(Path("runs/r/plan.json").read_text())
    Path("runs/r/plan.json").write_text(json.dumps({**plan, "layers": layers}))
    found = check()
    assert found.ok and found.checked == "text" and "cannot be read" in found.why


def test_every_mistake_is_one_error(folder):
    found = check(TEXT + "metrics: [top2]\ndevice: 3\n")
    assert len(found.errors) == 2 and not found.ok
    assert all(error.startswith("r.yaml:") for error in found.errors)


def test_layers_are_kept_whole(folder):
    layer = dataclasses.replace(
        NET[0], traits=frozenset({"first", "grouped"}), spread=1.5, groups=2
    )
    planned([layer])
    assert check().ok


def test_files_lists_a_base_of_which_no_key_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("version: 1\n")
    (tmp_path / "middle.yaml").write_text("extends: base.yaml\nversion: 1\n")
    (tmp_path / "r.yaml").write_text(
        "version: 1\nextends: [middle.yaml]\nmodel: {callable: torchvision:f}\n"
        "data: {calibration: {callable: torchvision:g}}\n"
    )
    found = check_recipe(Path("r.yaml"), (), None, files=True)
    assert [each.file for each in found.files if each.key == "extends"] == [
        "middle.yaml", "base.yaml",
    ], found  # fmt: skip


def test_files_lists_what_a_recipe_names_and_what_lies_outside_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for name in ("in/net.py", "in/part.py", "d.npz", "w.safetensors"):
        (tmp_path / name).write_text("import part" if name == "in/net.py" else "")
    (tmp_path / "base.yaml").write_text("version: 1\ndevice: cpu\n")
    (tmp_path / "in/r.yaml").write_text(
        "extends: ../base.yaml\nmodel: {callable: net.py:f, weights: ../w.safetensors}\n"
        "data: {calibration: {npz: ../d.npz, inputs: {x: x}}}\nevaluate: torchmetrics:f\n"
    )
    found = check_recipe(Path("in/r.yaml"), (), None, files=True)
    assert [(each.key, each.file, each.outside) for each in found.files] == [
        ("recipe", "in/r.yaml", False),
        ("extends", "base.yaml", True),
        ("model.callable", "in/net.py", False),
        ("model.callable", "in/part.py", False),
        ("model.weights", "w.safetensors", True),
        ("data.calibration.npz", "d.npz", True),
        ("evaluate", "installed module torchmetrics", False),
    ]
