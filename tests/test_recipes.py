"""Every recipe that ships plans and applies."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import RECIPES, lend, run_main

from granplugin.report.schema.run import Report

FEW = ["--set", "data.evaluation.samples=96", "--set", "data.calibration.samples=64"]
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


@pytest.mark.parametrize("recipe", APPLIED, ids=lambda p: p.stem)
def test_every_recipe_applies(recipe, runs, tmp_path_factory, request):
    network = yaml.safe_load(recipe.read_text())["model"]["callable"]
    folder = tmp_path_factory.mktemp("runs") / recipe.stem
    if "mobilenet" in network:
        runs[network] = request.getfixturevalue("quickstart").folder
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
