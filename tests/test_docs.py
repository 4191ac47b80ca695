"""The site of docs/: it builds, asks no host for anything, and says what the package says."""

from __future__ import annotations

import os
import re

import generated_pages
import numpy as np
import pytest
import yaml
from conftest import ROOT
from generated_pages import PAGES, SCHEMA, SECTIONS, told_of, tree

import granplugin

WORK = """
def tiny(**args): ...
def batches(**args): ...
def errors(predict, data): ...
"""


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_generated_pages_say_what_the_package_says(file):
    assert file.read_text(encoding="utf-8") == PAGES[file](), (
        f"{file.name} is older than the code: python tests/generated_pages.py"
    )


@pytest.fixture
def site(tmp_path):
    """The site as built with --strict."""
    if "CI" not in os.environ:
        pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    os.environ["NO_MKDOCS_2_WARNING"] = "1"
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path / "site")))
    return tmp_path / "site"


def test_the_site_builds_and_its_pages_ask_no_host_for_anything(site):
    built = list(site.rglob("*.html"))
    assert {file.stem for file in (ROOT / "docs").rglob("*.md")} <= {file.stem for file in built}
    for file in [*built, *site.rglob("*.css")]:
        text = file.read_text(encoding="utf-8")
        asked = re.findall(
            r'<(?:script|img|iframe|source)\b[^>]*\ssrc="(?:https?:)?//[^"]*'
            r'|<link\b[^>]*\shref="(?:https?:)?//[^"]*|url\(["\']?(?:https?:)?//[^)]*|@import[^;]*',
            text,
        )
        assert not asked, (file, asked)


KEYS = [
    (title, key, example)
    for title, (_, schema) in SECTIONS.items()
    for key, value in schema["properties"].items()
    for example in value.get("examples", [None])
]


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """A folder with the files that examples name."""
    folder = tmp_path_factory.mktemp("examples")
    for module in ("nets.py", "data.py", "measure.py"):
        (folder / module).write_text(WORK)
    (folder / "base.yaml").write_text("version: 1\n")
    arrays = {"images": np.zeros((4, 1, 8, 8), np.float32), "labels": np.zeros(4, np.int64)}
    for file in ("data.npz", "more.npz"):
        np.savez(folder / file, **arrays)
    for file in ("tiny.safetensors", "net.onnx", "amax.json", "timing.bin", "labels.csv"):
        (folder / file).touch()
    (folder / "pictures").mkdir()
    return folder


@pytest.mark.parametrize("title, key, example", KEYS, ids=lambda part: str(part)[:40])
def test_the_example_of_every_key_loads(title, key, example, beside, monkeypatch):
    monkeypatch.chdir(beside)
    assert example is not None, f"{title}: {key} has no example"
    where, schema = SECTIONS[title]
    first = {each: value["examples"][0] for each, value in schema["properties"].items()}
    least = {each: first[each] for each in schema.get("required", ())}
    try:
        granplugin.load(whole(where, {**least, key: example}))
    except granplugin.UserError:  # a key that goes with others of its section
        granplugin.load(whole(where, {**first, key: example}))


PLACES = dict(SECTIONS.values())


def whole(place: str, value: dict) -> dict:
    """A recipe with this section in its place, and what the sections around it must have."""
    while place:
        place, _, last = place.rpartition(".")
        if last == "NAME":
            value = {"one": value}
            continue
        key = last.removesuffix("[]")
        value = {key: value if key == last else [value]}
        for each in PLACES.get(place, SCHEMA).get("required", ()) if place else ():
            value.setdefault(each, PLACES[place]["properties"][each]["examples"][0])
        if place == "rules[]":
            value.setdefault("weight", "per_tensor")
    images = {"npz": "data.npz", "inputs": {"image": "images"}}
    recipe = {
        "version": 1,
        "model": {"callable": "nets.py:tiny"},
        "data": {"calibration": images, "evaluation": {**images, "labels": "labels"}},
        "metrics": ["top1"],
        "rules": [{"id": "rescue", "match": "stem", "weight": "per_channel"}],
        "baselines": ["fp32", "fp16", "tensorrt@11"],
        "optional_engines": ["tensorrt", "tensorrt_rtx"],
    }
    return {**recipe, **value}


def test_every_error_has_its_cause_and_its_cure():
    for error in tree():
        assert {"what", "Cause", "Cure"} == told_of(error).keys(), error


def test_every_exit_code_of_the_topic_is_on_the_page_of_errors():
    told = {int(code) for code in re.findall(r"^ +(\d+)  ", granplugin_topic(), re.MULTILINE)}
    assert told == generated_pages.CODES_OF_EXIT.keys()


def granplugin_topic() -> str:
    from granplugin import topics

    return topics.page("exit-codes")


def test_every_word_of_a_recipe_is_in_its_reference():
    page = (ROOT / "docs/recipe.md").read_text(encoding="utf-8")
    for name, schema in SCHEMA["$defs"].items():
        for key in schema["properties"]:
            assert f"`{key}`" in page, (name, key)


def test_pages_are_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"[\w-]+\.md", yaml.safe_dump(yaml.safe_load(text)["nav"]))
    assert sorted(listed) == sorted(file.name for file in (ROOT / "docs").glob("*.md"))
