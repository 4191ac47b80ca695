"""An analysis from recipe to advice: effects against brute force, faults that were planted, halves
of the data, the suggested recipe as `apply` takes it, and what a user can get wrong."""

from __future__ import annotations

import json
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from analysis_nets import analyzed, images, layer_of, rounded, session_of, write
from conftest import RECIPES, ROOT, Done, lend, run_main

from granplugin.report.schema.analysis import Analysis
from granplugin.report.schema.run import Report

SOURCE = {"npz": "data.npz", "inputs": {"image": "images"}}

# -- effects on the network's output, against running the quantized network -----------------------


def naive(session, plan, ranges) -> tuple[np.ndarray, np.ndarray]:
    """The outputs of FP32 and of the plan as modelopt computes it, over all analysis samples."""
    found = []
    amax = {row.site: ranges[row] for row in plan.quantized if ranges.get(row) is not None}
    network = session.network
    quantized = network.quantized(plan, amax, session.layers, session.example)
    for outputs in (network.outputs, quantized):
        parts = [outputs(batch)["output"] for batch in session.analysis]
        found.append(np.concatenate(parts).astype(np.float64))
    return found[0], found[1]


def figures(reference: np.ndarray, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    def log_p(x):
        x = x - x.max(1, keepdims=True)
        return x - np.log(np.exp(x).sum(1, keepdims=True))

    p, q = log_p(reference), log_p(outputs)
    same = reference.argmax(1) == outputs.argmax(1)
    noise = np.square(reference - outputs).sum()
    return {
        "db": 10 * np.log10(np.square(reference).sum() / noise),
        "kl": (np.exp(p) * (p - q)).sum(1).mean(),
        "agreement": 100 * same.mean(),
        "metric": 100 * (outputs.argmax(1) == labels).mean(),
        "fp32": 100 * (reference.argmax(1) == labels).mean(),
    }


RULES = {
    "the default": [],
    "coarse, folded": [{"match": "*", "weight": "per_tensor"}],
    "kept, with calibrators and rows of other roles": [
        {"match": {"type": "Conv2d"}, "weight": "per_tensor", "bn": "keep"},
        {"match": "block", "bn": "fold", "skip": "per_tensor", "output": "per_tensor"},
        {"match": "twice", "weight": "per_element", "input": {"calibrator": {"percentile": 99.0}}},
        {"match": "head", "weight": "float", "input": "float"},
        {"match": "depthwise", "input": "per_channel"},
    ],
}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_effects_equal_running_the_network_as_modelopt_quantizes_it(project, rules):
    from granplugin.analysis.effects import alone_name, choice_name, restored_name

    project.arrays = {
        "images": images(96),
        "labels": np.random.default_rng(1).integers(0, 10, 96),
    }
    recipe = write(project, "Residual", rules=rules)
    with session_of(recipe, project.out) as session:
        stages = rounded(session)
        network, plan = stages.network, stages.plan
        start = network.start()
        alone = list(start.items())
        found = stages.effects([start], alone, list(start))

        def of(keep) -> dict[str, float]:
            part = replace(plan, rows=tuple(row for row in plan.rows if keep(row)))
            return figures(*naive(session, part, stages.ranges), project.arrays["labels"])

        expected = {choice_name(network, start): of(lambda row: True)}
        for name, pair in alone:
            expected[alone_name(network, name, pair)] = of(lambda row: row.layer == name)
            expected[restored_name(network, name)] = of(lambda row: row.layer != name)
    assert found.keys() == expected.keys()
    for name, effect in found.items():
        said = expected[name]
        assert effect.sqnr.db == pytest.approx(said["db"], abs=0.2), name
        assert effect.kl.value == pytest.approx(said["kl"], rel=0.05, abs=1e-9), name
        # A sample whose two best classes nearly tie may fall on either side.
        for key in ("agreement", "metric"):
            assert getattr(effect, key).value == pytest.approx(said[key], abs=1.1), (name, key)
        assert effect.fp32_metric.value == pytest.approx(said["fp32"])
        assert effect.loss.value == pytest.approx(
            effect.fp32_metric.value - effect.metric.value, abs=1e-9
        )


def test_effects_on_tokens_are_means_over_all_positions(project):
    from granplugin.analysis.effects import alone_name

    project.arrays = {"images": images(64)}
    rules = [{"match": "mixes.*", "input": {"per_token": {"dynamic": True}}}]
    recipe = write(project, "Normed", {"tokens": True}, rules=rules, classes={"axis": -1})
    with session_of(recipe, project.out) as session:
        stages = rounded(session)
        start = stages.network.start()
        alone = [("embed", start["embed"]), ("mixes.1", start["mixes.1"])]
        found = stages.effects(alone=alone)
        for name, pair in alone:
            rows = tuple(row for row in stages.plan.rows if row.layer == name)
            part = replace(stages.plan, rows=rows)
            fp32, quantized = (out.reshape(-1, 10) for out in naive(session, part, stages.ranges))
            said = figures(fp32, quantized, np.zeros(len(fp32)))
            effect = found[alone_name(stages.network, name, pair)]
            assert effect.sqnr.db == pytest.approx(said["db"], abs=0.2)
            assert effect.kl.value == pytest.approx(said["kl"], rel=0.05)
            assert effect.agreement.value == pytest.approx(said["agreement"], abs=0.5)
            assert effect.measured_by == "decisions"


def test_an_analysis_does_not_depend_on_batch_size_or_order(project):
    found = []
    shuffled = np.random.default_rng(3).permutation(90)
    for order, size in ((np.arange(90), 64), (shuffled, 17), (shuffled[::-1], 90)):
        project.arrays = {"images": images(90)[order]}
        data = {"calibration": SOURCE, "batch_size": size}
        recipe = write(project, "Residual", data=data, rules=[COARSE], analyze={"exact": True})
        found.append(analyzed(recipe, project.out))
    first, *others = found
    for other in others:
        assert {x.layer: x.why for x in first.layers} == {x.layer: x.why for x in other.layers}
        for a in first.layers:
            b = layer_of(other, a.layer)
            for x, y in zip([*a.weights, *a.inputs], [*b.weights, *b.inputs], strict=True):
                assert x.both.db == pytest.approx(y.both.db, abs=0.05)
                assert (x.clipped, x.zeroed) == (y.clipped, y.zeroed)
            assert a.alone.sqnr.db == pytest.approx(b.alone.sqnr.db, abs=0.2)
            assert a.restored.sqnr.db == pytest.approx(b.restored.sqnr.db, abs=0.5)


# -- faults that are planted, the function unchanged ----------------------------------------------

COARSE = {"match": "**", "weight": "per_tensor"}
FILTER = re.compile(r"channel (\d+)'s filter is ([\d,.]+) times the median")
INPUT = re.compile(r"channel (\d+) reaches ([\d,.]+) times the median channel")
LAYERS = [*(f"convs.{n}" for n in range(7)), "head"]


def named(pattern: re.Pattern, layer) -> tuple[int, float]:
    """The channel and the factor that a sentence names."""
    channel, factor = pattern.search(layer.why).groups()
    return int(channel), float(factor.replace(",", ""))


def planted(project, layer: int, rules, **args) -> tuple:
    """The analysis of a chain of eight layers with one fault, of which three are measured."""
    project.arrays = {"images": images(64)}
    args = {"kind": "none", "layer": layer, "channel": (3 * layer + 1) % 8, **args}
    recipe = write(project, "Chain", args, rules=rules, analyze={"top": 3})
    found = analyzed(recipe, project.out)
    # Whatever else is ranked loses next to nothing.
    assert found.layers[2].loss_in == "neither"
    assert found.layers[2].why.startswith("nothing to gain")
    return found, args["channel"]


@pytest.mark.parametrize("layer", range(7))
def test_a_filter_that_its_batch_norm_scales_back_is_found_first(project, layer):
    rules = [COARSE, {"match": "convs.*", "bn": "keep"}]
    found, channel = planted(project, layer, rules, norms=True, kind="filter", factor=1000.0)
    first, second = found.layers[:2]
    assert (first.layer, first.loss_in, second.loss_in) == (f"convs.{layer}", "weight", "neither")
    assert first.alone.sqnr.db < 20 < second.alone.sqnr.db
    said, factor = named(FILTER, first)
    assert said == channel and 500 < factor < 2000
    assert re.search(r"per_tensor, bn keep loses \d\d dB", first.why)
    assert first.why.endswith("; bn: fold would not")
    assert ("a depthwise filter is all" in first.why) == (layer == 3)


@pytest.mark.parametrize("layer", range(7))
@pytest.mark.parametrize(("kind", "factor"), [("conv", 300.0), ("gamma", 30_000.0)])
def test_a_scaled_channel_is_found_at_both_places_that_lose_the_others(
    project, kind, factor, layer
):
    """One scale for the filters, and one for what they put out, are both too coarse: the two
    layers come first, in the order of what each does to the network's output, and each names the
    channel. An SQNR of the layer's own output would hide it: the scaled channel is all of it."""
    found, channel = planted(
        project, layer, [COARSE], norms=kind == "gamma", kind=kind, factor=factor
    )
    first, second = found.layers[:2]
    assert {first.layer, second.layer} == {LAYERS[layer], LAYERS[layer + 1]}
    assert first.alone.sqnr.db <= second.alone.sqnr.db < 20
    weight, given = (layer_of(found, LAYERS[n]) for n in (layer, layer + 1))
    # A weight with one scale loses the column that makes up for the channel, too.
    assert weight.loss_in == "weight" and given.loss_in in ("input", "both")
    for pattern, at in ((FILTER, weight), (INPUT, given)):
        said, times = named(pattern, at)
        assert said == channel and factor / 3 < times < 3 * factor
    own = next(figures for figures in weight.weights if figures.start)
    assert own.channels_lost > 0.5 and own.alone.db > 25
    assert re.search(r"takes [5-9]\d % of its channels' signal", weight.why)
    assert weight.why.endswith(" would not")


@pytest.mark.parametrize("layer", range(7))
def test_a_scaled_channel_is_a_fault_of_the_next_input_where_weights_are_per_channel(
    project, layer
):
    found, channel = planted(project, layer, [], norms=False, kind="conv", factor=300.0)
    first, second = found.layers[:2]
    assert (first.layer, first.loss_in, second.loss_in) == (LAYERS[layer + 1], "input", "neither")
    assert named(INPUT, first)[0] == channel
    assert "the weight's granularity cannot help" in first.why
    assert re.search(r"; per_channel wins back \d\d dB$", first.why)


@pytest.mark.parametrize("layer", range(7))
def test_faults_that_only_together_are_mended_are_advised_together(project, layer):
    """Mending the filter alone wins nothing while the input behind it loses the same channels."""
    project.arrays = {"images": images(96)}
    args = {"norms": False, "kind": "conv", "layer": layer, "channel": 3, "factor": 300.0}
    recipe = write(
        project, "Chain", {**args, "outputs": 1}, metrics=["sqnr_db"], rules=[COARSE],
        analyze={"top": 4, "tolerance": 5.0},
    )  # fmt: skip
    found = analyzed(recipe, project.out)
    changed = {name: o.rule for o in found.advice.overrides for name in o.layers}
    # per_channel where that is enough, and else float.
    mended = {"weight": "per_channel"}, {"input": "per_channel"}, {"format": "float"}
    for name in (LAYERS[layer], LAYERS[layer + 1]):
        assert any(rule.items() <= changed[name].items() for rule in mended)
    assert len(changed) <= 3 and found.advice.promise != "above"
    assert found.advice.suggested.loss.value <= found.tolerance
    assert found.advice.suggested.loss.value < found.start.loss.value / 1.5


@pytest.mark.parametrize("layer", range(4))
@pytest.mark.parametrize("rules", [[], [COARSE]], ids=["per_channel", "per_tensor"])
def test_a_norms_gain_is_an_outlier_of_the_input(project, layer, rules):
    project.arrays = {"images": images(64)}
    args = {"layer": layer, "channel": 5 + layer, "factor": 100.0}
    recipe = write(project, "Normed", args, rules=rules, analyze={"top": 3})
    found = analyzed(recipe, project.out)
    first = found.layers[0]
    assert (first.layer, first.loss_in) == (f"mixes.{layer}", "input")
    channel, factor = named(INPUT, first)
    assert channel == 5 + layer and 50 < factor < 200
    assert first.facts.widest_input == channel and first.facts.input_outliers == [channel]
    assert "the weight's granularity cannot help" in first.why
    assert re.search(r"; per_channel (wins back \d\d dB|takes [\d.]+ %)$", first.why)
    # It cannot: no granularity of the weight makes up for what the input lost.
    assert all(figures.both.db < first.inputs[1].alone.db - 10 for figures in first.weights)


@pytest.mark.parametrize("layers", [(1, 5, 3, 0, 6), (4, 2, 6, 1, 5), (0, 1, 2, 3, 4)])
def test_two_halves_of_the_data_give_the_same_top_5_of_layers_that_lose_something(project, layers):
    graded = [
        ["filter", layer, (3 * layer) % 8, factor]
        for layer, factor in zip(layers, (100.0, 30.0, 12.0, 6.0, 3.0), strict=True)
    ]
    found = []
    for half in (0, 1):
        project.arrays = {"images": images(256)[half::2]}
        rules = [COARSE, {"match": "convs.*", "bn": "keep"}]
        args = {"norms": True, "graded": graded}
        recipe = write(project, "Chain", args, rules=rules, analyze={"top": 6})
        analysis = analyzed(recipe, project.out)
        found.append([layer.layer for layer in analysis.layers[:5]])
        for layer in analysis.layers[:3]:
            assert named(FILTER, layer)[0] == 3 * int(layer.layer[-1]) % 8
    assert found[0] == found[1]
    assert set(found[0]) == {f"convs.{layer}" for layer in layers}


def test_a_network_without_a_fault_has_none(project):
    for norms, rules in ((True, [COARSE]), (False, [COARSE]), (True, [])):
        found, _ = planted(project, 0, rules, norms=norms)
        assert {layer.loss_in for layer in found.layers} == {"neither"}
        assert (found.advice.overrides, found.advice.verdict) == ([], "cannot tell")
        assert found.advice.said.startswith("Cannot tell whether anything needs to change: on 64")


# -- what a user can get wrong, and what can go wrong ----------------------------------------------

ODD = """
import torch
from torch import nn


class Odd(nn.Module):
    \"\"\"`loud` overflows on images that are brighter than 10; `never` does not run.\"\"\"

    def __init__(self, most=10**9):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.loud, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.never = nn.Linear(8, 8)
        self.most = most
        with torch.no_grad():
            self.loud.weight.abs_().add_(0.2)

    def forward(self, image):
        if len(image) > self.most:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory")
        x = self.first(image[:, 0]).relu()
        bright = image.amax((1, 2, 3))[:, None, None] > 10
        x = self.loud(torch.where(bright, torch.full_like(x, 3e38), x))
        return self.head(x).mean(1)
"""


def analyze(project, *argv) -> Done:
    recipe = project.folder / "recipe.yaml"
    return run_main("analyze", recipe, "--no-costs", "--out", project.out, *argv)


def refused(project, *words: str, argv=()) -> None:
    """analyze refuses in one sentence with these words, and leaves nothing."""
    before = {path: path.stat().st_mtime_ns for path in project.folder.iterdir() if path.is_file()}
    done = analyze(project, *argv)
    assert (done.code, done.stdout) == (2, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    after = {path: path.stat().st_mtime_ns for path in project.folder.iterdir() if path.is_file()}
    assert after == before and not (project.out / "analysis.json").exists()


def test_a_harmful_skip_is_named_and_left_float(project):
    project.arrays = {"images": images(128)}
    found = analyzed(write(project, "LoudSkip"), project.folder / "run")
    assert found.start.loss.value > 10 > found.tolerance > found.finest.loss.value
    (override,) = found.advice.overrides
    assert override.rule == {"match": "branch", "skip": "float"} and found.advice.promise != "above"
    assert layer_of(found, "branch").why.startswith("its skip loses, not its weight or input")
    (site,) = found.sites
    own = site.settings[0]
    assert site.site == "branch.skip" and own.channels_lost > 0.5 and own.costs["onnxruntime"]


@pytest.mark.parametrize("how", ["amax", "share"])
def test_a_range_that_the_recipe_itself_says_is_told_and_not_advised_upon(project, how):
    project.arrays = {"images": images(96)}
    if how == "amax":
        rules = [{"match": "branch", "skip": "float"}, {"match": "head", "input": {"amax": 0.002}}]
        recipe = write(project, "LoudSkip", rules=rules)
    else:
        share = [{"match": ["stem", "head"], "role": "input"}]
        recipe = write(project, "Residual", share=share, analyze={"tolerance": 0.0})
    found = analyzed(recipe, project.folder / "run")
    rules = [o.rule for o in found.advice.overrides if "head" in o.layers]
    assert all("input" not in rule for rule in rules)
    if how == "amax":
        assert found.advice.promise != "within"
        assert "The recipe itself says the range of head.input" in found.advice.said


@pytest.fixture
def small(project):
    """A project whose recipe analyze takes."""
    project.arrays = {"images": images(64)}
    write(project, "Residual")
    return project


def test_no_samples_and_fewer_than_asked_are_errors_at_the_datas_line(small):
    small.arrays["none"] = images(0)
    none = {**SOURCE, "inputs": {"image": "none"}}
    write(small, "Residual", data={"calibration": none})
    refused(small, "recipe.yaml:6:", "calibration data", "there are no samples")
    write(small, "Residual", data={"calibration": SOURCE, "analysis": none})
    refused(small, "recipe.yaml:10:", "analysis data", "there are no samples")
    write(small, "Residual", data={"calibration": SOURCE, "analysis": {**SOURCE, "samples": 65}})
    refused(small, "recipe.yaml:10:", "it has 64 samples, and samples: 65 are asked for")
    write(small, "Residual", data={})
    refused(small, "recipe.yaml:5:", "'calibration' is missing")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"tops": 3}, ["recipe.yaml:28:3", "'tops'", "did you mean 'top'?"]),
        ({"top": -1}, ["recipe.yaml:28:3", "-1"]),
        ({"calibrators": ["maxx"]}, ["recipe.yaml:24:5", "did you mean 'max'?"]),
        ({"bn": ["folded"]}, ["recipe.yaml:29:5", "did you mean 'fold'?"]),
        ({"weights": []}, ["recipe.yaml:28:3", "one at least"]),
        ({"inputs": ["per_chanel"]}, ["recipe.yaml:26:5", "did you mean 'per_channel'?"]),
        ({"tolerance": "little"}, ["recipe.yaml:28:3", "a number is expected"]),
    ],
    ids=lambda said: next(iter(said)) if isinstance(said, dict) else "",
)
def test_a_wrong_key_or_value_is_an_error_at_its_line(small, said, words):
    write(small, "Residual", analyze=said)
    refused(small, *words)


