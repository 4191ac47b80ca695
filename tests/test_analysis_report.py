"""analysis.json, and what is printed of it: any analysis fits 80 columns and makes Markdown."""

from __future__ import annotations

import itertools
import json
import math
import re

import jsonschema
import pytest
import yaml
from conftest import run_main
from hypothesis import given, settings
from hypothesis import strategies as st

from granplugin.quant.granularity import DoesNotApply, PerToken
from granplugin.quant.site import Site
from granplugin.recipe.decisions import Rule
from granplugin.report.render.markdown import escaped
from granplugin.report.schema.analysis import (
    ALL,
    Advice,
    Analysis,
    EngineCost,
    Facts,
    LayerAnalysis,
    NetworkEffect,
    Override,
    SettingFigures,
    Share,
    SiteAnalysis,
    SkippedSetting,
    Sqnr,
)
from granplugin.report.schema.parts import Machine
from granplugin.report.show import as_markdown, as_text
from granplugin.report.view.analysis import TOP

WIDTH = 80


def lines(analysis, all_layers=False):
    return as_text(analysis, WIDTH, all_layers=all_layers).splitlines()


def between(low, high):
    return st.floats(low, high, allow_nan=False)


@st.composite
def sqnrs(draw):
    db = draw(st.none() | st.just(math.inf) | between(-20, 60))
    half = draw(st.none() | between(0.001, 9))
    if db in (None, math.inf) or half is None:
        low = high = None
    else:
        low, high = db - half, db + half / 2
    error = None if db is None else 10 ** (-db / 20)
    return Sqnr(db=db, low=low, high=high, relative_error=error, samples=draw(st.integers(0, 99)))


@st.composite
def shares(draw, value, unit):
    x = draw(value)
    half = draw(st.none() | between(0.001, 30))
    low, high = (None, None) if half is None else (x - half, x + half)
    return Share(value=x, low=low, high=high, unit=unit)


percents = shares(between(0, 100), "%")
effects = st.builds(
    NetworkEffect,
    sqnr=sqnrs(),
    kl=st.none() | shares(between(0, 9), "nats"),
    agreement=st.none() | percents,
    metric=st.none() | percents | shares(between(0, 100) | st.just(math.inf), ""),
    loss=shares(between(-10, 100), "points"),
)
parts = st.from_regex(r"[a-z_]{1,12}|[0-9]{1,2}", fullmatch=True)
layer_names = st.lists(parts, min_size=1, max_size=9).map(".".join).filter(lambda x: len(x) <= 69)
words = st.text("abcxyz*_|<`~[]:9é", min_size=1, max_size=12)
sentences = st.lists(words, min_size=1, max_size=12).map(" ".join)
labels = st.sampled_from(
    ["per_tensor", "per_channel, bn keep", "per_tensor, percentile 99.9, bn fold", "per_token"]
)
costs = st.builds(
    EngineCost,
    promise=st.sampled_from(["native", "lowered", "simulated", "refused"]),
    reason=sentences,
    kernels=st.none() | st.integers(0, 9),
    mb=st.none() | between(0, 99),
    unmeasured=st.none() | sentences,
)
percent = st.none() | between(0, 100)


def sites(start):
    return st.builds(
        SettingFigures,
        setting=labels,
        format=st.just("int8"),
        granularity=st.just("per_tensor"),
        calibrator=st.none() | st.just("max"),
        bn=st.sampled_from([None, "fold", "keep"]),
        start=st.just(start),
        scales=st.integers(0, 4096),
        scale_bytes=st.integers(0, 16384),
        weight=st.none() | sqnrs(),
        alone=st.none() | sqnrs(),
        both=st.none() | sqnrs(),
        network=st.none() | effects,
        channels_lost=st.none() | between(0, 1),
        clipped=percent,
        zeroed=percent,
        zero_range=st.booleans(),
        costs=st.dictionaries(st.sampled_from(["openvino", "tensorrt_rtx"]), costs),
    )


