"""The plan: the last matching rule decides, key by key, and what cannot be is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_values import layer_of

from granplugin.errors import RecipeError, UserError
from granplugin.planning.plan import make_plan, preset_plan
from granplugin.planning.row_json import row_from_json, row_to_json
from granplugin.planning.rows import FloatRow, QuantizedRow
from granplugin.planning.story import why
from granplugin.quant.calibrators import Calibrator
from granplugin.quant.formats import FORMATS
from granplugin.quant.granularity import (
    DoesNotApply,
    PerBlock,
    PerElement,
    PerTensor,
    PerToken,
    parse_granularity,
)
from granplugin.quant.layers import layer_from_json, layer_to_json
from granplugin.quant.site import OPERANDS, Site
from granplugin.recipe.load import load_recipe, load_variants

BASE = {
    "version": 1,
    "model": {"callable": "some.module:net"},
    "data": {"calibration": {"callable": "some.module:data"}},
}


def conv(name, **changed):
    shapes = {"weight": (8, 4, 3, 3), "input": (1, 4, 8, 8), "output": (1, 8, 8, 8)}
    return layer_of(name, "Conv2d", {**shapes, **changed.pop("shapes", {})}, **changed)


def linear(name, **changed):
    shapes = {"weight": (16, 32), "input": (1, 5, 32), "output": (1, 5, 16)}
    return layer_of(name, "Linear", shapes, **changed)


NET = [
    conv("stem.conv", traits=frozenset({"first"}), bn="stem.bn"),
    layer_of("stem.bn", "BatchNorm2d", {"input": (1, 8, 8, 8), "output": (1, 8, 8, 8)}),
    conv("mid.conv", shapes={"weight": (8, 1, 3, 3), "input": (1, 8, 8, 8)}, groups=8,
         traits=frozenset({"depthwise"})),
    layer_of("up", "ConvTranspose2d", {"weight": (8, 4, 2, 2), "input": (1, 8, 8, 8),
                                       "output": (1, 8, 16, 16)}, groups=2),
    layer_of("pool", "AvgPool2d", {"input": (1, 8, 8, 8), "output": (1, 8, 4, 4)}),
    linear("head.fc"),
    linear("never", unusable="it is never called"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plan")


@pytest.fixture
def recipe(folder, monkeypatch):
    """Loads a recipe of these rules and other keys; one rule a line, the first in line 2."""
    monkeypatch.chdir(folder)
    return loaded


def loaded(rules=(), **keys):
    lines = ",\n".join(json.dumps(rule) for rule in rules)
    text = json.dumps({**BASE, **keys})[:-1] + f', "rules": [\n{lines}]}}'
    Path("r.yaml").write_text(text)
    return load_recipe(Path("r.yaml"))


def plan_of(rules=(), layers=NET, **keys):
    return make_plan(loaded(rules, **keys), layers)


def row_of(plan, layer, role):
    return next(row for row in plan.rows if (row.layer, row.operand) == (layer, role))


def refused(rules=(), layers=NET, **keys):
    with pytest.raises(RecipeError) as caught:
        plan_of(rules, layers, **keys)
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    return said


ROLES = ("weight", "input", "output")
MATCHES = {
    "**": lambda layer: True,
    "*.conv": lambda layer: layer.name.endswith(".conv"),
    "head.fc": lambda layer: layer.name == "head.fc",
}
FREE = [name for name, fmt in FORMATS.items() if fmt.block is None]
GRANULARITIES = [
    "per_tensor", {"per_channel": {"axis": 1}}, "per_element",
    {"per_block": {"size": 1, "axis": 1}},
]  # fmt: skip
site_settings = st.fixed_dictionaries(
    {},
    optional={
        "format": st.sampled_from([*FREE, "float"]),
        "granularity": st.sampled_from(GRANULARITIES),
        "calibrator": st.just("max"),
        "amax": st.sampled_from([0.5, 2.0]),
    },
)
rule_lists = st.lists(
    st.fixed_dictionaries(
        {"match": st.sampled_from(list(MATCHES)), "half": st.just("allow")},
        optional={
            "format": st.sampled_from([*FREE, "float"]),
            "weight": site_settings,
            "input": site_settings,
            "output": site_settings,
        },
    ),
    max_size=5,
)
SMALL = [conv("stem.conv"), conv("mid.conv"), linear("head.fc")]


def naive(layer, rules):
    """{role: {key: value}}, by going through the rules backwards for each key."""
    decided = {}
    for role in ROLES:
        for key in ("format", "granularity", "calibrator", "amax"):
            decided[role, key] = next(
                (value for rule in reversed(rules) if MATCHES[rule["match"]](layer)
                 and (value := said(rule, role, key)) is not None),
                {"granularity": "per_channel" if role == "weight" else "per_tensor",
                 "format": "float" if role == "output" else "int8"}.get(key),
            )  # fmt: skip
        for rule in reversed(rules):  # a calibrator finds a pinned range again
            if MATCHES[rule["match"]](layer) and {"calibrator", "amax"} & rule.get(role, {}).keys():
                decided[role, "amax"] = rule[role].get("amax")
                break
    return decided


def said(rule, role, key):
    value = rule.get(role, {}).get(key)
    if key == "format" and value is None and (rule.get(key) == "float" or role != "output"):
        value = rule.get(key)
    return value


@given(rule_lists)
@settings(deadline=None, max_examples=80)
def test_the_last_matching_rule_decides_key_by_key(folder, rules):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        plan = plan_of(rules, SMALL)
    for layer in SMALL:
        decided = naive(layer, rules)
        for role in ROLES:
            row = row_of(plan, layer.name, role)
            assert row.format == decided[role, "format"]
            if row.quantized:
                assert row.granularity == parse_granularity(decided[role, "granularity"])
                assert row.amax == decided[role, "amax"]


@given(rule_lists)
@settings(deadline=None, max_examples=30)
def test_why_ends_in_what_the_plan_says(folder, rules):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        recipe = loaded(rules)
    plan = make_plan(recipe, SMALL)
    for layer in SMALL:
        story = [line for line in why(recipe, SMALL, plan, layer.name) if line.startswith("=> ")]
        for row in plan.rows:
            if row.layer == layer.name and row.quantized:
                assert any(
                    f"{row.operand}: {row.format} {row.granularity}" in line for line in story
                )


def test_a_block_size_never_survives_a_new_granularity(recipe):
    plan = plan_of([
        {"match": "head.fc", "weight": {"per_block": {"size": 4, "axis": 1}}},
        {"match": "head.fc", "weight": {"per_block": {"size": 8}}},
        {"match": "stem.conv", "weight": {"per_block": {"size": 2, "axis": 1}}},
        {"match": "stem.conv", "weight": "per_channel"},
    ])  # fmt: skip
    assert row_of(plan, "head.fc", "weight").granularity == PerBlock(size=8)
    assert row_of(plan, "stem.conv", "weight").block == (1, 4, 3, 3)


def test_only_format_switches_a_layer_back_on(recipe):
    off = {"match": "**", "format": "float"}
    keys = {"match": "head.fc", "weight": {"granularity": "per_tensor", "amax": 1.0}}
    plan = plan_of([off, keys])
    assert not plan.quantized
    assert [(use.matched, use.decides > 0) for use in plan.uses] == [(7, True), (1, False)]
    assert plan.notes == ("r.yaml:3:1: rule 2 decides nothing: later rules or format: float win",)
    plan = plan_of([off, keys, {"match": "head.fc", "format": "int8"}])
    assert {row.site for row in plan.quantized} == {"head.fc.weight", "head.fc.input"}
    assert row_of(plan, "head.fc", "weight").amax == 1.0


def test_a_row_names_the_last_rule_whose_word_counts(recipe):
    plan = plan_of([
        {"id": "one", "match": "**.conv", "weight": "per_tensor"},
        {"match": "stem.conv", "weight": {"amax": 2.0}},
    ])  # fmt: skip
    where = {row.layer: (row.rule, row.where) for row in plan.rows if row.operand == "weight"}
    assert where["mid.conv"] == ("one", "r.yaml:2:1")
    assert where["stem.conv"] == ("rule 2", "r.yaml:3:1")
    assert where["head.fc"] == ("tensorrt@11", "r.yaml:1:1")


def test_a_granularity_that_equals_a_coarser_one_by_shape_is_noted(recipe):
    plan = plan_of([
        {"match": "mid.conv", "weight": {"per_block": {"shape": [1, 1, 3, 3]}}},
        {"match": "head.fc", "weight": {"per_block": {"shape": [16, 32]}}},
        {"match": "stem.conv", "weight": "per_element"},
    ])  # fmt: skip
    assert row_of(plan, "mid.conv", "weight").note == "equals per_channel here"
    assert row_of(plan, "head.fc", "weight").note == "equals per_tensor here"
    assert row_of(plan, "stem.conv", "weight").note is None


def test_pools_norms_and_outputs_are_float_until_format_says_otherwise(recipe):
    assert {row.type for row in plan_of().quantized} == {"Conv2d", "ConvTranspose2d", "Linear"}
    assert not any(row.operand == "output" for row in plan_of().quantized)
    plan = plan_of([
        {"match": "pool", "format": "int8"},
        {"match": "head.fc", "output": "int8"},
    ])  # fmt: skip
    assert row_of(plan, "pool", "input").quantized and not row_of(plan, "pool", "output").quantized
    assert row_of(plan, "head.fc", "output").granularity == PerTensor()


def test_batch_norms_fold_by_default_where_they_can_and_by_choice(recipe):
    assert plan_of().folded == {"stem.conv"}
    assert plan_of([{"match": "stem.conv", "bn": "keep"}]).folded == set()
    assert plan_of(defaults="modelopt@0.47").folded == set()
    off = {"match": "**", "format": "float"}
    assert plan_of([off]).folded == set()
    assert plan_of([off, {"match": "stem.conv", "bn": "fold"}]).folded == {"stem.conv"}


def test_spelt_out_defaults_quantize_the_roles_they_name(recipe):
    plan = plan_of(defaults={"weight": {"per_block": {"size": 1}}, "input": "int4", "bn": "fold"})
    row = row_of(plan, "head.fc", "weight")
    assert (row.format, row.granularity) == ("int8", PerBlock(size=1))
    assert str(row.calibrator) == "max"
    assert row_of(plan, "head.fc", "input").format == "int4"
    assert not row_of(plan, "head.fc", "output").quantized
    assert plan.folded == {"stem.conv"}
    assert "half: allow" in refused(defaults={"weight": "per_tensor"})
    assert plan_of(defaults={"weight": "per_tensor", "half": "allow"}).quantized


def test_a_preset_is_the_recipe_without_its_rules(recipe):
    with_rules = loaded([{"match": "**.conv", "weight": "per_tensor"}])
    for name in ("tensorrt@11", "modelopt@0.47"):
        bare = make_plan(loaded(defaults=name), NET)
        preset = preset_plan(name, NET, with_rules)
        assert [replace(row, where="") for row in preset.rows] == [
            replace(row, where="") for row in bare.rows
        ]


def test_optional_lets_a_rule_match_nothing(recipe):
    rule = {"match": "nowhere", "bn": "fold"}
    assert refused([rule]).startswith("r.yaml:2:2: 'nowhere' matches no layer")
    assert plan_of([{**rule, "optional": True}]).uses[0].matched == 0


REFUSALS = {
    "no layer": ({"match": "steam.conv", "bn": "fold"},
                 "2:2: 'steam.conv' matches no layer; nearest: 'stem.conv'"),
    "one name of several": ({"match": ["head.fc", "stem.cov"], "weight": "per_tensor"},
                            "2:23: 'stem.cov' matches no layer; nearest: 'stem.conv'"),
    "an excluded name": ({"match": {"type": "Conv2d", "exclude": "stme.conv"}, "bn": "fold"},
                         "2:30: 'stme.conv' matches no layer; nearest: 'stem.conv'"),
    "one excluded of two": ({"match": {"type": "Conv2d", "exclude": ["mid.*", "stme.*"]},
                             "bn": "fold"},
                            "2:51: 'stme.*' matches no layer; nearest: 'stem.*'"),
    "never used": ({"match": "never", "weight": "per_tensor"},
                   "2:2: 'never' cannot be quantized: it is never called"),
    "no weight": ({"match": "pool", "weight": "per_tensor"}, "2:19: no layer this rule matches"),
    "no other": ({"match": "head.fc", "other": "per_tensor"},
                 "2:22: no layer this rule matches multiplies two activations, and so has"),
    "no batch norm": ({"match": "head.fc", "bn": "fold"},
                      "2:22: no layer this rule matches has a batch norm"),
    "block": ({"match": "head.fc", "weight": {"per_block": {"size": 5}}},
              "2:22: 'head.fc': per_block: 5 does not divide axis 1 of [16, 32]; 4 or 8 would"),
    "axis": ({"match": "stem.conv", "weight": {"granularity": {"per_channel": {"axis": 4}}}},
             "2:35: 'stem.conv': axis 4 is out of range for [8, 4, 3, 3]"),
    "grouped": ({"match": "up", "weight": "per_channel"},
                "2:17: 'up': per_channel: no single axis is the output channel here; give axis"),
    "batch": ({"match": "stem.conv", "input": {"per_channel": {"axis": 0}}},
              "2:24: 'stem.conv': axis 0 of an input is the batch"),
    "batch block": ({"match": "stem.conv", "input": {"per_block": {"shape": [2, 4, 8, 8]}}},
                    "axis 0 is the batch and is never cut; write 1"),
    "token": ({"match": "stem.conv", "input": "per_token"},
              "per_token: only inputs whose last axis is the features have tokens"),
    "half": ({"match": "head.fc", "weight": {"format": "float"}},
             "2:33: 'head.fc': only its input would be quantized"),
    "other half": ({"match": "head.fc", "input": "float"},
                   "'head.fc': only its weight would be quantized"),
    "dynamic weight": ({"match": "head.fc", "weight": {"per_tensor": {"dynamic": True}}},
                       "2:22: 'head.fc': per_tensor: only an input has scales computed at run"),
    "dynamic output": ({"match": "head.fc", "output": {"per_token": {"dynamic": True},
                                                       "format": "int8"}},
                       "'head.fc': per_token: only an input has scales computed at run time"),
    "dynamic pool": ({"match": "pool", "input": {"per_tensor": {"dynamic": True},
                                                 "format": "int8"}},
                     "'pool': AvgPool2d has no product behind which scales of run time"),
    "dynamic amax": ({"match": "head.fc", "input": {"per_token": {"dynamic": True}, "amax": 1}},
                     "2:64: per_token(dynamic) has its ranges at run time: no amax"),
    "few values": ({"match": "mid.conv", "weight": {"calibrator": "entropy"}},
                   "2:34: 'mid.conv': entropy needs at least 16,384 values per scale and has 9"),
    "folded": ({"match": "stem.bn", "input": "int8"},
               "2:1: 'stem.bn' is folded into 'stem.conv'; quantize that layer's output"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_is_refused_at_the_rules_line(recipe, case):
    rule, wanted = REFUSALS[case]
    said = refused([rule])
    assert said.startswith("r.yaml:2:") and wanted in said


DYNAMIC = {"match": "head.fc", "input": {"per_token": {"dynamic": True}}}


@pytest.mark.parametrize("key", [{"calibrator": "mse"}, {"amax": 3}], ids=["calibrator", "amax"])
def test_a_range_said_of_scales_of_run_time_is_refused_where_it_would_be_lost(recipe, key):
    (word,) = key
    pinned = {"match": "head.fc", "input": key}
    row = row_of(plan_of([pinned, DYNAMIC]), "head.fc", "input")
    assert (row.dynamic, row.amax, row.ranges, row.granularity) == (
        True, None, "at run time", PerToken(dynamic=True),
    )  # fmt: skip
    said = refused([DYNAMIC, pinned])
    assert said.startswith("r.yaml:3:") and f"there is no {word}" in said
    assert not row_of(
        plan_of([DYNAMIC, {**pinned, "input": "per_tensor"}]), "head.fc", "input"
    ).dynamic


def test_the_last_rule_that_says_on_unsupported_decides_for_its_layers(recipe):
    rules = [
        {"match": {"type": ["Conv2d", "Linear"]}, "on_unsupported": "coarsen"},
        {"match": "head.fc", "on_unsupported": ["lower", "float"]},
        {"match": "pool", "on_unsupported": "error"},
    ]
    plan = plan_of(rules)
    assert row_of(plan, "stem.conv", "weight").on_unsupported == ("coarsen",)
    assert row_of(plan, "head.fc", "input").on_unsupported == ("lower", "float")
    assert row_of(plan, "up", "weight").on_unsupported is None
    assert [use.decides for use in plan.uses] == [2, 1, 0]
    story = "\n".join(why(loaded(rules), NET, plan, "head.fc"))
    assert "rule 1: on_unsupported = coarsen  (a later rule says otherwise)" in story
    assert "rule 2: on_unsupported = lower, float" in story


def test_the_refusal_of_a_variants_rule_is_at_its_line(recipe):
    variants = {"v": {"rules": [{"match": "nowhere", "bn": "fold"}]}}
    variant = load_variants(loaded(variants=variants))["v"]
    with pytest.raises(RecipeError, match=r"^r\.yaml:1:\d+: 'nowhere' matches no layer"):
        make_plan(variant, NET)


def test_half_is_allowed_when_said(recipe):
    plan = plan_of([{"match": "head.fc", "input": "float", "half": "allow"}])
    assert row_of(plan, "head.fc", "weight").quantized


def test_a_rule_without_which_the_plan_is_refused_decides_something(recipe):
    weights = {"weight": {"format": "int4", "granularity": {"per_block": {"size": 8}}}}
    half = {"id": "half", "match": {"type": "Linear"}, "half": "allow"}
    rest = {"match": "**", "format": "float"}
    head = {"match": "head.fc", **weights}
    assert "half: allow" in refused([rest, head])
    plan = plan_of([half, rest, head])
    assert plan.uses[0].decides == 1 and plan.notes == ()
    said = why(loaded([half, rest, head]), NET, plan, "head.fc")
    assert any("half = allow" in line for line in said)

    needless = plan_of([half, {"match": "head.fc", "weight": "per_tensor"}])
    assert needless.uses[0].decides == 0 and "half decides nothing" in needless.notes[0]


def test_why_says_what_keeps_a_batch_norm_that_the_preset_folds(recipe):
    def told(*rules):
        return why(loaded(rules), NET, plan_of(rules), "stem.conv")[-1]

    assert told().startswith("=> bn: fold (") and told().endswith(")")
    kept = told({"match": "stem.conv", "format": "float"})
    assert kept.startswith("=> bn: keep (") and "where the layer is quantized" in kept


def test_why_of_an_unknown_layer_names_the_nearest(recipe):
    with pytest.raises(UserError, match="no layer is called 'head.fx'; did you mean 'head.fc'?"):
        why(loaded(), NET, plan_of(), "head.fx")
    assert why(loaded(), NET, plan_of(), "never") == ("=> float: it is never called",)


shapes = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)
batched = shapes.map(lambda shape: (1, *shape))
layers = st.lists(
    st.builds(
        layer_of,
        name=st.sampled_from(["a", "b.c", "stem.conv"]),
        type=st.sampled_from(
            ["Conv2d", "ConvTranspose1d", "Linear", "MatMul", "LayerNorm", "MaxPool2d"]
        ),
        shapes=st.fixed_dictionaries(
            {},
            optional={"weight": shapes}
            | {operand: batched for operand in OPERANDS if operand != "weight"},
        ),
        groups=st.integers(1, 2),
        bn=st.none() | st.just("bn"),
    ),
    max_size=3,
    unique_by=lambda layer: layer.name,
)
any_granularity = st.one_of(
    st.sampled_from(["per_tensor", "per_channel", "per_token", "per_element"]),
    st.integers(-5, 5).map(lambda axis: {"per_channel": {"axis": axis}}),
    st.builds(lambda size, axis: {"per_block": {"size": size, "axis": axis}},
              st.integers(1, 4), st.integers(-5, 5)),
    shapes.map(lambda shape: {"per_block": {"shape": list(shape)}}),
)  # fmt: skip


numbered = st.none() | st.integers(0, 9)


@given(layers, numbered, numbered, st.booleans())
def test_a_layer_survives_json(layers, tensor, concat, varying):
    for layer in [*NET, *layers]:
        sites = tuple(replace(site, tensor=tensor, concat=concat) for site in layer.sites)
        known = replace(layer, sites=sites, varying=varying)
        assert layer_from_json(json.loads(json.dumps(layer_to_json(known)))) == known


calibrators = st.sampled_from(["max", "entropy", "mse"]).map(Calibrator) | st.floats(
    0, 100, exclude_min=True
).map(lambda percent: Calibrator("percentile", percent))
words = st.none() | st.sampled_from(["a", "rule 1"])


@st.composite
def rows(draw):
    """Any row of any site that can be written, its granularity one that it can have or not."""
    operand = draw(st.sampled_from(OPERANDS))
    at = Site("a.b", operand, draw(batched), draw(numbered), draw(numbered), draw(numbered))
    common = dict(
        at=at, type=draw(st.sampled_from(["Conv2d", "MatMul"])), rule="r", where="r.yaml:1:1",
        bn=draw(st.sampled_from([None, "fold", "keep"])), bn_name=draw(words), note=draw(words),
        on_unsupported=draw(st.sampled_from([None, ("lower", "float")])),
    )  # fmt: skip
    if draw(st.booleans()):
        return FloatRow(**common)
    chosen = parse_granularity(draw(any_granularity))
    try:
        chosen.block(at)
    except DoesNotApply:
        chosen = draw(st.sampled_from([PerTensor(), PerElement()]))
    return QuantizedRow(
        **common, format=draw(st.sampled_from([*FORMATS])), granularity=chosen,
        calibrator=draw(calibrators), amax=draw(st.none() | st.just(2.5)), share=draw(words),
    )  # fmt: skip


@given(rows())
def test_a_row_survives_json(row):
    assert row_from_json(json.loads(json.dumps(row_to_json(row)))) == row


MATMUL = layer_of(
    "attn.scores", "MatMul", {"input": (1, 4, 8, 16), "other": (1, 4, 16, 8),
                              "output": (1, 4, 8, 8)}
)  # fmt: skip


def test_the_other_activation_of_a_product_is_a_site_like_its_input(recipe):
    plan = plan_of(layers=[*NET, MATMUL])
    assert not row_of(plan, MATMUL.name, "other").quantized
    plan = plan_of([{"match": MATMUL.name, "format": "int8"}], [*NET, MATMUL])
    sites = {row.site for row in plan.quantized if row.layer == MATMUL.name}
    assert sites == {"attn.scores.input", "attn.scores.other"}
    rule = {"match": MATMUL.name, "input": "int8", "other": {"per_channel": {"axis": -1}}}
    said = refused([rule], [*NET, MATMUL])
    assert "'attn.scores': only its input would be quantized" in said
    plan = plan_of([{**rule, "format": "int8"}], [*NET, MATMUL])
    assert row_of(plan, MATMUL.name, "other").block == (1, 4, 16, 1)
    spelt = {"input": "per_tensor", "other": "per_tensor", "weight": "per_tensor"}
    plan = plan_of(layers=[*NET, MATMUL], defaults=spelt)
    assert row_of(plan, MATMUL.name, "other").quantized


def test_why_says_of_a_skip_input_what_the_finished_plan_says(recipe):
    """The skip input takes the calibrator that a rule says of the layer that reads its tensor."""
    shapes = {"weight": (8, 8, 3, 3), "input": (1, 8, 8, 8), "output": (1, 8, 8, 8)}
    layers = [
        layer_of("a", shapes=shapes, tensors={"input": 1}),
        layer_of("b", shapes={**shapes, "skip": (1, 8, 8, 8)}, tensors={"input": 2, "skip": 1}),
    ]
    given_ = loaded([{"match": "a", "input": {"calibrator": "entropy"}}])
    plan = make_plan(given_, layers)
    row = row_of(plan, "b", "skip")
    assert (row.calibrator, row.note) == (Calibrator("entropy"), "one Q/DQ with a.input")
    told = why(given_, layers, plan, "b")
    assert "=> skip: int8 per_tensor, 1 scale, entropy (one Q/DQ with a.input)" in told


@given(layers, any_granularity, st.sampled_from(OPERANDS), st.sampled_from(["max", "mse"]))
@settings(deadline=None, max_examples=80)
def test_no_layer_brings_a_traceback(folder, layers, granularity, role, calibrator):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        rule = {"match": "**", role: {"granularity": granularity, "calibrator": calibrator},
                "optional": True}  # fmt: skip
        recipe = loaded([rule, {"match": "**", "format": "int8", "optional": True}])
    try:
        make_plan(recipe, layers)
    except RecipeError as err:
        assert str(err).startswith("r.yaml:") and len(str(err).splitlines()) == 1


def test_a_layer_whose_calls_see_different_shapes_takes_what_fits_them_all(recipe):
    layers = [conv("head", varying=True)]
    for granularity in ("per_tensor", "per_channel"):
        plan_of([{"match": "head", "input": granularity}], layers)
    said = refused([{"match": "head", "input": "per_element"}], layers)
    assert "it sees tensors of different shapes" in said
