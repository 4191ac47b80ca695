"""The layout's promises: who may import whom, and what stays unimported."""

from __future__ import annotations

import ast
import configparser
import itertools
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGINES = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
HEAVY = ("torch", "modelopt", "onnx", "onnx_ir", "scipy", "transformers", "plotly", *ENGINES)


def test_imports_follow_the_contracts_in_setup_cfg():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_light_imports_nothing_heavy():
    """`import granplugin`, and the verbs that need none of it, one after the other."""
    script = f"""
        import sys, granplugin
        from granplugin.__main__ import main

        for argv in ([], ["--help"], ["--version"], ["schema"], ["check", sys.argv[1]], ["doctor"]):
            code = main(argv) if argv else 0
            names = {("torch", "modelopt", *ENGINES)!r} if argv == ["doctor"] else {HEAVY!r}
            heavy = [name for name in names if name in sys.modules]
            if code or heavy:
                sys.exit(f"{{argv}}: {{code}}, {{heavy}}")
    """
    recipe = ROOT / "recipes/digits_mobilenet.yaml"
    command = [sys.executable, "-c", textwrap.dedent(script), str(recipe)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_a_verb_is_one_file_of_the_command_line_and_one_pipeline():
    from granplugin.cli.verbs import module_of, verbs

    modules = {path.stem for path in (ROOT / "granplugin/pipelines").glob("*.py")} - {"__init__"}
    assert {module_of(verb).rpartition(".")[2] for verb in verbs()} == modules
    for verb in verbs():
        module = module_of(verb)
        tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text())
        called = {
            node.module for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module.startswith("granplugin.pipelines")
        }  # fmt: skip
        assert called == {module.replace("cli", "pipelines")}, verb


ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def rows_of(head: str) -> list[list[str]]:
    """The cells of the table that begins with this head."""
    lines = ARCHITECTURE[ARCHITECTURE.index(head) :].splitlines()[2:]
    table = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_the_picture_is_that_of_the_contracts():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    contract = setup["importlinter:contract:layers"]["layers"].split("\n")
    lines = [set(line.replace("|", " ").split()) for line in contract if line]
    shown = [set(re.findall(r"`(\w+)`", row[0])) for row in rows_of("| package | holds |")]
    assert shown == [line for line in lines if line != {"__main__"}]


def test_every_file_that_the_architecture_names_is_there():
    named = re.findall(r"`(granplugin/[^`]+)`", ARCHITECTURE)
    assert named and not [name for name in named if not (ROOT / name).is_file()]


GOALS = {
    "granularity": 2, "calibrator": 2, "metric": 2, "backend": 2, "kind of product": 6,
    "source of networks": 3, "renderer": 2, "verb": 2, "format": 4,
}  # fmt: skip


def test_what_a_change_touches_is_counted_and_within_its_goal():
    rows = rows_of("| to add a | touch | files |")
    for kind, touch, count in rows:
        assert len(set(re.findall(r"`(granplugin/[^`]+)`", touch))) == int(count), kind
        assert int(count) <= GOALS.get(kind, 3), kind
    assert set(GOALS) <= {kind for kind, _, _ in rows}


def test_the_registries_that_it_names_stand_where_it_says():
    for _, touch, _ in rows_of("| to add a | touch | files |"):
        for path, registry in re.findall(r"`(granplugin/[^`]+)`[^;`]*`([A-Z]+)`", touch):
            assert re.search(rf"^{registry}\b", (ROOT / path).read_text(), re.M), (path, registry)


@pytest.mark.parametrize(
    ("words", "modules"),
    [
        (("openvino", "tensorrt_rtx"), {"engines.py", "backends/nvidia/libraries.py"}),
        (
            ("mse", "entropy"),
            {"quant/calibrators.py", "recipe/analyze.py", "recipe/presets.py"},
        ),
        (("top5",), {"measures/metrics.py", "report/view/metric_figures.py"}),
    ],
)
def test_members_of_a_family_are_named_in_its_registry(words, modules):
    """And where one is spoken of alone: analyze's default calibrators, a preset's, the headline metric."""
    found = set()
    for path in (ROOT / "granplugin").rglob("*.py"):
        strings = {
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant)
        }
        if strings.intersection(words):
            found.add(str(path.relative_to(ROOT / "granplugin")))
    assert found <= modules
