"""compare of two runs: paired on the same samples, unpaired and said so on others, and whatever is
missing is named."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import run_main
from hypothesis import given
from hypothesis import strategies as st
from report_values import report

from granplugin.measures.intervals import unpaired_difference


def run_folder(folder, hits, key, name="mine"):
    """A finished run whose recipe has these samples right."""
    folder.mkdir()
    made = report(name).model_copy(update={"evaluation_key": key, "evaluation_samples": len(hits)})
    (folder / "report.json").write_text(made.model_dump_json())
    kept = {"top1": {"value": 100 * float(np.mean(hits)), "per_sample": [float(x) for x in hits]}}
    (folder / "measurements.json").write_text(
        json.dumps({f"{variant}/openvino": kept for variant in ("fp32", name)})
    )
    return folder


HITS = np.arange(200) < 180
FEWER = np.arange(200) < 170


def compared(*folders):
    done = run_main("compare", *folders, "--json")
    assert done.code == 0, done.stderr
    return json.loads(done.stdout)


def test_the_same_samples_are_paired(tmp_path):
    a = run_folder(tmp_path / "a", HITS, "k")
    b = run_folder(tmp_path / "b", FEWER, "k")
    found = compared(a, b)
    assert found["paired"]
    told = found["figures"][-1]["difference"]
    assert (told["method"], told["verdict"], told["value"]) == ("Tango score", "worse", -5.0)


def test_other_samples_are_unpaired_and_that_is_said(tmp_path):
    a = run_folder(tmp_path / "a", HITS, "k")
    b = run_folder(tmp_path / "b", np.append(FEWER, True), "other", "another")
    found = compared(a, b)
    assert not found["paired"]
    assert [each["variant"] for each in found["figures"]] == ["fp32", "mine | another"]
    told = found["figures"][-1]["difference"]
    assert told["verdict"] == "no measurable difference"
    shown = " ".join(run_main("compare", a, b, "--html", tmp_path / "c.html").stdout.split())
    assert "on different data, or not known to be the same: compared unpaired" in shown
    assert "unpaired" in (tmp_path / "c.html").read_text()


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_without_the_samples_figures_stand_side_by_side(tmp_path, content):
    a = run_folder(tmp_path / "a", HITS, "k")
    b = run_folder(tmp_path / "b", FEWER, "k")
    (b / "measurements.json").unlink()
    if content:
        (b / "measurements.json").write_text(content)
    found = compared(a, b)
    assert found["figures"][-1]["difference"] is None
    assert any("no difference is known" in note for note in found["notes"])


def test_a_report_that_cannot_be_read_is_refused(tmp_path):
    a = run_folder(tmp_path / "a", HITS, "k")
    b = run_folder(tmp_path / "b", HITS, "k")
    (b / "report.json").write_text("{}")
    done = run_main("compare", a, b)
    assert (done.code, done.stdout) == (2, "")
    assert "report.json cannot be read" in done.stderr


@given(
    st.lists(st.booleans(), min_size=1, max_size=60),
    st.lists(st.booleans(), min_size=1, max_size=60),
)
def test_unpaired_intervals_hold_the_difference_and_swap(a, b):
    first, second = np.array(a), np.array(b)
    found = unpaired_difference(first, second, "%")
    back = unpaired_difference(second, first, "%")
    assert found.low < found.value + 1e-9 and found.value - 1e-9 < found.high
    assert np.allclose((found.low, found.high), (-back.high, -back.low))


def test_unpaired_means_are_welchs():
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 40), rng.normal(0, 3, 25)
    found = unpaired_difference(a, b, "dB")
    theirs = ttest_ind(a, b, equal_var=False).confidence_interval()
    assert np.allclose((found.low, found.high), (theirs.low, theirs.high))
    assert unpaired_difference(a[:5], b, "dB").low is None
