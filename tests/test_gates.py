"""What holds of the text of the code: its form, its types, and what it says it needs."""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from importlib.metadata import packages_distributions

import pytest
from conftest import ROOT

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


@pytest.mark.parametrize("command", [["format", "--check"], ["check"]], ids=" ".join)
def test_ruff_has_nothing_to_say(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--no-cache", "."],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy_has_nothing_to_say():
    """Of the package, a script that uses each of its names (typed_use.py), and the benches."""
    modules = ["typed_use", *(path.stem for path in (ROOT / "bench").glob("*.py"))]
    command = ["mypy", "--no-pretty", "--cache-dir", os.devnull]
    done = subprocess.run(
        [sys.executable, "-m", *command, "-p", "granplugin", *(f"-m{each}" for each in modules)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "MYPYPATH": "tests:bench"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def imported(folder: str) -> set[str]:
    """Top-level names of what any module there imports, anywhere in it."""
    names = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.partition(".")[0])
    ours = {path.stem for known in OURS for path in (ROOT / known).glob("*.py")}
    return names - sys.stdlib_module_names - ours - {"granplugin"}


OURS = ("tests", "bench", "recipes")
"""Folders whose modules are imported by their names alone."""


def declared(text: str) -> set[str]:
    """The distributions that a list of requirements names."""
    names = (re.match(r"[\w.-]+", line) for line in text.splitlines())
    return {normal(name.group()) for name in names if name}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("folder", ["granplugin", "tests"])
def test_every_library_that_is_imported_is_declared(folder):
    needed = declared(SETUP["options"]["install_requires"])
    for name, text in SETUP["options.extras_require"].items():
        if name != "test" or folder == "tests":
            needed |= declared(text)
    of = packages_distributions()
    for name in imported(folder):
        # Of what is not installed nothing tells the distribution: mlflow-skinny has mlflow.
        unknown = [each for each in needed if each == normal(name) or each.startswith(f"{name}-")]
        distributions = {normal(each) for each in of.get(name, unknown)}
        assert distributions & needed, f"{name} is imported, and setup.cfg does not declare it"


def test_a_wheel_has_every_file_of_the_package_that_is_no_module():
    data = SETUP["options.package_data"]
    for path in (ROOT / "granplugin").rglob("*"):
        if path.is_dir() or path.suffix in (".py", ".pyc"):
            continue
        package = next(folder for folder in path.parents if (folder / "__init__.py").is_file())
        patterns = data.get(".".join(package.relative_to(ROOT).parts), "").split()
        assert any(fnmatch(str(path.relative_to(package)), each) for each in patterns), path


def test_the_version_has_its_changes_told():
    told = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert told[0] == "Unreleased" and told[1] == SETUP["metadata"]["version"]
