"""Keys of what stages made: other code or another library, another key."""

from __future__ import annotations

import importlib.metadata
import shutil
import time
from pathlib import Path

import pytest
from conftest import ROOT

from granplugin.store import maker
from granplugin.store.maker import made_by, reached

EXPORT = "granplugin.network.export"
CACHED = (made_by, maker._file, maker._text, maker._digest, maker._imports)


@pytest.fixture
def forget():
    """Sources are read once in a process; here again after each call."""

    def clear() -> None:
        for function in CACHED:
            function.cache_clear()

    clear()
    yield clear
    clear()


@pytest.fixture
def copied(tmp_path, monkeypatch, forget) -> Path:
    """A copy of the package, of which keys are made."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "granplugin", tmp_path / "granplugin", ignore=ignored)
    monkeypatch.setattr(maker, "_ROOT", tmp_path)
    return tmp_path / "granplugin"


@pytest.mark.parametrize(
    "file, differs",
    [
        ("network/export.py", True),
        ("errors.py", True),  # which it imports
        ("network/__init__.py", True),  # which is run on the way
        ("report/render/terminal.py", False),
        ("__init__.py", False),
    ],
)
def test_another_text_of_what_a_stage_runs_is_another_key(copied, forget, file, differs):
    before = made_by(EXPORT)
    with (copied / file).open("a") as text:
        text.write("# touched\n")
    forget()
    assert (made_by(EXPORT) != before) == differs


def test_another_version_of_a_library_is_another_key(monkeypatch, forget):
    before = made_by(EXPORT, libraries=("torch", "numpy"))
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0" if name == "torch" else version(name)
    )
    forget()
    assert made_by(EXPORT, libraries=("torch", "numpy")) != before
    assert made_by(EXPORT, libraries=("numpy",)) != made_by(EXPORT)


def test_a_module_that_moved_away_is_an_error():
    with pytest.raises(ValueError, match="granplugin.network.exported: no such module"):
        made_by("granplugin.network.exported")


def test_what_is_imported_is_found_wherever_it_stands_in_a_module(copied, forget):
    text = "from granplugin.quant import (\n    formats,\n)\n\ndef f():\n    import granplugin.suggest\n"
    (copied / "new.py").write_text(text)
    assert reached(["granplugin.new"]) >= {"granplugin.quant.formats", "granplugin.suggest"}


def test_a_key_costs_milliseconds(forget):
    start = time.process_time()
    made_by(EXPORT, "granplugin.modelopt_bridge", libraries=("torch", "onnx"))
    assert time.process_time() - start < 0.1  # 7 ms on a quiet machine