asked = st.tuples(
    st.lists(sites(True), max_size=1), st.lists(sites(False), max_size=2)
).map(lambda pair: [*pair[0], *pair[1]])  # fmt: skip
other_sites = st.builds(
    SiteAnalysis,
    site=layer_names.map("{}.skip".format),
    layer=layer_names,
    role=st.just("skip"),
    settings=st.tuples(sites(True), st.lists(sites(False), max_size=2)).map(
        lambda pair: [pair[0], *pair[1]]
    ),
)
spreads = st.none() | between(1, 1e5)
channels = st.lists(st.integers(0, 4095), max_size=12)
facts = st.builds(
    Facts,
    spread_before=spreads,
    spread_after=spreads,
    widest_before=st.none() | st.integers(0, 9),
    widest_after=st.none() | st.integers(0, 9),
    dead_channels=st.integers(0, 9),
    outlier_channels=channels,
    input_spread=spreads,
    widest_input=st.none() | st.integers(0, 9),
    input_outliers=channels,
    dead_inputs=st.integers(0, 9),
    sample_spread=spreads,
    outlier_samples=st.integers(0, 9),
)


@st.composite
def analyses(draw):
    """Any valid analysis of up to 18 layers, which share a few drawn figures."""
    names = draw(st.lists(layer_names, min_size=0, max_size=18, unique=True))
    some_effects = st.sampled_from(draw(st.lists(effects, min_size=1, max_size=3)))
    some_sites = st.sampled_from(draw(st.lists(asked, min_size=1, max_size=3)))
    whys = st.sampled_from(draw(st.lists(sentences, min_size=1, max_size=3)))
    some_facts = draw(facts)
    measured = draw(st.integers(0, len(names)))
    layers = [
        LayerAnalysis(
            rank=rank,
            layer=name,
            type=draw(st.sampled_from(["Conv2d", "Linear"])),
            traits=["depthwise"],
            calls=draw(st.integers(1, 2)),
            weights=draw(some_sites),
            inputs=draw(some_sites),
            facts=some_facts,
            alone=draw(some_effects) if rank <= measured else None,
            restored=draw(some_effects) if rank <= measured else None,
            loss_in=draw(st.sampled_from(["weight", "input", "both", "neither"])),
            why=draw(whys),
        )
        for rank, name in enumerate(names, start=1)
    ]
    rules = st.fixed_dictionaries(
        {"match": st.sampled_from(names or ["*"]) | st.lists(layer_names, min_size=1, max_size=3)},
        optional={"weight": st.just("per_channel"), "bn": st.just("keep")},
    )
    overrides = [
        Override(layers=draw(st.lists(st.sampled_from(names), max_size=2)), rule=rule, reason=why)
        for rule in draw(st.lists(rules, max_size=3) if names else st.just([]))
        for why in [draw(whys)]
    ]
    samples = draw(st.integers(1, 50_000))
    return Analysis(
        granplugin="0.2.0",
        recipe="recipes/net.yaml",
        machine=Machine(system="x", processor="y", cores=2, python="3", packages={"torch": "2"}),
        data=draw(st.sampled_from(["analysis", "calibration"])),
        sites=draw(st.lists(other_sites, max_size=5)),
        samples=samples,
        local_samples=draw(st.integers(1, samples)),
        calibration_samples=draw(st.integers(1, 50_000)),
        batch_size=32,
        seconds=draw(st.dictionaries(words, between(0, 999), max_size=2)),
        loss=draw(st.sampled_from(["metric", "decisions", "outputs"])),
        metric=draw(st.sampled_from([None, "top1", "mean_average_precision"])),
        tolerance=draw(between(0, 5)),
        fp32=draw(st.none() | percents),
        start=draw(st.none() | some_effects),
        finest=draw(some_effects),
        layers=layers,
        skipped=draw(
            st.lists(
                st.builds(SkippedSetting, site=layer_names, setting=labels, reason=sentences),
                max_size=9,
            )
        ),
        advice=Advice(
            verdict=draw(st.sampled_from(["within", "above", "cannot tell"])),
            enough_samples=draw(st.none() | st.integers(1, 10**9)),
            said=draw(sentences),
            overrides=overrides,
            suggested=draw(some_effects) if overrides else None,
            promise=draw(st.sampled_from(["within", "above", "cannot tell"]))
            if overrides
            else None,
            per_tensor=draw(st.integers(0, len(names))),
            layers=len(names),
        ),
        notes=draw(st.lists(sentences, max_size=2)),
    )


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(run_main("schema", "analysis").stdout))


@settings(max_examples=20, deadline=None)
@given(analyses(), st.booleans())
def test_any_analysis_is_told_whole_in_every_form(schema, analysis, all_layers):
    """To draw one takes longer than all that is asked of it."""
    fits_80_columns_and_shows_15_layers_or_all(analysis, all_layers)
    names_each_layer_in_full_in_markdown_and_each_setting_in_tables_that_are_whole(analysis)
    has_rules_to_copy_in_yaml_that_says_the_same(analysis)
    is_what_the_schema_says_and_reads_back_equal(analysis, schema)


