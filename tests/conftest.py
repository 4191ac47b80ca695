"""What tests of the whole path share: one run of the quickstart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from granplugin.report.model import Report

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"


@dataclass(frozen=True)
class Applied:
    """A finished run: its folder and report, and what was printed."""

    folder: Path
    report: Report
    stdout: str
    stderr: str
    code: int


def run_main(*argv: str) -> tuple[int, str, str]:
    """main(argv) in this process: exit code, stdout, stderr."""
    import contextlib
    import io

    from granplugin.__main__ import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in argv])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory) -> Applied:
    """`granplugin apply recipes/digits_mobilenet.yaml`."""
    folder = tmp_path_factory.mktemp("runs") / "digits_mobilenet"
    recipe = RECIPES / "digits_mobilenet.yaml"
    code, out, err = run_main("apply", recipe, "--out", folder)
    report = Report.model_validate_json((folder / "report.json").read_text())
    return Applied(folder, report, out, err, code)
