"""The README and the pages of docs/: their commands and code blocks, run as they are written."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, run_main
from doc_blocks import blocks, pages, run_page

README = ROOT / "README.md"
SCRIPT = "script.md"
"""What it writes tests/test_api.py compares with the quickstart's, and runs it for that."""


@pytest.fixture()
def clone(tmp_path, monkeypatch) -> Path:
    """A folder that has what a clone has, and nothing of earlier runs."""
    for name in ("recipes", "examples", "README.md", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_two_commands_are_in_the_readme_and_ci_takes_its_own_from_there():
    commands = [
        line for block in blocks(README) if block.language == "sh"
        for line in block.text.splitlines()
    ]  # fmt: skip
    assert (
        'pip install -c constraints.txt -e ".[quickstart]" && '
        "granplugin apply recipes/digits_mobilenet.yaml" in commands
    )
    assert 'pip install -c constraints.txt -e ".[test]" && pytest' in commands
    pattern = re.search(r"grep -m1 -oE '(.*)' README.md", (ROOT / ".ci/run").read_text()).group(1)
    assert re.search(pattern, README.read_text(encoding="utf-8"))


def test_the_readme_is_short_and_what_it_names_is_there():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    for name in re.findall(r"\]\(([^)#]+)", text):
        assert (ROOT / name).exists(), name
    pictures = [ROOT / name for name in re.findall(r"!\[[^]]*\]\((\S+\.png)\)", text)]
    assert len(pictures) == 2
    assert all(picture.stat().st_size < 150_000 for picture in pictures)


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    told = config["metadata"]
    assert (cited["version"], cited["license"]) == (told["version"], told["license"])


def test_the_quickstart_recovers_what_coarse_weights_lose(quickstart):
    assert quickstart.code == 0, quickstart.stderr
    top1 = {v.name: v.engines[0].metrics["top1"].value for v in quickstart.report.variants}
    assert top1["fp32"] >= 96
    assert top1["without-rescue"] < 20
    assert top1["digits_mobilenet"] >= top1["fp32"] - 1
    assert top1["bn-kept"] >= top1["fp32"] - 1


def test_the_readme_shows_what_the_quickstart_prints(quickstart):
    """But for what differs from machine to machine: milliseconds."""
    (shown,) = [block.text for block in blocks(README) if "fp16 (in fp32)" in block.text]

    def measured(text: str) -> set[str]:
        lines = (" ".join(line.split()) for line in text.splitlines())
        return {re.sub(r" [\d.]+ [\d.]+ ([\d.]+ \d+/\d+)$", r" \1", line) for line in lines}

    assert measured(shown) <= measured(quickstart.stdout)


@pytest.mark.parametrize(
    "page", [each for each in pages() if each.name != SCRIPT], ids=lambda page: page.name
)
def test_every_block_of_a_page_runs(page, clone):
    # The README's script has a test of its own, in a process that has imported nothing of ours.
    run_page(page, but="python" if page == README else "")


def test_the_first_script_prints_what_the_command_prints(clone, forks):
    (script,) = [block.text for block in blocks(README) if block.language == "python"]
    done = forks.run(["-c", script])
    assert (done.returncode, done.stderr) == (0, "")
    recipe = "recipes/digits_mobilenet.yaml"
    command = run_main("plan", recipe, "--set", "rules.rescue.weight=per_tensor", "--quiet")
    assert done.stdout == command.stdout


def test_a_recipe_that_names_no_engine_applies_with_what_is_installed(project):
    project.recipe(engines=None)
    done = project.apply()
    assert done.code == 0, done.stderr
    assert project.report().variants[0].engines[0].engine == "onnxruntime"