def fits_80_columns_and_shows_15_layers_or_all(analysis, all_layers):
    told = lines(analysis, all_layers)
    assert [line for line in told if len(line) > WIDTH] == []
    head = next(
        (at for at, line in enumerate(told) if line.lstrip().startswith("# layer")), len(told)
    )
    rows = itertools.takewhile(lambda line: re.match(r" *\d", line), told[head + 1 :])
    shown = [int(row.split()[0]) for row in rows]
    count = len(analysis.layers) if all_layers else min(TOP, len(analysis.layers))
    assert shown == list(range(1, count + 1))
    assert any("--all" in line for line in told) == (count < len(analysis.layers))


def names_each_layer_in_full_in_markdown_and_each_setting_in_tables_that_are_whole(analysis):
    told = as_markdown(analysis)
    width, rows = None, 0
    for line in told.splitlines():
        if not line.startswith("| "):
            width = width if line.startswith("|") else None
            continue
        cells = line.replace("\\|", "").count("|")
        assert width in (None, cells), line
        width = cells
        rows += line.startswith(("| weight |", "| input |"))
    assert rows == sum(len(layer.weights) + len(layer.inputs) for layer in analysis.layers)
    for layer in analysis.layers:
        assert f"| {layer.rank} | `{layer.layer}` |" in told
        assert f"### {layer.rank} {escaped(layer.layer)}\n" in told
    assert told.count("<details>") == told.count("</details>")


def has_rules_to_copy_in_yaml_that_says_the_same(analysis):
    advice = analysis.advice
    for told in ("\n".join(lines(analysis)), as_markdown(analysis)):
        copied = re.search(r"^rules:\n(  .*\n)+", told, re.MULTILINE)
        assert bool(copied) == bool(advice.overrides)
        if copied:
            assert yaml.safe_load(copied[0]) == {"rules": [each.rule for each in advice.overrides]}
    for override in advice.overrides:
        Rule.model_validate(override.rule)


def is_what_the_schema_says_and_reads_back_equal(analysis, schema):
    text = analysis.model_dump_json()
    assert Analysis.model_validate_json(text) == analysis
    schema.validate(json.loads(text, parse_constant=lambda name: 1 / 0))


def exact(db):
    error = 10 ** (-db / 20)
    return Sqnr(db=db, low=None, high=None, relative_error=error, samples=8)


def effect(loss, db=30.0):
    return NetworkEffect(
        sqnr=exact(db),
        kl=None,
        agreement=None,
        metric=Share(value=90 - loss, low=89 - loss, high=90.5 - loss, unit="%"),
        loss=Share(value=loss, low=loss - 0.25, high=loss + 0.5, unit="points"),
    )


def setting(said, db, start=False, kernels=1, promise="native"):
    cost = EngineCost(
        promise=promise, reason="no kernel", kernels=kernels, mb=kernels * 0.9, unmeasured=None
    )
    return SettingFigures(
        setting=said,
        format="int8",
        granularity=said.split(",")[0],
        calibrator="max",
        bn=None,
        start=start,
        scales=1 if said.startswith("per_tensor") else 16,
        scale_bytes=4,
        weight=None,
        alone=exact(db),
        both=None,
        network=None,
        channels_lost=None,
        clipped=None,
        zeroed=None,
        zero_range=False,
        costs={"tensorrt_rtx": cost},
    )


COUNTED = dict.fromkeys(("dead_channels", "dead_inputs", "outlier_samples"), 0)
BARE = Facts(
    **dict.fromkeys(Facts.model_fields) | COUNTED | {"outlier_channels": [], "input_outliers": []}
)


def layer(rank, name, loss, own, best, **more):
    known = {
        "traits": [],
        "calls": 1,
        "weights": [setting("per_tensor", own, start=True), setting("per_channel", best, False, 2)],
        "inputs": [setting("per_tensor", 40.0, start=True), setting("per_token", 39.0, False)],
        "facts": BARE,
        "alone": effect(loss),
        "restored": effect(5.0 - loss),
        "loss_in": "weight",
        "why": f"the reason of {name}",
    }
    return LayerAnalysis(rank=rank, layer=name, type="Conv2d", **known | more)


