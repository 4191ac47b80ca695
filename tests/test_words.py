"""The recipe's words are those of the registries that know what they mean."""

import json
import subprocess
import sys
from typing import get_args

import pytest

from granplugin import backends, capabilities
from granplugin.capabilities.table import Formats
from granplugin.engines import AUDITED, ENGINES, EXPORTED, PRECISIONS, REFERENCE, TARGETS, taking
from granplugin.measures.metrics import METRICS
from granplugin.quant.calibrators import CALIBRATORS
from granplugin.quant.formats import FORMATS
from granplugin.quant.granularity import GRANULARITIES
from granplugin.recipe.build import Build
from granplugin.recipe.presets import PRESETS
from granplugin.recipe.schema import Recipe, json_schema
from granplugin.recipe.settings import FLOAT

SCHEMA = json_schema()


def words(value):
    """All that an `enum` says anywhere in a piece of the schema, its definitions looked up."""
    if isinstance(value, list):
        return {word for inside in value for word in words(inside)}
    if not isinstance(value, dict):
        return set()
    if "$ref" in value:
        return words(SCHEMA["$defs"][value["$ref"].rpartition("/")[2]])
    own = set(value.get("enum", ()))
    return own | {word for key, inside in value.items() if key != "enum" for word in words(inside)}


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("engines", ENGINES),
        ("optional_engines", ENGINES),
        ("precision", PRECISIONS),
        ("metrics", METRICS),
        ("baselines", ["fp32", "fp16", *PRESETS]),
    ],
)
def test_a_recipes_words_are_those_of_their_registry(key, known):
    assert words(SCHEMA["properties"][key]) == set(known)


def test_defaults_are_the_presets():
    (presets,) = [each for each in SCHEMA["properties"]["defaults"]["anyOf"] if "enum" in each]
    assert presets["enum"] == list(PRESETS)


@pytest.mark.parametrize(
    ("section", "key", "known"),
    [
        ("Build", "targets", TARGETS),
        ("Settings", "format", [*FORMATS, FLOAT]),
    ],
)
def test_a_sections_words_are_those_of_their_registry(section, key, known):
    assert words(SCHEMA["$defs"][section]["properties"][key]) == set(known)


def test_calibrators_are_those_of_their_registry():
    (plain, numbered) = SCHEMA["$defs"]["Settings"]["properties"]["calibrator"]["anyOf"][0]["oneOf"]
    assert {*plain["enum"], *numbered["properties"]} == set(CALIBRATORS)


def test_granularities_are_those_of_their_registry():
    keys = SCHEMA["$defs"]["Settings"]["properties"].keys()
    short = words(SCHEMA["$defs"]["Rule"]["properties"]["weight"])
    said = (keys | short) - {"format", "granularity", "calibrator", "amax"}
    assert said - {*CALIBRATORS, *FORMATS, FLOAT} == set(GRANULARITIES)


def test_what_the_recipe_says_of_a_build_is_what_some_engine_takes():
    assert {key for each in ENGINES.values() for key in each.build} == set(Build.model_fields)
    for name, each in ENGINES.items():
        assert set(each.without) == set(Build.model_fields) - set(each.build) or not each.targeted
        assert bool(each.targets) == (each.builds_for == "targets") == (name in taking("targets"))


def test_a_table_has_the_words_of_formats_targets_and_precisions():
    assert set(FORMATS) <= set(get_args(Formats))
    for name in capabilities.backends():
        table = capabilities.load_table(name)
        for rule in table.rules:
            assert (rule.target or set()) <= set(ENGINES[name].targets or TARGETS)
            assert (rule.graph or set()) <= set(PRECISIONS)


def test_every_engine_has_an_entry_a_module_and_a_table():
    assert set(capabilities.backends()) == set(ENGINES)
    for name, facts in ENGINES.items():
        assert facts.name == name == backends.backend_of(name).name
        assert set(facts.precisions) <= set(PRECISIONS) and facts.distributions
    assert REFERENCE == "onnxruntime" and set(EXPORTED) == {"tensorrt", "tensorrt_rtx"}
    assert AUDITED == ("tensorrt_rtx", "tensorrt")
    assert Recipe.model_fields["engines"].default == [REFERENCE]


def test_the_entries_are_read_without_an_engine_torch_or_numpy():
    script = (
        "import sys, granplugin.engines as e; "
        "print([m for m in ('torch', 'numpy', 'onnx', *(f.package for f in e.ENGINES.values())) "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


NEW = """
import sys
from dataclasses import replace
from granplugin import engines

known = engines.ENGINES["onnxruntime"]
engines.ENGINES["twin"] = replace(
    known, name="twin", what_for="a new one", used="if named", measures_latency=True
)
from granplugin.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def with_a_new_engine(*argv):
    done = subprocess.run([sys.executable, "-c", NEW, *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_new_engine_is_known_everywhere_by_its_entry(tmp_path):
    assert "twin" in words(json.loads(with_a_new_engine("schema"))["properties"]["engines"])
    doctor = json.loads(with_a_new_engine("doctor", "--json"))
    (twin,) = [each for each in doctor["engines"] if each["engine"] == "twin"]
    assert twin["what_for"] == "a new one" and twin["unavailable"] is None
    (tmp_path / "net.py").write_text("")
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nmodel: {callable: net.py:net}\ndata: {calibration: {callable: net.py:data}}\n"
        "engines: [twin]\nlimits: {latency_vs: {fp32: 2}}\n"
    )
    assert "good" in with_a_new_engine("check", str(tmp_path / "recipe.yaml"))
