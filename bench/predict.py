"""How well the layers' effects alone predict random recipes: output SQNR against apply's.

    python bench/predict.py
    python bench/predict.py --save

On the digits' MobileNet, each recipe draws per_tensor or per_channel, and bn: fold or keep, for
every layer. Predicted: the output SQNR of each layer alone, noise powers added. Measured: by ONNX
Runtime in `apply`, on the same samples.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from measure import HERE, Figure, main, of_values
from scipy.stats import spearmanr

from granplugin.analysis.effects import alone_name
from granplugin.analysis.figures import Sqnr
from granplugin.analysis.measuring import effects_task, measure_effects
from granplugin.analysis.questions import ask_all
from granplugin.analysis.ranges import find_ranges, gather
from granplugin.analysis.settings import same
from granplugin.analysis.subject import Clock, open_subject
from granplugin.analysis.tried import Choice, RoundedNetwork, round_all
from granplugin.pipelines.apply import apply_in
from granplugin.planning.plan import make_plan
from granplugin.planning.rows import Plan
from granplugin.quant.layers import WEIGHTED, Layer
from granplugin.recipe.load import load_recipe, load_variants
from granplugin.runs.session import Session
from granplugin.store.run_folder import RunFolder, open_run

RECIPE = HERE.parent / "recipes" / "digits_mobilenet_per_tensor.yaml"
RECIPES, SAMPLES = 20, 128
CULPRIT = "features.1.depthwise.conv"


def measure(rounds: int) -> Sequence[Figure]:
    source = {"npz": str(RECIPE.parent / "data/digits.npz"), "inputs": {"image": "test_images"}}
    source |= {"samples": SAMPLES}
    recipe = {
        "version": 1,
        "extends": str(RECIPE),
        "data": {"calibration": source, "analysis": source, "evaluation": source},
        "precision": "fp32",
        "optional_engines": [],
    }
    figures: list[Figure] = []
    for title, kept in (("all layers drawn", ()), ("the worst layer kept", {CULPRIT})):
        with tempfile.TemporaryDirectory() as folder, open_run(Path(folder) / "run") as run:
            said, measured = random_recipes(Path(folder), run, recipe, RECIPES, kept)
        figures += [
            Figure(f"{title}: rank correlation", float(spearmanr(said, measured).statistic), ""),
            Figure(f"{title}: worst miss", float(np.abs(said - measured).max()), "dB"),
            of_values(f"{title}: output SQNR as measured", measured.tolist(), "dB"),
        ]
    return figures


def random_recipes(
    folder: Path,
    run: RunFolder,
    recipe: Mapping[str, Any],
    count: int,
    kept: Collection[str] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and measured output SQNR, dB, of `count` random variants of `recipe`; the layers
    `kept` keep their batch norm in all of them."""
    recipe = {
        **recipe,
        "metrics": ["sqnr_db"],
        "limits": {"top1_drop": None},
        "analyze": {"calibrators": ["max"], "inputs": ["per_tensor"]},
        "engines": ["onnxruntime"],
        "baselines": ["fp32"],
    }
    path = folder / "random.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    random = np.random.default_rng(0)
    variants = {
        f"random-{number}": {
            "rules": list(_rules(Session(load_recipe(path), run).layers, random, kept))
        }
        for number in range(count)
    }
    path.write_text(yaml.safe_dump({**recipe, "variants": variants}), encoding="utf-8")
    session = Session(load_recipe(path), run)
    questions = ask_all(
        session.layers,
        make_plan(session.loaded, session.layers),
        session.recipe.analyze,
        session.calibration.samples,
    )
    subject, clock = open_subject(session, questions), Clock()
    statistics = gather(session, questions, subject, None, clock)
    ranges = find_ranges(questions, subject.analyst, statistics, None)
    network = round_all(questions, subject.analyst.held, ranges.amax)
    choices = {
        name: _choice(network, make_plan(loaded, session.layers))
        for name, loaded in load_variants(session.loaded).items()
        if name in variants
    }
    pairs = dict.fromkeys(pair for choice in choices.values() for pair in choice.items())
    alone = measure_effects(effects_task(subject, network, alone=list(pairs)), clock)
    report = apply_in(run, [session.loaded])
    drawn = [variant for variant in report.variants if variant.name in choices]
    measured = {v.name: v.engines[0].metrics["sqnr_db"].value for v in drawn}
    said = {
        name: predicted([alone[alone_name(network, *pair)].sqnr for pair in of.items()])
        for name, of in choices.items()
    }
    return np.array(list(said.values())), np.array([measured[name] for name in said])


def _rules(
    layers: Sequence[Layer], random: np.random.Generator, kept: Collection[str]
) -> Iterator[dict[str, str]]:
    for layer in layers:
        if layer.type in WEIGHTED and not layer.unusable:
            rule = {"match": layer.name, "weight": random.choice(["per_tensor", "per_channel"])}
            if layer.bn:
                rule["bn"] = random.choice(["fold", "keep"])
                if layer.name in kept:
                    rule["bn"] = "keep"
            yield {key: str(value) for key, value in rule.items()}


def _choice(network: RoundedNetwork, plan: Plan) -> Choice:
    """A plan in the settings that were asked about."""
    found = {}
    for name, tried in network.tried.items():
        own = {row.operand: row for row in plan.rows if row.layer == name}
        weights, inputs = tried.asked.weights, tried.asked.inputs
        found[name] = (
            next(i for i, row in enumerate(weights) if same(row, own["weight"])),
            next(j for j, row in enumerate(inputs) if same(row, own["input"])),
        )
    return found


def predicted(alone: Sequence[Sqnr]) -> float:
    """The output SQNR, in dB, of a network with several layers rounded, from those of each alone:
    their errors are taken as independent, so that noise powers add up."""
    noise = sum(10 ** (-each.db / 10) for each in alone if each.db is not None)
    return math.inf if noise == 0 else -10 * math.log10(noise)


if __name__ == "__main__":
    main(__doc__, measure, rounds=1)
