"""Every recipe that ships plans and applies."""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import RECIPES, lend, run_main
from safetensors.torch import save_file

from granplugin.report.schema.run import Report

FEW = ["--set", "data.evaluation.samples=96", "--set", "data.calibration.samples=64"]
FEW += ["--set", "latency.rounds=6", "--set", "latency.seconds=0.01"]
SHIPPED = sorted(RECIPES.glob("*.yaml"))


@pytest.mark.parametrize("recipe", SHIPPED, ids=lambda path: path.stem)
def test_every_recipe_is_good_and_plans(recipe, tmp_path):
    code, _, err = run_main("check", recipe, "--out", tmp_path / "run")
    assert code == 0, err
    code, out, err = run_main("plan", recipe, "--out", tmp_path / "run")
    assert code == 0, err
    assert "sites quantized" in out
    code, out, err = run_main("check", recipe, "--out", tmp_path / "run")
    assert code == 0, err
    assert "against 1" in out  # with the layers of that plan


# Others apply these: the quickstart, and what analyze suggests.
ELSEWHERE = ("digits_mobilenet", "digits_mobilenet_per_tensor")
APPLIED = [
    # Recipes of one network run on one worker, so that it is exported once.
    pytest.param(path, marks=pytest.mark.xdist_group(network))
    for path in SHIPPED
    if path.stem not in ELSEWHERE
    for network in ("quickstart" if "mobilenet" in path.stem else "efficientnet",)
]


@pytest.fixture(scope="module")
def runs() -> dict[str, Path]:
    """Network -> a run folder in which it was exported."""
    return {}


@pytest.fixture(scope="module")
def shallow(tmp_path_factory) -> Path:
    """The recipes of an EfficientNet of two stages: what a recipe does with it is the same."""
    folder = tmp_path_factory.mktemp("shallow")
    shutil.copytree(RECIPES, folder, dirs_exist_ok=True)
    code = (folder / "networks.py").read_text()
    stages = re.search(r"EFFICIENTNET_STAGES = (\(.*?^\))", code, re.DOTALL | re.MULTILINE)
    few = "((1, 16, 1, 1, 3), (6, 24, 2, 2, 5))"
    code = code.replace(stages.group(1), few)
    (folder / "networks.py").write_text(code)
    made = runpy.run_path(str(folder / "networks.py"))
    torch.manual_seed(0)
    weights = made["efficientnet_b0"]().state_dict()
    save_file(weights, folder / "weights/efficientnet_digits.safetensors")
    return folder


@pytest.mark.parametrize("recipe", APPLIED, ids=lambda p: p.stem)
def test_every_recipe_applies(recipe, runs, tmp_path_factory, request):
    network = yaml.safe_load(recipe.read_text())["model"]["callable"]
    folder = tmp_path_factory.mktemp("runs") / recipe.stem
    if "mobilenet" in network:
        runs[network] = request.getfixturevalue("quickstart").folder
    else:
        recipe = request.getfixturevalue("shallow") / recipe.name
    if network in runs:
        lend(runs[network], folder, "layers", "float")
    runs[network] = folder
    code, _, err = run_main("apply", recipe, "--out", folder, *FEW)
    assert code in (0, 1, 4), err  # so few samples may miss a limit, or not tell
    report = Report.model_validate_json((folder / "report.json").read_text())
    for variant in report.variants:
        assert variant.agreement is None or variant.agreement.oracle_differs == 0
    by_name = {
        variant.name: variant.engines[0].metrics["top1"].value for variant in report.variants
    }
    if recipe.stem == "granularity_table_mobilenet":
        assert by_name["per_tensor-folded"] < 20
        assert min(v for name, v in by_name.items() if name != "per_tensor-folded") > 90