def test_a_recipe_that_cannot_be_written_is_refused_before_the_work(small, monkeypatch):
    from granplugin.pipelines import analyze

    monkeypatch.delattr(analyze, "analyze_in")
    recipe, base = small.folder / "recipe.yaml", small.folder / "base.yaml"
    recipe.rename(base)
    recipe.write_text("version: 1\nextends: base.yaml\n")
    for target, word in (
        (small.folder / "none" / "s.yaml", "there is no folder"),
        (small.folder, "is a folder"),
        (recipe, "extends it"),
        (small.folder / "." / "base.yaml", "extends it"),
    ):
        refused(small, str(target), word, argv=["--write-recipe", target])


@pytest.mark.parametrize("which", ["calibration", "analysis"])
@pytest.mark.parametrize("sample", [3, 40])
def test_nan_from_one_layer_for_one_sample_names_the_layer(project, which, sample):
    project.write("odd.py", ODD)
    project.arrays = {"images": images(64), "clean": images(64, 1)}
    project.arrays["images"][sample, 0, 0, 0] = 20
    clean = {**SOURCE, "inputs": {"image": "clean"}}
    data = {"calibration": clean, "analysis": clean, which: SOURCE}
    write(project, "-", model={"callable": "odd.py:Odd"}, data=data)
    line = {"calibration": 5, "analysis": 9}[which]
    layer = {"calibration": "head.input", "analysis": "loud"}[which]
    refused(project, f"recipe.yaml:{line}:3: {layer}: ", "NaN or Inf", f"{which} data")


