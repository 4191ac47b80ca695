"""The README's commands and code blocks, run as they are written."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT, run_main

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


@pytest.fixture()
def clone(tmp_path, monkeypatch) -> Path:
    """A folder that has what a clone has, and nothing of earlier runs."""
    for name in ("recipes", "README.md", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_two_commands_are_in_the_readme_and_ci_takes_its_own_from_there():
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert (
        'pip install -c constraints.txt -e ".[quickstart]" && '
        "granplugin apply recipes/digits_mobilenet.yaml" in commands
    )
    assert 'pip install -c constraints.txt -e ".[test]" && pytest' in commands
    pattern = re.search(r"grep -m1 -oE '(.*)' README.md", (ROOT / ".ci/run").read_text()).group(1)
    assert re.search(pattern, README)


def test_the_quickstart_recovers_what_coarse_weights_lose(quickstart):
    assert quickstart.code == 0, quickstart.stderr
    top1 = {v.name: v.engines[0].metrics["top1"].value for v in quickstart.report.variants}
    assert top1["fp32"] >= 96
    assert top1["without-rescue"] < 20
    assert top1["digits_mobilenet"] >= top1["fp32"] - 1
    assert top1["bn-kept"] >= top1["fp32"] - 1


def test_the_first_script_prints_what_the_command_prints(clone, forks):
    (script,) = [block for block in blocks("python") if "granplugin.plan" in block]
    done = forks.run(["-c", script])
    assert (done.returncode, done.stderr) == (0, "")
    recipe = "recipes/digits_mobilenet.yaml"
    command = run_main("plan", recipe, "--set", "rules.rescue.weight=per_tensor", "--quiet")
    assert done.stdout == command.stdout


def test_the_recipes_in_the_readme_are_good(clone):
    recipe, variants, skips, build = blocks("yaml")
    text = recipe.replace(": networks.py", ": recipes/networks.py").replace(
        ": weights/", ": recipes/weights/"
    )
    text = text.replace("npz: data/", "npz: recipes/data/")
    path = clone / "recipe.yaml"
    rests = (
        text + variants,
        text.partition("rules:")[0] + skips,
        text.replace("openvino", "tensorrt, tensorrt_rtx") + build,
    )
    for whole in rests:
        path.write_text(whole)
        code, out, err = run_main("check", path)
        assert code == 0, err
        assert "good" in out


def test_every_key_of_a_rule_is_in_the_readme():
    from granplugin.quant.granularity import GRANULARITIES
    from granplugin.recipe.decisions import Rule
    from granplugin.recipe.match import Match
    from granplugin.recipe.schema import Recipe

    for name in [*Rule.model_fields, *Match.model_fields, *GRANULARITIES, *Recipe.model_fields]:
        assert f"{name}" in README, name


def test_the_other_commands_print_what_the_readme_says(clone):
    (line,) = [b for b in blocks("sh") if "schema" in b]
    words = shlex.split(line)
    assert words[0] == "granplugin"
    code, out, _ = run_main(*words[1 : words.index(">")])
    assert code == 0
    assert json.loads(out)["properties"]["rules"]


def test_the_evaluate_function_of_the_readme_measures(project):
    (fn,) = [block for block in blocks("python") if "def fn" in block]
    project.write("measure.py", "import numpy as np\n" + fn)
    project.recipe(evaluate="measure.py:fn")
    done = project.apply()
    assert done.code == 0, done.stderr
    metric = project.report().variants[-1].engines[0].metrics["mean_error"]
    assert metric.value >= 0 and metric.vs["fp32"].n == 64


def test_a_recipe_that_names_no_engine_applies_with_what_is_installed(project):
    project.recipe(engines=None)
    done = project.apply()
    assert done.code == 0, done.stderr
    assert project.report().variants[0].engines[0].engine == "onnxruntime"
