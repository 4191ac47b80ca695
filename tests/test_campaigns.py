"""A slice of each fuzzing campaign of bench/: damaged input is read or refused in a sentence, in time."""

import importlib
import os
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.mark.parametrize(
    ("name", "tries"), [("fuzz_recipes", 400), ("fuzz_onnx", 200), ("fuzz_files", 250)]
)
def test_damaged_input_is_read_or_refused(name, tries, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCH)])
    here = os.getcwd()
    try:
        campaign = importlib.import_module("campaign")
        attempt = importlib.import_module(name).attempt
        found = campaign.Campaign(name, seed=11).run(attempt, range(tries))
    finally:
        os.chdir(here)
    assert found.good, found.told()
    assert found.accepted.total() and found.refused.total()
