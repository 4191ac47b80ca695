"""Folders that are put in place whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from granplugin.store import whole_folder
from granplugin.store.whole_folder import put_in_place


def folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


@pytest.fixture(params=["names change places", "names cannot change places"])
def places(request, tmp_path, monkeypatch):
    if request.param.endswith("cannot change places"):
        monkeypatch.setattr(whole_folder, "_exchanged", lambda first, second: False)
    return tmp_path


def test_a_folder_takes_the_name_of_another_and_nothing_is_left_beside_it(places):
    put_in_place(folder(places / "new", "2"), places / "out")
    assert (places / "out" / "file").read_text() == "2"
    put_in_place(folder(places / "new", "3"), places / "out")
    assert (places / "out" / "file").read_text() == "3"
    assert [path.name for path in places.iterdir()] == ["out"]


def test_where_the_new_one_cannot_have_it_the_old_one_has_it_still(places):
    folder(places / "out", "1")
    with pytest.raises(OSError):
        put_in_place(places / "missing", places / "out")
    assert (places / "out" / "file").read_text() == "1"


def test_on_this_system_names_change_places_in_one_step(tmp_path):
    first, second = folder(tmp_path / "a", "1"), folder(tmp_path / "b", "2")
    assert whole_folder._exchanged(first, second)
    assert (first / "file").read_text() == "2"