def test_a_layer_that_never_runs_and_settings_that_do_not_apply_are_listed(project):
    project.write("odd.py", ODD)
    project.arrays = {"images": images(64)}
    asked = {"weights": ["per_channel", {"per_block": {"size": 3, "axis": 1}}]}
    write(project, "-", model={"callable": "odd.py:Odd"}, analyze=asked)
    done = analyze(project)
    assert done.code == 4, done.stderr
    found = Analysis.model_validate_json((project.out / "analysis.json").read_text())
    assert {layer.layer for layer in found.layers} == {"first", "loud", "head"}
    reasons = {skipped.site: skipped.reason for skipped in found.skipped}
    assert reasons.pop("never") == "never runs in the forward pass"
    assert reasons.keys() == {"first.weight", "loud.weight", "head.weight"}
    assert all("3 does not divide axis 1" in reason for reason in reasons.values())
    assert f"{len(found.skipped)} " in done.stdout and "skipped" in done.stdout


def test_out_of_memory_halves_the_batch_once_and_says_so(project):
    project.write("odd.py", ODD)
    project.arrays = {"images": images(64)}
    found = []
    for most in (32, 20):
        model = {"callable": "odd.py:Odd", "args": {"most": most}}
        write(project, "-", model=model)
        assert analyze(project).code == 4
        found.append(Analysis.model_validate_json((project.out / "analysis.json").read_text()))
    log = (project.out / "analyze_log.txt").read_text()
    assert log.count("out of memory with 32 samples in a batch; halving it") == 2  # local, effects
    whole, halved = found
    assert [layer.layer for layer in whole.layers] == [layer.layer for layer in halved.layers]
    for a, b in zip(whole.layers, halved.layers, strict=True):
        assert a.alone.sqnr.db == pytest.approx(b.alone.sqnr.db, abs=0.2)
        assert a.weights[0].alone.db == pytest.approx(b.weights[0].alone.db, abs=0.2)
    (project.out / "analysis.json").unlink()
    write(project, "-", model={"callable": "odd.py:Odd", "args": {"most": 7}})
    done = analyze(project)
    assert done.code == 2
    warned, said = done.stderr.splitlines()
    assert "16 samples in a batch; halving it" in warned
    assert "out of memory with 8 samples in a batch, which is half of what was asked" in said


