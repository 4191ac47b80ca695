"""runs and clean: what there is, and that freeing what is kept loses no result."""

from __future__ import annotations

import json

from conftest import run_main
from filelock import FileLock


def test_runs_are_listed_and_freed_and_the_next_run_gives_the_same(applied):
    out = applied.out
    listed = json.loads(run_main("runs", out.parent, "--json").stdout)["runs"]
    assert [each["run"] for each in listed] == [str(out)]
    assert listed[0]["cache_bytes"] > 0 and listed[0]["variants"] > 1
    results = {
        path: path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and out / "cache" not in path.parents and path.name != ".lock"
    }
    freed = json.loads(run_main("clean", out.parent, "--json").stdout)
    assert freed == {"version": 1, "freed": {str(out): listed[0]["cache_bytes"]}, "busy": []}
    assert {path: path.read_bytes() for path in results} == results
    model = applied.onnx()
    applied.apply()
    assert applied.onnx() == model


def test_a_run_in_use_is_left_alone(applied):
    with FileLock(applied.out / ".lock"):
        done = run_main("clean", applied.out)
    assert done.code == 0
    assert "use by a run; left as it is" in done.stdout
    assert any((applied.out / "cache").iterdir())


def test_what_is_no_run_is_refused_and_nothing_is_deleted(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "precious").write_text("mine")
    done = run_main("clean", tmp_path)
    assert done.code == 2
    assert "no run; `granplugin runs` lists them" in done.stderr
    assert (tmp_path / "cache" / "precious").exists()
    assert run_main("runs", tmp_path / "nothing").code == 2
    assert "no runs" in " ".join(run_main("runs", tmp_path).stdout.split())
