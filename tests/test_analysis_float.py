"""Float as a setting that analyze tries: exact, of no scales, and the last that it advises."""

from __future__ import annotations

import math

from analysis_nets import analyzed, images, layer_of, rounded, session_of, write

FLOATS = {"weights": ["per_tensor", "float"], "inputs": ["per_tensor", "float"]}


def test_float_is_a_setting_that_changes_nothing_and_takes_no_scales(project):
    project.arrays = {"images": images(64)}
    rules = [{"match": "head", "format": "float"}]
    found = analyzed(write(project, "Residual", rules=rules, analyze=FLOATS), project.out)
    for layer in found.layers:
        for settings in (layer.weights, layer.inputs):
            *others, last = settings
            assert (last.setting, last.format, last.granularity) == ("float", "float", None)
            assert (last.alone.db, last.channels_lost, last.scales) == (math.inf, 0.0, 0)
            assert {cost.promise for cost in last.costs.values()} == {"float"}
            assert last.start == (layer.layer == "head")
            assert all(each.format == "int8" for each in others)


def test_float_alone_may_be_asked(project):
    project.arrays = {"images": images(64)}
    asked = {"weights": "float", "inputs": "float"}
    found = analyzed(write(project, "Residual", analyze=asked), project.out)
    assert [each.setting for each in layer_of(found, "head").inputs] == ["per_tensor", "float"]


def test_a_layer_left_float_is_the_network_without_it_and_half_of_it_is_allowed(project):
    from granplugin.analysis.effects import choice_name, restored_name
    from granplugin.analysis.suggestion import suggest

    project.arrays = {"images": images(64)}
    rules = [{"match": "block", "skip": "per_tensor", "output": "per_tensor"}]
    with session_of(
        write(project, "Residual", rules=rules, analyze=FLOATS), project.out
    ) as session:
        stages = rounded(session)
        network, start = stages.network, stages.network.start()
        without = {**start, "block": (None, None)}
        found = stages.effects([without], restored=["block"])
        one, other = found[choice_name(network, without)], found[restored_name(network, "block")]
        assert one.sqnr.db == other.sqnr.db
        pairs = {"block": (None, None), "head": (None, 0), "stem": (0, None)}
        said = suggest(pairs, start, network, {}, dict.fromkeys(pairs, ""), session.layers)
    assert [each.rule for each in said] == [
        {"match": "block", "format": "float"},
        {"match": "head", "weight": "float", "half": "allow"},
        {"match": "stem", "input": "float", "half": "allow"},
    ]


def test_a_layer_of_which_only_the_weight_is_quantized_is_told_and_promised_so(project):
    project.arrays = {"images": images(64)}
    rules = [
        {"match": "head", "input": "float", "half": "allow"},
        {"match": "twice", "format": "float"},
    ]
    found = analyzed(write(project, "Residual", rules=rules), project.out)
    head = layer_of(found, "head")
    assert head.loss_in in ("weight", "neither")
    weight = next(setting for setting in head.weights if setting.start)
    # The other site is float, as the recipe has it.
    assert weight.both == weight.alone
    assert not any(setting.start for setting in head.inputs)
    assert layer_of(found, "twice").why == "the recipe leaves it float"