def test_a_recipe_that_quantizes_nothing_is_told_so_and_gets_no_overrides(small):
    write(small, "Residual", rules=[{"match": "**", "weight": "float", "input": "float"}])
    target = small.folder / "suggested.yaml"
    done = analyze(small, "--write-recipe", target)
    assert done.code == 0, done.stderr
    assert "quantizes nothing whose settings could be tried" in " ".join(done.stdout.split())
    assert yaml.safe_load(target.read_text())["rules"] == []
    found = Analysis.model_validate_json((small.out / "analysis.json").read_text())
    assert found.start is None and len(found.layers) == 5


@pytest.fixture
def forwards(monkeypatch):
    """The number of forward passes since, and at which of them to press ^C."""
    from granplugin.analysis import by_torch, replayed, rounded

    run = rounded.run

    told = {"count": 0, "stop": 0}

    def counted(model, tensors):
        told["count"] += 1
        if told["count"] == told["stop"]:
            raise KeyboardInterrupt
        return run(model, tensors)

    for module in (by_torch, replayed):
        monkeypatch.setattr(module, "run", counted)
    return told


def test_an_interrupted_analysis_goes_on_where_it_was(small, forwards):
    small.arrays = {"images": images(160)}
    write(small, "Residual", rules=[COARSE], analyze={"top": 2, "exact": True})

    def go(stop: int = 0) -> tuple[Done, int]:
        forwards.update(count=0, stop=stop)
        return analyze(small), forwards["count"]

    done, whole = go()
    expected = (small.out / "analysis.json").read_text()
    code = done.code
    assert code in (0, 4) and whole > 30
    again, repeated = go()
    assert (again.code, repeated) == (code, 0)
    for stop in range(2, whole, 7):
        shutil.rmtree(small.out)
        stopped, first = go(stop)
        assert (stopped.code, first) == (130, stop), stopped.stderr
        assert not (small.out / "analysis.json").exists()
        done, rest = go()
        assert done.code == code, done.stderr
        # The batch that was stopped is run again, and what each pass learns of the model.
        assert stop + rest <= whole + 20
        text = (small.out / "analysis.json").read_text()
        assert without_times(text) == without_times(expected)


