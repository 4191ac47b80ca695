"""Calibration runs in batches of at most data.batch_size samples, to the same ranges from 16 on."""

import json

import numpy as np
from conftest import NETS
from hypothesis import given
from hypothesis import strategies as st

from granplugin.data.batches import SAME_BITS, calibration_sizes, same_bits


@given(st.integers(1, 500), st.integers(1, 80))
def test_no_batch_is_larger_than_asked_and_none_smaller_than_needed(samples, most):
    sizes = calibration_sizes(samples, most)
    assert sum(sizes) == samples and max(sizes) <= most
    if samples // SAME_BITS >= -(-samples // most):
        assert min(sizes) >= SAME_BITS
    if most >= 2 * SAME_BITS - 1:
        assert same_bits(samples, most)


SEEN = (
    NETS
    + """

class Seen(Tiny):
    def forward(self, image):
        if not torch.compiler.is_exporting():
            with open("seen.txt", "a") as file:
                print(len(image), file=file)
        return super().forward(image)
"""
)


def test_calibration_has_no_batch_that_is_larger_than_the_recipes(project, monkeypatch):
    monkeypatch.chdir(project.folder)
    project.write("nets.py", SEEN)
    project.arrays = {name: array[:40] for name, array in project.arrays.items()}
    images = {"npz": "data.npz", "inputs": {"image": "images"}}

    def ranges(most):
        project.recipe(
            model={"callable": "nets.py:Seen"}, metrics=["sqnr_db"],
            data={"calibration": images, "batch_size": most},
            statistics={"export": "amax.json"},
        )  # fmt: skip
        (project.folder / "seen.txt").unlink(missing_ok=True)
        project.out = project.folder / f"runs/{most}"
        done = project.apply()
        assert done.code == 0, done.stderr
        sizes = list(map(int, (project.folder / "seen.txt").read_text().split()))
        assert max(sizes) <= most
        notes = [note for note in project.report().notes if "calibration had a batch of" in note]
        return json.loads((project.folder / "amax.json").read_text()), notes

    found, notes = ranges(32)
    assert not notes
    assert ranges(20) == (found, [])  # 20 + 20
    few, notes = ranges(2)
    assert notes == [
        "calibration had a batch of 2, since data.batch_size is 2: below 16 the last bits of ranges "
        "depend on the batch size and the number of threads"
    ]
    for site, entry in found["sites"].items():
        given, wanted = (np.ravel(each["amax"]) for each in (few["sites"][site], entry))
        np.testing.assert_allclose(given, wanted, rtol=1e-5)
