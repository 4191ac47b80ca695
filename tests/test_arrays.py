"""Arrays in a file."""

from __future__ import annotations

import numpy as np

from granplugin.store.arrays import save_arrays


def test_arrays_of_any_name_are_read_as_they_were(tmp_path):
    arrays = {name: np.arange(3) + at for at, name in enumerate(("file", "allow_pickle", "a/b.c"))}
    save_arrays(tmp_path / "arrays.npz", arrays)
    with np.load(tmp_path / "arrays.npz") as found:
        assert found.files == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