def network(layers, overrides=(), skipped=(), start=5.0, **more):
    known = {
        "granplugin": "0.2.0",
        "recipe": "net.yaml",
        "machine": Machine(system="x", processor="y", cores=2, python="3", packages={}),
        "data": "calibration",
        "sites": [],
        "samples": 512,
        "local_samples": 128,
        "calibration_samples": 256,
        "batch_size": 32,
        "seconds": {"local errors": 2.0},
        "loss": "metric",
        "metric": "top1",
        "tolerance": 1.0,
        "fp32": Share(value=90, low=88, high=91, unit="%"),
        "start": effect(start),
        "finest": effect(0.25),
        "layers": layers,
        "skipped": skipped,
        "advice": Advice(
            verdict="above" if overrides else "within",
            enough_samples=None,
            said="As it is.",
            overrides=overrides,
            suggested=effect(0.5) if overrides else None,
            promise="within" if overrides else None,
            per_tensor=1,
            layers=len(layers),
        ),
        "notes": [],
    }
    return Analysis(**known | more)


def text_of(analysis, **options):
    return " ".join(" ".join(lines(analysis, **options)).split())


def test_a_layer_that_matters_is_told_with_why_the_way_out_and_what_that_costs():
    rule = Override(layers=["a"], rule={"match": "a", "weight": "per_channel"}, reason="it is wide")
    layers = [layer(1, "a", 4.5, 3.0, 41.0), layer(2, "b", 0.1, 30.0, 30.04)]
    told = text_of(network(layers, [rule]))
    assert "1 a: the reason of a weight per_tensor -> per_channel: 3.0 -> 41.0 dB" in told
    assert "1 -> 16 scales tensorrt_rtx: 1 -> 2 kernels, 0.90 -> 1.80 MB moved at batch 32" in told
    assert "the reason of b" not in told
    assert "1 a 4.5±0.5 30.0 0.5±0.5 30.0 3.0 41.0 40.0 = 2 b 0.1±0.5" in told
    assert "rules: # it is wide - {match: a, weight: per_channel}" in told
    assert (
        "loss 0.50±0.50 (the recipe: 5.00±0.50, the finest: 0.25±0.50), top1 89.50±1.00 %" in told
    )
    assert "within the tolerance of 1" in told
    assert "tensorrt_rtx: all of the recipe is native" in told


def test_a_network_that_needs_nothing_is_told_so():
    told = lines(network([layer(1, "a", 0.1, 30.0, 41.0)], start=0.2))
    assert told[-1] == "what to do: As it is."
    assert "rules:" not in told
    assert "the reason of a" not in " ".join(told)


def test_a_recipe_that_quantizes_nothing_is_told_so_and_its_sites_are_float():
    other = [setting("per_tensor", 30.0)]
    bare = {"weights": other, "inputs": other, "alone": None, "restored": None}
    told = lines(network([layer(1, "a", 0, 0, 0, **bare)]).model_copy(update={"start": None}))
    assert "The recipe quantizes nothing whose settings could be tried." in told
    assert "1 a      float 30.0 float 30.0" in told


def test_what_an_engine_lacks_is_told_with_its_sites_and_the_reason():
    lacking = [setting("per_token", 30.0, start=True, promise="simulated")]
    layers = [layer(n, f"l{n}", 0.1, 30.0, 41.0, inputs=lacking) for n in range(1, 6)]
    told = text_of(network(layers))
    assert (
        "tensorrt_rtx: simulated for 5 of the recipe's 10 sites (l1.input, l2.input, l3.input and "
        "2 more): no kernel" in told
    )


def skip(promise):
    own = setting("per_tensor", 30.0, start=True, promise=promise or "native")
    own = own.model_copy(update={} if promise else {"costs": {}})
    return SiteAnalysis(site="a.skip", layer="a", role="skip", settings=[own])


def test_all_of_the_recipe_is_native_only_where_its_other_sites_are_too():
    told = {
        promise: text_of(network([layer(1, "a", 0.1, 30.0, 41.0)], sites=[skip(promise)]))
        for promise in ("native", "simulated", None)
    }
    assert "tensorrt_rtx: all of the recipe is native" in told["native"]
    assert "all of the recipe" not in told["simulated"] + told[None]
    assert (
        "tensorrt_rtx: simulated for 1 of the recipe's 3 sites (a.skip): no kernel"
        in told["simulated"]
    )
    assert "tensorrt_rtx: not known for 1 of the recipe's 3 sites (a.skip)" in told[None]


