"""The layout's promises: who may import whom, and what stays unimported."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "modelopt", "onnx", "onnx_ir", "onnxruntime", "openvino", "scipy", "transformers")


def test_imports_follow_the_contracts_in_setup_cfg():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["schema"], ["check", "RECIPE"]])
def test_light_verbs_import_nothing_heavy(argv):
    argv = [
        str(ROOT / "recipes/digits_mobilenet.yaml") if word == "RECIPE" else word for word in argv
    ]
    script = (
        "import sys; from granplugin.__main__ import main; code = main(sys.argv[1:]); "
        f"print('heavy:', [m for m in {HEAVY!r} if m in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *argv], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_import_granplugin_is_light():
    script = f"import sys, granplugin; print([m for m in {HEAVY!r} if m in sys.modules])"
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "[]"


def test_a_verb_is_one_file_of_the_command_line_and_one_pipeline():
    from granplugin import cli

    modules = {path.stem for path in (ROOT / "granplugin/pipelines").glob("*.py")} - {"__init__"}
    assert {module.rpartition(".")[2] for module in cli.verbs().values()} == modules
    assert set(cli.ORDER) <= set(cli.verbs())
    for verb, module in cli.verbs().items():
        tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text())
        called = {
            node.module for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module.startswith("granplugin.pipelines")
        }  # fmt: skip
        assert called == {module.replace("cli", "pipelines")}, verb