def without_times(text: str) -> dict:
    found = json.loads(text)
    return {key: value for key, value in found.items() if key not in ("seconds", "machine")}


def test_a_killed_analysis_goes_on_behind_the_stages_that_were_done(small, forks):
    """SIGTERM, as a scheduler sends it, in the middle of the local errors."""
    nets = (small.folder / "nets.py").read_text()
    small.write(
        "nets.py",
        nets + "\nimport os, signal\n\n\nclass Killed(Residual):\n"
        "    def forward(self, image):\n"
        "        if os.path.exists('kill') and len(image) == 32:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "        return super().forward(image)\n",
    )
    small.recipe(**yaml.safe_load((small.folder / "recipe.yaml").read_text()))
    text = (small.folder / "recipe.yaml").read_text().replace("nets.py:Residual", "nets.py:Killed")
    (small.folder / "recipe.yaml").write_text(text)
    (small.folder / "kill").touch()
    argv = ["granplugin", "analyze", "recipe.yaml", "--no-costs", "--out", small.out]
    done = forks.run(argv, cwd=small.folder)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    kept = {path: path.stat().st_mtime_ns for path in small.out.glob("cache/statistics-*")}
    assert kept and not (small.out / "analysis.json").exists()
    (small.folder / "kill").unlink()
    done = analyze(small)
    assert done.code == 4, done.stderr
    assert {p: p.stat().st_mtime_ns for p in small.out.glob("cache/statistics-*")} == kept