@pytest.mark.parametrize(
    "rule, shown",
    [
        ({"weight": "per_channel", "bn": "keep"}, "weight own -> channel, keep: 3.0 -> 40.0 dB"),
        ({"bn": "keep"}, "weight own -> keep: 3.0 -> 20.0 dB"),
        ({"weight": {"calibrator": {"percentile": 99.9}}}, "weight own -> p: 3.0 -> 10.0 dB"),
        ({"weight": {"per_block": {"size": 16}}}, "weight own -> block: 3.0 -> 50.0 dB"),
        ({"input": {"per_token": {"dynamic": True}}}, "input own -> token: 9.0 -> 30.0 dB"),
        ({"weight": {"calibrator": "mse"}}, "weight own -> block: 3.0 -> 50.0 dB"),
    ],
)
def test_a_layer_that_a_rule_changes_is_shown_with_what_the_rule_leads_to(rule, shown):
    def tried(said, db, granularity="per_tensor", calibrator="max", bn="fold"):
        more = {"granularity": granularity, "calibrator": calibrator, "bn": bn}
        return setting(said, db, start=said == "own").model_copy(update=more)

    weights = [
        tried("own", 3.0),
        tried("p", 10.0, calibrator="percentile 99.9"),
        tried("keep", 20.0, bn="keep"),
        tried("channel, fold", 41.0, "per_channel"),
        tried("channel, keep", 40.0, "per_channel", bn="keep"),
        tried("block", 50.0, "per_block(size 16)"),
    ]
    inputs = [tried("own", 9.0, bn=None), tried("token", 30.0, "per_token(dynamic)", None, None)]
    override = Override(layers=["a"], rule={"match": "a", **rule}, reason="wide")
    told = text_of(network([layer(1, "a", 4, 3, 41, weights=weights, inputs=inputs)], [override]))
    assert f"the reason of a {shown}" in told


def test_a_convolution_without_tokens_takes_one_short_line():
    with pytest.raises(DoesNotApply) as refused:
        PerToken(dynamic=True).block(Site("a", "input", (1, 3, 8, 8), 1))
    found = [
        SkippedSetting(site=f"{n}.input", setting="per_token(dynamic)", reason=str(refused.value))
        for n in range(52)
    ]
    told = lines(network([], skipped=found))
    assert "not tried: per_token(dynamic) on 52 sites (no tokens there)" in told


def test_an_analysis_that_was_kept_says_so_and_not_that_it_took_no_time():
    kept = {"calibrators": 0.1, "local errors": 0.0, "effects": 0.0}
    assert "calibrated on 256; kept from an earlier run" in text_of(network([], seconds=kept))
    some = kept | {"suggestions": 7.0}
    assert "256; 7 s, the rest kept from an earlier run" in text_of(network([], seconds=some))
    assert "256; under 1 s" in text_of(network([], seconds={"local errors": 0.1}))


def test_a_layer_without_a_batch_norm_is_not_said_to_have_one_folded():
    def told(after):
        found = BARE.model_copy(update={"spread_before": 1.45, "spread_after": after})
        return as_markdown(network([layer(1, "a", 0.1, 30.0, 41.0, facts=found)]))

    assert "batch norm folded in 2.5" in told(2.5)
    assert "batch norm" not in told(1.45)


def test_what_was_skipped_is_counted_by_reason_and_not_a_flood():
    of_inputs = [
        SkippedSetting(site=f"layers.{n}.input", setting=said, reason="there are no tokens")
        for n in range(50)
        for said in ("per_token", "per_token, dynamic")
    ]
    whole = [SkippedSetting(site="never", setting=ALL, reason="never runs")]
    others = [SkippedSetting(site=f"{n}.x", setting="a", reason=f"reason {n}") for n in range(9)]
    analysis = network([], skipped=[*whole, *others, *of_inputs])
    told = text_of(analysis)
    assert "not tried: per_token; per_token, dynamic on 50 sites (there are no tokens)" in told
    assert "skipped all settings of never: never runs" in told
    assert "not tried: 6 more settings, for 6 other reasons; analysis.md lists all" in told
    markdown = as_markdown(analysis)
    assert all(f"layers.{n}.input" in markdown for n in range(50))
    assert all(f"reason {n}" in markdown for n in range(9))


def test_an_interval_is_told_by_its_farther_end_and_is_never_0():
    narrow = {"value": 90.0, "low": 89.9999, "high": 90.00001, "unit": "%"}
    told = text_of(network([], fp32=Share(**narrow)))
    assert "90.00±0.01" in told
    assert "5.00±0.50" in told  # low is 0.25 away, high 0.5
