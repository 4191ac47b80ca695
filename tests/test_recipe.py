"""Recipes: what each mistake is told, and that equal ways to say a thing are equal."""

import copy
import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from granplugin.errors import RecipeError
from granplugin.recipe.decisions import Decision
from granplugin.recipe.load import load_recipe, load_variants
from granplugin.recipe.schema import Recipe, json_schema
from granplugin.recipe.source import MAX_BYTES, parse_document

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
BASE = """\
version: 1
model: {callable: m.py:net}
data:
  calibration: {npz: d.npz, inputs: {x: x}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that BASE names."""
    path = tmp_path_factory.mktemp("recipes")
    (path / "m.py").touch()
    (path / "d.npz").touch()
    (path / "images").mkdir()
    return path


@pytest.fixture
def write(folder, monkeypatch):
    """Writes a recipe and returns its path, which is relative to the current folder."""
    monkeypatch.chdir(folder)

    def written(text, name="r.yaml"):
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return Path(name)

    return written


def refused(path, *sets):
    with pytest.raises(RecipeError) as caught:
        load_variants(load_recipe(path, sets))
    return str(caught.value)


BOMB = "a0: &a0 [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)
RULE = "rules: [{match: '**', %s}]"
MISTAKES = {
    # not YAML, or YAML that no recipe needs
    "rules: [": "5:9: not YAML: a value is expected",
    "\tname: x": "5:1: not YAML: a tab cannot indent; use spaces",
    "name: \x07": "5:7: not YAML: character #x0007 is not allowed",
    'name: "\\UFFFFFFFF"': "5:10: not YAML",
    'name: "\\ud800"': "5:10: not YAML",
    'name: "a\\0b"': "5:7: a character that no file can hold",
    'model: {callable: "m\\0.py:net"}': "5:1: key 'model' is written twice",
    "rules:\n  - match: *.conv\n    bn: fold": "6:13: a pattern that starts with * must be quoted",
    "rules:\n  - match: *conv\n    bn: fold": "6:12: a pattern that starts with * must be quoted",
    "---\nversion: 1": "5:1: not YAML",
    "name: !!python/object:os.system x": "5:7: YAML tag",
    "rules: " + "[" * 2000: "5:57: nested over 50 levels deep",
    "rules: &a [*a]": "5:8: nested over 50 levels deep",
    BOMB: ": the aliases around here expand to over 100,000 values",
    "latency: {rounds: " + "9" * 5000 + "}": "5:19: a whole number of over 18 digits",
    RULE % "weight: {per_block: {size: 0x" + "f" * 5000 + "}}": "not YAML",
    "? [a, b]\n: 1": "5:3: a key must be a word",
    # keys
    "rulez: []": "5:1: unknown key 'rulez'; did you mean 'rules'?",
    "version: 1": "5:1: key 'version' is written twice",
    RULE % "bn: fold, wieght: per_tensor": "5:33: unknown key 'wieght'; did you mean 'weight'?",
    RULE % "weight: {granularty: per_tensor}": "5:32: unknown key 'granularty'; did you mean",
    RULE % "weight: {per_chanel: {axis: 0}}": "5:32: unknown key 'per_chanel'; did you mean",
    RULE % "weight: {per_block: {size: 4}, granularity: per_tensor}": "5:32: a site has one",
    RULE % "weight: {per_block: {size: 4}, per_channel: {}}": "5:54: a site has one granularity",
    "rules: [{bn: fold}]": "5:9: key 'match' is missing",
    # types
    "rules: {}": "5:1: a list is expected here",
    "rules: [x]": "5:9: a mapping of keys is expected here",
    "latency: {rounds: '8'}": "5:11: a whole number is expected here, not '8'",
    "latency: {rounds: 8.5}": "5:11: a whole number is expected here, not 8.5",
    "latency: {rounds: 5}": "5:11: input should be greater than or equal to 6, not 5",
    "latency: {seconds: .nan}": "5:11: input should be a finite number",
    "name: 3": "5:1: text is expected here, not 3",
    "name: a b": "5:1: 'a b' is no name",
    "limits: {latency_vs: [fp32]}": "5:10: a mapping of keys is expected here",
    # words of YAML that are traps
    RULE % "bn: on": "5:23: unknown bn 'on'; known: fold, keep",
    RULE % "bn: fold, optional: yes": "5:33: true or false is expected here, not 'yes'",
    # names out of a list
    RULE % "weight: per_chanel": "5:23: unknown granularity or format 'per_chanel'; did you mean",
    RULE % "weight: {granularity: per_chanel}": "5:32: unknown granularity 'per_chanel'; did",
    RULE % "format: int9": "5:23: unknown format 'int9'; did you mean 'int8'?",
    RULE % "input: {calibrator: entrpy}": "5:31: unknown calibrator 'entrpy'; did you mean",
    "engines: [openvin]": "5:11: unknown engine 'openvin'; did you mean 'openvino'?",
    "engines: []": "5:1: one at least is expected here",
    "metrics: [top2]": "5:11: unknown metric 'top2'; did you mean 'top5'?",
    "rules: [{match: {trait: depthwize}, bn: fold}]": "5:18: unknown trait 'depthwize'; did you",
    "rules: [{match: {type: Conv1D}, bn: fold}]": "'Conv1D'; did you mean 'Linear'?",
    "rules: [{match: {type: Conv2D}, bn: fold}]": "5:18: unknown layer type 'Conv2D'; did you",
    "baselines: [half]": "5:13: unknown baseline 'half'; known: fp32, fp16, tensorrt@11",
    "precision: half": "5:1: unknown precision 'half'; known: fp32, fp16, bf16",
    "defaults: tensorrt@10": "5:1: unknown defaults 'tensorrt@10'; did you mean 'tensorrt@11'?",
    "defaults: 3": "5:1: defaults are a preset (tensorrt@11, modelopt@0.47, openvino@2026.4) or",
    "device: gpu": "5:1: unknown device 'gpu'; did you mean 'cuda'?",
    # matches
    "rules: [{match: [], bn: fold}]": "5:10: one at least is expected here",
    "rules: [{match: {}, bn: fold}]": "5:10: match needs a name, type, trait, without, size or spread",
    "rules: [{match: {name: null}, bn: fold}]": "5:10: match needs a name",
    "rules: [{match: {exclude: a}, bn: fold}]": "5:10: match needs a name",
    "rules: [{match: 're:(', bn: fold}]": "5:10: not a regular expression: '('",
    "rules: [{match: 're:a{99999999999999}', bn: fold}]": "5:10: not a regular expression",
    "rules: [{match: 're:" + "(" * 500 + ")" * 500 + "', bn: fold}]": "5:10: not a regular expr",
    "rules: [{match: {size: '>= 1.2.3'}, bn: fold}]": "5:18: a bound is written like '>= 100'",
    "rules: [{match: {spread: 100}, bn: fold}]": "5:18: a bound is written like '>= 100', not 100",
    # numbers
    RULE % "weight: {amax: 0}": "5:32: input should be greater than 0, not 0",
    RULE % "weight: {amax: -1.5}": "5:32: input should be greater than 0, not -1.5",
    RULE % "weight: {amax: 5.9e-8}": "5:32: modelopt takes a range up to 2^-24 (6e-08) for zero, "
    "and this is 5.9e-08; write format: float where a tensor holds only zeros",
    RULE % "weight: {amax: .nan}": "5:32: input should be a finite number, not nan",
    RULE % "weight: {amax: 1e999}": "5:32: input should be a finite number, not inf",
    RULE % "input: {calibrator: {percentile: 0}}": "5:31: percentile is a number above 0",
    RULE % "input: {calibrator: {percentile: 101}}": "at most 100, not 101",
    RULE % "input: {calibrator: percentile}": "percentile needs its number",
    RULE % "weight: {per_block: {size: 0}}": "per_block: size must be a positive integer, not 0",
    # rules that cannot be meant
    "rules: [{match: '**'}]": "5:9: this rule decides nothing",
    RULE % "weight: null": "5:9: this rule decides nothing",
    RULE % "weight: {}": "5:9: this rule decides nothing",
    RULE % "half: maybe": "5:23: input should be 'allow', not 'maybe'",
    "rules: [{id: 1a, match: '**', bn: fold}]": "5:10: '1a' is no name",
    "rules:\n - {id: a, match: '**', bn: fold}\n - {id: a, match: '**', bn: keep}": (
        "7:5: id 'a' is taken, by r.yaml:6:5"
    ),
    # variants
    "rules: [{id: conv, match: '**', bn: fold}]\nvariants: {v: {drop: cnv}}": (
        "6:16: no rule has the id 'cnv'; did you mean 'conv'?"
    ),
    "rules: [{id: conv, match: '**', bn: fold}]\nvariants: {v: {set: {rules.cnv.bn: keep}}}": (
        "6:22: no rule has the id 'cnv'; did you mean 'conv'?"
    ),
    "variants: {v: {drop: '\u00b2'}}": "5:16: no rule has the id '\u00b2'; no rule here has an id",
    "variants: {v: {drop: '" + "9" * 5000 + "'}}": "5:16: no rule has the id",
    "variants: {v: {set: {rules.a.bn: keep}}}": "5:22: no rule has the id 'a'",
    "variants: {v: {set: {model.callable: a:b}}}": (
        "5:22: a variant changes rules, defaults, share, precision"
    ),
    "defaults: tensorrt@11\nvariants: {v: {set: {defaults.weight: per_tensor}}}": (
        "6:22: 'defaults' is 'tensorrt@11', which has no keys to change"
    ),
    "variants: {v: {set: {defaults: nothing}}}": "5:22: unknown defaults 'nothing'",
    "variants: {v: {rules: [{match: '**', bn: on}]}}": "5:38: unknown bn 'on'",
    "variants: {recipe: {}}": "5:12: a variant cannot be called 'recipe'",
    "variants: {a b: {}}": "5:12: 'a b' is no name",
    "variants: {v: }": "5:12: a mapping of keys is expected here",
    # extends
    "extends: nope.yaml": "5:1: no such file: nope.yaml",
    "extends: [r.yaml]": "5:11: r.yaml extends itself, by way of r.yaml",
    "extends: images": "5:1: images is a folder; a file is expected here",
    "extends: 3": "5:1: a file name is expected, not 3",
    "rules: [{match: 0.0, weight: per_tensor}]": "5:10: text is expected here, not 0.0; quote it if it is text",
    # limits that nothing could be measured against
    "limits: {top1_drop: 1}": "5:10: top1_drop needs top1 among the metrics",
    "limits: {top1_drop: -1}\nmetrics: [top1]": "5:10: input should be greater than or equal to 0",
    "limits: {latency_vs: {fp16: 1}}": "5:23: 'fp16' is not among the baselines; known: fp32",
    "limits: {latency_vs: {fp32: 0}}": "5:23: input should be greater than 0, not 0",
    "limits: {latency_vs: {fp32: 1}}\nengines: [onnxruntime]": "5:10: latency_vs needs an engine",
}


