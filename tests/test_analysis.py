"""An analysis from recipe to advice: effects against brute force, faults that were planted, halves
of the data, the suggested recipe as `apply` takes it, and what a user can get wrong."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from analysis_nets import analyzed, images, layer_of, session_of, write

# -- effects on the network's output, against running the quantized network -----------------------


def naive(session, plan, ranges) -> tuple[np.ndarray, np.ndarray]:
    """The outputs of FP32 and of the plan as modelopt computes it, over all analysis samples."""
    import torch

    found = []
    amax = {row.site: ranges[row] for row in plan.quantized if ranges.get(row) is not None}
    for model in (session.model, session.quantized(plan, amax)):
        with torch.no_grad():
            parts = [model(**session.tensors(batch)) for batch in session.analysis]
        found.append(torch.cat(parts).double().numpy())
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
    from granplugin.analysis.run import Analyzer

    project.arrays = {
        "images": images(96),
        "labels": np.random.default_rng(1).integers(0, 10, 96),
    }
    recipe = write(project, "Residual", rules=rules)
    with session_of(recipe, project.out) as session:
        analyzer = Analyzer(session)
        network, plan = analyzer.network, analyzer.plan
        start = network.start()
        alone = list(start.items())
        found = analyzer.effects([start], alone, list(start))

        def of(keep) -> dict[str, float]:
            part = replace(plan, rows=tuple(row for row in plan.rows if keep(row)))
            return figures(*naive(session, part, analyzer.ranges), project.arrays["labels"])

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


# -- faults that are planted, the function unchanged ----------------------------------------------

COARSE = {"match": "**", "weight": "per_tensor"}
FILTER = re.compile(r"channel (\d+)'s filter is ([\d,]+) times the median")
INPUT = re.compile(r"channel (\d+) reaches ([\d,]+) times the median channel")
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
    assert (weight.loss_in, given.loss_in) == ("weight", "input")
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


def test_a_network_without_a_fault_has_none(project):
    for norms, rules in ((True, [COARSE]), (False, [COARSE]), (True, [])):
        found, _ = planted(project, 0, rules, norms=norms)
        assert {layer.loss_in for layer in found.layers} == {"neither"}
        assert (found.advice.overrides, found.advice.reached) == ([], True)
        assert found.advice.said.startswith("Nothing needs to change")