# -- the shipped MobileNet, all per_tensor and folded ----------------------------------------------

SHIPPED = RECIPES / "digits_mobilenet_per_tensor.yaml"
CULPRIT = "features.1.depthwise.conv"
QUICKSTARTS = pytest.mark.xdist_group("quickstart")  # whose network they are about


class Half(NamedTuple):
    """An analysis of the shipped network on half of the training digits."""

    folder: Path
    analysis: Analysis
    suggested: Path

    def analyze(self, *argv: object) -> Done:
        return run_main("analyze", *argv, "--no-costs", "--out", self.folder / "run")


@pytest.fixture(scope="session")
def halves(tmp_path_factory) -> list[Half]:
    found = []
    with np.load(RECIPES / "data/digits.npz") as digits:
        arrays = {name: digits[f"train_{name}"] for name in ("images", "labels")}
    for start in (0, 1):
        folder = tmp_path_factory.mktemp(f"half_{start}")
        np.savez(folder / "half.npz", **{name: array[start::2] for name, array in arrays.items()})
        source = {"npz": "half.npz", "inputs": {"image": "images"}}
        recipe = {
            "version": 1,
            "extends": str(SHIPPED),
            "data": {
                "calibration": {**source, "samples": 96},
                "analysis": {**source, "labels": "labels", "samples": 160},
            },
            "precision": "fp32",
            "optional_engines": [],
            "baselines": ["fp32"],
            "analyze": {"calibrators": ["max"], "inputs": ["per_tensor"], "top": 5},
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        half = Half(folder, None, folder / "suggested.yaml")
        done = half.analyze(folder / "recipe.yaml", "--write-recipe", half.suggested)
        assert done.code == 0, done.stderr
        text = (folder / "run/analysis.json").read_text()
        found.append(half._replace(analysis=Analysis.model_validate_json(text)))
    return found


@QUICKSTARTS
def test_two_halves_of_the_data_find_the_same_and_suggest_the_same(halves):
    a, b = (half.analysis for half in halves)
    assert [override.rule for override in a.advice.overrides] == [
        override.rule for override in b.advice.overrides
    ]
    rules = [yaml.safe_load(half.suggested.read_text())["rules"] for half in halves]
    assert rules[0] == rules[1] == [{"match": CULPRIT, "bn": "keep"}]
    for found in (a, b):
        first, *others = found.layers
        assert first.layer == CULPRIT and first.alone.loss.low > 50
        said, factor = named(FILTER, first)
        assert (said, round(factor, -1)) == (12, 430)
        assert "a depthwise filter is all its channel has; bn: keep would not" in first.why
        # No other layer does anything that these samples could tell from nothing.
        assert {layer.loss_in for layer in others} == {"neither"}
        assert all(layer.alone.loss.low <= 0 for layer in others if layer.alone)


@QUICKSTARTS
def test_the_suggested_recipe_is_applied_as_it_is_and_keeps_its_promise(halves, quickstart):
    """On the test split, of which the analysis knew nothing."""
    half = halves[0]
    lend(quickstart.folder, half.folder / "run", "float")
    promised = half.analysis.advice
    assert promised.promise != "above" and (promised.per_tensor, promised.layers) == (53, 53)
    assert "53 of 53 weights are per_tensor" in promised.said
    done = run_main("apply", half.suggested, "--out", half.folder / "run")
    assert done.code == 0, done.stderr
    report = Report.model_validate_json((half.folder / "run/report.json").read_text())
    (variant,) = [variant for variant in report.variants if variant.kind != "baseline"]
    against = variant.engines[0].metrics["top1"].vs["fp32"]
    assert against.verdict == "no measurable difference"
    loss = promised.suggested.loss
    assert loss.low <= -against.value <= loss.high
    weights = {o.layer: o.now for o in report.overrides if o.role == "weight"}
    assert len(weights) == promised.per_tensor
    assert all(now.startswith("per_tensor") for now in weights.values())


@QUICKSTARTS
def test_with_batch_norms_kept_nothing_is_suggested(halves):
    half = halves[1]
    kept = half.folder / "kept.yaml"
    rule = {"match": {"type": "Conv2d"}, "bn": "keep"}
    kept.write_text(
        yaml.safe_dump({"version": 1, "extends": "recipe.yaml", "rules": [rule]}, sort_keys=False)
    )
    target = half.folder / "nothing.yaml"
    done = half.analyze(kept, "--write-recipe", target, "--set", "analyze.top=2")
    # Of 160 samples that all decide as fp32 does, one in 50 of others may not.
    assert done.code == 4, done.stderr
    assert "some 390 samples like these could tell" in " ".join(done.stdout.split())
    assert yaml.safe_load(target.read_text())["rules"] == []


# -- what is predicted of whole recipes ------------------------------------------------------------


def test_the_predicted_output_sqnr_ranks_random_recipes_as_apply_measures_them(
    project, monkeypatch
):
    """The noise powers of layers alone add up; bench/predict.py has the shipped network."""
    from granplugin.store.run_folder import open_run

    monkeypatch.syspath_prepend(ROOT / "bench")
    import predict

    project.arrays = {"images": images(96)}
    graded = [["filter", 1, 2, 10.0], ["filter", 3, 5, 30.0], ["gamma", 5, 1, 3.0]]
    recipe = yaml.safe_load(
        write(project, "Chain", {"norms": True, "graded": graded}, data=None).read_text()
    )
    recipe["data"] = {"calibration": SOURCE}
    with open_run(project.out) as run:
        said, measured = predict.random_recipes(project.folder, run, recipe, 12)
    correlation = np.corrcoef(said.argsort().argsort(), measured.argsort().argsort())[0, 1]
    worst = np.abs(said - measured).max()
    print(f"rank correlation {correlation:.3f}, worst miss {worst:.1f} dB")
    assert np.ptp(measured) > 10
    assert correlation > 0.7 and worst < 3