@pytest.mark.parametrize("text", MISTAKES, ids=lambda text: text[:40])
def test_a_mistake_is_told_in_one_line_with_its_place(write, text):
    said = refused(write(BASE + text))
    assert (re.match(r"r\.yaml:\d+:\d+: ", said) and len(said) < 400) or len(text) > 4000
    assert MISTAKES[text] in said and len(said.splitlines()) == 1


BASES = {
    "m.py:net": ("n.py:net", "2:9: no such file: n.py; did you mean 'm.py'?"),
    "callable: m.py:net": ("callable: m.py", "2:9: a callable is written file.py:name"),
    "m.py:net}": ("m.py:net, weights: images}", "2:29: images is a folder; a file is expected"),
    "m.py": ("m" * 3000 + ".py", "2:9: "),
    "d.npz": ("e.npz", "4:17: no such file: e.npz; did you mean 'd.npz'?"),
    "npz: d.npz,": ("npy: d.npz,", "4:3: a data source is an npz, a callable or a folder; did you"),
    "npz: d": ("folder: x, npz: d", "4:3: a data source is one of npz:, callable: or folder:"),
    "npz: d.npz, inputs: {x: x}": ("folder: d.npz, input: x", "d.npz is not a folder"),
    "{npz: d.npz, inputs: {x: x}}": (
        "{folder: images, input: x, grayscale: true, std: [1, 1, 1]}",
        "4:60: std needs 1 numbers",
    ),
    ", inputs: {x: x}}": ("}", "4:3: key 'inputs' is missing in 'calibration'"),
    "version: 1\n": ("", "1:1: key 'version' is missing"),
    "version: 1": ("version: 2", "1:1: version 2 is not known; this is version 1"),
    ": 1\n": (": true\n", "1:1: a whole number is expected here, not True"),
}


@pytest.mark.parametrize("good", BASES, ids=lambda text: text.strip()[:30])
def test_a_mistake_in_what_every_recipe_has_is_told_with_its_place(write, good):
    bad, wanted = BASES[good]
    said = refused(write(BASE.replace(good, bad, 1)))
    assert wanted in said and len(said.splitlines()) == 1 and len(said) < 3300


def test_every_mistake_of_a_recipe_is_told_at_once(write):
    said = refused(write(BASE + "rulez: []\n" + "metrics: [top2]\ndevice: gpu\n")).splitlines()
    assert len(said) == 1  # an unknown key may be any of the others
    said = refused(write(BASE + "metrics: [top2]\ndevice: gpu\n")).splitlines()
    assert [line.split(":")[1] for line in said] == ["6", "5"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "key 'version' is missing"),
        (b"- 1", "a recipe is a mapping of keys"),
        (b"word", "a recipe is a mapping of keys"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
        (b"#" * (MAX_BYTES + 1), "larger than 1 MB"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(write, content, said):
    assert said in refused(write(content))


def test_a_missing_file_and_a_folder_are_refused(write, folder):
    assert refused(Path("nope.yaml")) == "nope.yaml: no such file"
    assert refused(Path("images")).startswith("images is a folder")


def test_an_extends_cycle_is_told_where_it_closes(write):
    write(BASE + "extends: b.yaml", "a.yaml")
    write(BASE + "extends: a.yaml", "b.yaml")
    assert refused(Path("a.yaml")) == "b.yaml:5:1: a.yaml extends itself, by way of b.yaml"


def test_yaml_reads_as_version_1_2(folder):
    text = "[1e-3, on, yes, 012, 1_000, true, null, ~, .5, 0x10, 2020-01-01]"
    read = parse_document(f"x: {text}", "r", folder).value["x"]
    assert read == [1e-3, "on", "yes", 12, "1_000", True, None, None, 0.5, 16, "2020-01-01"]
    assert read[5] is True and isinstance(read[0], float)


# Recipes whose parts are combined below; rules with ids a, b and c, in this order.
RULES = {
    "a": {"id": "a", "match": {"type": "Conv2d"}, "weight": "per_tensor"},
    "b": {"id": "b", "match": "**.conv", "weight": {"per_block": {"size": 4, "axis": 1}}},
    "c": {"id": "c", "match": {"trait": ["first"]}, "format": "float"},
}
BASE_VALUE = yaml.safe_load(BASE)
CHANGES = {
    "rules.a.weight": ("per_channel", lambda r: r["rules"][0].update(weight="per_channel")),
    "rules.2.bn": ("fold", lambda r: r["rules"][1].update(bn="fold")),
    "rules.b.weight.calibrator": (
        "mse",
        lambda r: r["rules"][1].update(
            weight={"granularity": {"per_block": {"size": 4, "axis": 1}}, "calibrator": "mse"}
        ),
    ),
    "rules.a.weight.amax": (
        1e-3,
        lambda r: r["rules"][0].update(weight={"granularity": "per_tensor", "amax": 1e-3}),
    ),
    "rules.b.match.size": (
        ">= 10",
        lambda r: r["rules"][1].update(match={"name": "**.conv", "size": ">= 10"}),
    ),
    "defaults": ("modelopt@0.47", lambda r: r.update(defaults="modelopt@0.47")),
    "defaults.weight": ("int4", lambda r: r.update(defaults={"weight": "int4"})),
    "rules.c": (RULES["a"] | {"id": "z"}, lambda r: r["rules"].__setitem__(
        2, RULES["a"] | {"id": "z"})),
}  # fmt: skip
RUN_CHANGES = {
    "data.batch_size": (8, lambda r: r["data"].update(batch_size=8)),
    "metrics": (["top1"], lambda r: r.update(metrics=["top1"])),
    "limits.latency_vs.fp32": (0.8, lambda r: r.update(limits={"latency_vs": {"fp32": 0.8}})),
    "model.callable": ("m.py:other", lambda r: r["model"].update(callable="m.py:other")),
}


def recipe_of(write, value, name="r.yaml", *sets):
    return load_recipe(write(json.dumps(value), name), sets)


def whole():
    return copy.deepcopy({**BASE_VALUE, "rules": list(RULES.values())})


@pytest.mark.parametrize("key", [*CHANGES, *RUN_CHANGES])
def test_set_equals_editing_the_text(write, key):
    value, edit = {**CHANGES, **RUN_CHANGES}[key]
    edited = whole()
    edit(edited)
    assert (
        recipe_of(write, whole(), "r.yaml", f"{key}={json.dumps(value)}").recipe
        == recipe_of(write, edited).recipe
    )


@pytest.mark.parametrize("key", CHANGES)
@pytest.mark.parametrize("drop", [[], ["a"], ["b", "c"], ["1", "2"]])
@pytest.mark.parametrize("add", [[], [RULES["a"] | {"id": "new"}]])
def test_a_variant_equals_the_edited_recipe(write, key, drop, add):
    value, edit = CHANGES[key]
    if key == "rules.c" and "c" in drop:
        drop = ["b", "z"]
    varied = {**whole(), "variants": {"v": {"set": {key: value}, "drop": drop, "rules": add}}}
    edited = whole()
    edit(edited)
    numbered = [{rule["id"], str(n)} for n, rule in enumerate(edited["rules"], 1)]
    edited["rules"] = [
        rule for rule, names in zip(edited["rules"], numbered, strict=True) if not names & set(drop)
    ] + add
    variant = load_variants(recipe_of(write, varied))["v"].recipe
    assert variant.model_copy(update={"variants": {}}) == recipe_of(write, edited).recipe


def test_a_variant_keeps_the_place_of_every_rule(write):
    text = BASE + (
        "rules:\n"
        "  - {id: a, match: a, bn: fold}\n"
        "  - {id: b, match: b, bn: fold}\n"
        "variants:\n"
        "  v:\n"
        "    drop: a\n"
        "    rules:\n"
        "      - {match: c, bn: fold}\n"
    )
    variant = load_variants(load_recipe(write(text)))["v"]
    lines = [variant.mark("rules", n).line for n in range(len(variant.recipe.rules))]
    assert [rule.match.name for rule in variant.recipe.rules] == [["b"], ["c"]]
    assert lines == [7, 12]


def test_set_names_what_it_cannot_change(write):
    path = write(BASE + "metrics: [top1]\ndefaults: tensorrt@11")
    assert refused(path, "nonsense") == "--set nonsense: write --set key=value"
    assert refused(path, "rulez=1") == "--set rulez: unknown key 'rulez'; did you mean 'rules'?"
    assert refused(path, "metrics.0=top5").endswith("'metrics' is a list; set it as a whole")
    assert refused(path, "rules.x.bn=fold").startswith("--set rules.x.bn: no rule has the id 'x'")
    assert "which has no keys to change" in refused(path, "defaults.weight=int8")
    assert "is written in the recipe" in refused(path, "extends=m.py")
    assert refused(path, "name=[").startswith("--set name:1:2: not YAML")
    assert refused(path, "data.batch_size=eight") == (
        "--set data.batch_size: a whole number is expected here, not 'eight'"
    )


def test_extends_puts_rules_first_in_order_and_overrides_keys(write):
    rule = {name: {"match": name, "bn": "fold"} for name in "abc"}
    first = {"metrics": ["top1"], "device": "auto", "rules": [rule["a"]], "latency": {"rounds": 9}}
    second = {"device": "cuda", "rules": [rule["b"]],
              "defaults": {"weight": {"per_block": {"size": 4}}}}  # fmt: skip
    write(json.dumps(first), "first.yaml")
    write(json.dumps(second), "second.yaml")
    own = {**BASE_VALUE, "extends": ["first.yaml", "second.yaml"], "rules": [rule["c"]],
           "latency": {"seconds": 1.0},
           "defaults": {"weight": {"per_channel": {"axis": 0}}}}  # fmt: skip
    together = {**BASE_VALUE, "metrics": ["top1"], "device": "cuda", "rules": list(rule.values()),
                "latency": {"rounds": 9, "seconds": 1.0},
                "defaults": {"weight": {"per_channel": {"axis": 0}}}}  # fmt: skip
    extended = recipe_of(write, own)
    assert extended.recipe.model_copy(update={"extends": []}) == recipe_of(write, together).recipe
    files = [extended.mark("rules", n).file for n in range(3)]
    assert files == ["first.yaml", "second.yaml", "r.yaml"]


def test_paths_start_at_the_recipe_they_are_written_in(write, folder):
    (folder / "sub").mkdir(exist_ok=True)
    (folder / "sub" / "net.py").touch()
    write("model: {callable: net.py:net}", "sub/base.yaml")
    own = {key: value for key, value in BASE_VALUE.items() if key != "model"}
    recipe = recipe_of(write, {**own, "extends": "sub/base.yaml"}).recipe
    assert recipe.model.callable.path.resolve() == (folder / "sub" / "net.py").resolve()
    assert recipe.data.calibration.npz.resolve() == (folder / "d.npz").resolve()


def test_a_data_source_is_extended_as_a_whole(write):
    base = {"data": {"calibration": {"folder": "images", "input": "x"}, "batch_size": 4}}
    write(json.dumps(base), "base.yaml")
    recipe = recipe_of(write, {**BASE_VALUE, "extends": "base.yaml"}).recipe
    assert recipe.data.calibration.npz.name == "d.npz" and recipe.data.batch_size == 4


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_json_schema_takes_the_recipes_that_ship_and_no_misspelt_key(path):
    value = yaml.safe_load(path.read_text())
    check = jsonschema.Draft202012Validator(json_schema())
    check.validate(value)
    for at in ([], ["model"], ["data"], ["data", "calibration"], ["rules", 0], ["limits"]):
        broken = copy.deepcopy(value)
        holder = broken
        for part in at:
            holder = holder.setdefault(part, {}) if isinstance(holder, dict) else holder[part]
        holder["misspelt"] = 1
        assert not check.is_valid(broken), at


GOOD_VALUES = [
    "per_tensor", "int4", "float", {"per_block": {"size": 4, "axis": 1}},
    {"per_channel": {"axis": 0}},
    {"granularity": {"per_block": {"shape": [1, 4]}}, "calibrator": {"percentile": 99.9}},
    {"per_block": {"shape": [1, 4]}, "calibrator": "mse", "format": "fp8"}, {"amax": 1},
    {"per_token": {"dynamic": True}}, {"granularity": {"per_tensor": {"dynamic": False}}},
]  # fmt: skip
BAD_VALUES = [
    "per_block", "int9", {"per_block": {"siz": 4}}, {"per_chanel": {}}, {"amax": 0}, 3,
    {"per_block": {"size": 4, "shape": [4]}}, {"granularity": {"per_token": {"axis": 1}}},
    {"calibrator": "percentile"}, {"per_tensor": {"dynamic": 1}},
    {"per_channel": {"dynamic": True}},
]  # fmt: skip


@pytest.mark.parametrize("value", [*GOOD_VALUES, *BAD_VALUES], ids=str)
def test_the_json_schema_and_the_loader_agree(write, value):
    recipe = {**BASE_VALUE, "rules": [{"match": "**", "weight": value}]}
    good = value in GOOD_VALUES
    assert jsonschema.Draft202012Validator(json_schema()).is_valid(recipe) == good
    if good:
        recipe_of(write, recipe)
    else:
        assert refused(write(json.dumps(recipe)))


def test_every_key_says_what_it_means():
    schema = json_schema()
    silent = [
        f"{name}.{key}"
        for name, part in {"Recipe": schema, **schema["$defs"]}.items()
        for key, value in part.get("properties", {}).items()
        if not (value.get("description") or schema["$defs"][value["$ref"][8:]]["description"])
    ]
    assert silent == []


SEED = RECIPES[0].read_text() + (
    "statistics: {export: a}\nlatency: {rounds: 9}\nextends: []\n"
    "more: &m {per_block: {shape: [1, 4]}, calibrator: {percentile: 99.9}}\nagain: *m\n"
)
scraps = st.sampled_from(
    ["*", "&a ", "*a", "!!x ", "{", "}", "[", "]", ": ", "- ", "\n", "  ", "\t", '"', "'", "#", "|",
     "<<: ", "null", "1e999", ".nan", "on", "0x", "9" * 30, "\\", "\0", "\ud800", "\x85", "re:(",
     "..", "@", "%YAML 1.2\n", "---\n", "...", "🙂", "rules", "match", "per_block", "drop: "]
)  # fmt: skip


@st.composite
def mutated(draw):
    text = SEED
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = start + draw(st.sampled_from([0, 0, 1, 5, 40]))
        text = text[:start] + draw(scraps | st.text(max_size=4)) + text[end:]
    return text


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["per_block", "per_tensor", "float", "**", "re:(", "a.b", "m.py:x", "fp32"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from([*Recipe.model_fields, *Decision.model_fields, "match", "id",
                                       "per_block", "size", "drop", "set", "npz", "x"]),
                      inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


def loads_or_is_refused(text, folder, *sets):
    path = folder / "fuzz.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_variants(load_recipe(path, sets))
    except RecipeError as err:
        assert str(err).strip()


@given(st.text() | mutated())
@settings(deadline=None, max_examples=100)
def test_no_text_brings_a_traceback(folder, text):
    loads_or_is_refused(text, folder)


@given(st.dictionaries(st.sampled_from([*Recipe.model_fields]), values, max_size=4), st.data())
@settings(deadline=None, max_examples=100)
def test_no_value_brings_a_traceback(folder, value, data):
    value = {**BASE_VALUE, **value}
    key = data.draw(st.sampled_from(
        ["rules", "rules.a.weight.x", "rules.1.match.name", "defaults.input.amax", "data.x", "",
         "variants.v.set.rules", ".", "rules.", "name.x"]))  # fmt: skip
    loads_or_is_refused(json.dumps(value), folder)
    loads_or_is_refused(json.dumps(value), folder, f"{key}={json.dumps(data.draw(values))}")


def test_what_is_done_in_place_of_the_unsupported_is_one_word_or_several(write):
    for said, ways in (("lower", ("lower",)), ("[lower, float]", ("lower", "float"))):
        recipe = load_recipe(write(BASE + f"on_unsupported: {said}\n")).recipe
        assert recipe.on_unsupported == ways
