"""The run folder: held by one run, files whole or not at all, stages kept by their content."""

from __future__ import annotations

import json
import logging
import os

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from granplugin.errors import RunError, UserError
from granplugin.store.keys import content_key
from granplugin.store.run_folder import look_at, open_run

log = logging.getLogger(__name__)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_equal_content_has_an_equal_key(value):
    assert content_key(value) == content_key(json.loads(json.dumps(value)))


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_the_order_of_keys_does_not_matter(value):
    assert content_key(value) == content_key(dict(reversed(value.items())))


def test_other_content_has_another_key():
    keys = [content_key(*parts) for parts in (("a", "b"), ("ab",), ("b", "a"), ("a", ["b"]), ())]
    assert len(set(keys)) == len(keys)


def test_a_stage_is_made_once_for_each_key(tmp_path):
    calls = []
    with open_run(tmp_path / "run") as run:
        for key in ("a", "b", "a"):
            run.kept.made("stage", key, ".txt", lambda path: calls.append(path.write_text("x")))
            assert run.kept.made_json("json", key, lambda: {"key": calls}) is not None
    assert len(calls) == 2


def test_a_stage_that_fails_leaves_nothing(tmp_path):
    def half(path):
        path.write_text("half")
        raise ValueError

    with open_run(tmp_path / "run") as run:
        with pytest.raises(ValueError):
            run.kept.made("stage", "a", ".txt", half)
        assert list(run.cache.iterdir()) == []


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    with open_run(tmp_path) as run:
        run.publish("variants/a/model.onnx", "whole")
    half = [tmp_path / "cache/.making-x/float.onnx", tmp_path / "variants/a/.model.onnx.new"]
    for path in half:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    with open_run(tmp_path):
        assert not any(path.exists() for path in half)
        assert (tmp_path / "variants/a/model.onnx").read_text() == "whole"


def test_publishing_replaces_a_file_in_one_step(tmp_path):
    with open_run(tmp_path / "run") as run:
        old = run.publish("result.txt", "old")
        with old.open() as reader:
            run.publish("result.txt", "new")
            assert reader.read() == "old"
        assert old.read_text() == "new"
        cached = run.kept.made("stage", "a", ".txt", lambda path: path.write_text("cached"))
        assert run.publish("deep/er/copy.txt", cached).read_text() == "cached"


def test_a_folder_is_held_by_one_run_until_it_ends(tmp_path):
    with open_run(tmp_path), pytest.raises(RunError, match="in use"), open_run(tmp_path):
        pass
    with open_run(tmp_path):
        pass


def test_a_lock_file_alone_holds_nothing(tmp_path):
    """As it stays behind after a kill: the system let go of the lock."""
    (tmp_path / ".lock").touch()
    with open_run(tmp_path):
        pass


def test_a_users_mistake_leaves_no_new_folder(tmp_path):
    path = tmp_path / "runs" / "deep" / "name"
    with pytest.raises(UserError, match="^told$"), open_run(path) as run:
        run.kept.made("stage", "a", ".txt", lambda path: path.write_text("x"))
        raise UserError("told")
    assert list(tmp_path.iterdir()) == []


def test_a_users_mistake_leaves_an_earlier_folder_as_it_was(tmp_path):
    with open_run(tmp_path) as run:
        run.publish("report.json", "{}")
    with pytest.raises(UserError, match="^told$"), open_run(tmp_path):
        raise UserError("told")
    assert (tmp_path / "report.json").read_text() == "{}"


def test_the_traceback_of_a_users_code_stays_in_the_log(tmp_path):
    path = tmp_path / "runs" / "name"
    with pytest.raises(UserError, match=r"told; traceback: .*log\.txt$"), open_run(path):
        try:
            raise LookupError("inside")
        except LookupError as err:
            log.warning("it raised", exc_info=err)
            raise UserError("told") from err
    assert "LookupError: inside" in (path / "log.txt").read_text()
    assert not (path / "cache").exists()


def test_an_interrupted_run_keeps_what_it_made(tmp_path):
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path / "run") as run:
        made = run.kept.made("stage", "a", ".txt", lambda path: path.write_text("x"))
        raise KeyboardInterrupt
    assert made.read_text() == "x"


def test_a_folder_being_held_is_not_removed_by_the_one_refused(tmp_path):
    lock = FileLock(tmp_path / ".lock")
    with lock, pytest.raises(RunError), open_run(tmp_path):
        pass
    assert tmp_path.is_dir()


def test_what_is_neither_used_nor_published_is_forgotten(tmp_path):
    with open_run(tmp_path) as run:
        run.publish("variants/old/model.onnx", "")
        run.kept.made("stage", "old", "", lambda path: path.mkdir())
    with open_run(tmp_path) as run:
        run.publish("variants/new/model.onnx", "")
        run.kept.made("stage", "new", ".txt", lambda path: path.write_text("x"))
        run.forget_unused()
    assert [path.name for path in (tmp_path / "variants").iterdir()] == ["new"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["stage-new.txt"]


class Killed(BaseException):
    """A process that ends at this call."""


def write(path, generation):
    with open_run(path) as run, run.publishing():
        for name in ("a", generation):
            run.publish(f"variants/{name}/model.onnx", generation)
        run.publish("plan.json", generation)
        run.publish("report.md", generation)
        run.publish("report.json", generation)
        run.forget_unused()


def test_a_kill_at_any_call_leaves_one_generation_or_no_report(tmp_path, monkeypatch):
    """Whatever is in the folder belongs to the report in it, and the next run completes it."""

    def generations(path):
        return {file.read_text() for file in path.rglob("*.*") if file.suffix in (".json", ".onnx")}

    def dying_after(calls):
        left = iter(range(calls))

        def counted(call):
            def run(*given, **options):
                if next(left, None) is None:
                    raise Killed
                return call(*given, **options)

            return run

        return counted

    real = {name: getattr(os, name) for name in ("replace", "unlink", "link", "rmdir", "rename")}
    finished = False
    for calls in range(200):
        path = tmp_path / str(calls)
        write(path, "old")
        counted = dying_after(calls)
        for name, call in real.items():
            monkeypatch.setattr(os, name, counted(call))
        try:
            write(path, "new")
            finished = True
        except Killed:
            pass
        for name, call in real.items():
            monkeypatch.setattr(os, name, call)
        told = path / "report.json"
        shown = {
            file.read_text() for file in (*path.glob("*.json"), *path.glob("variants/*/*.onnx"))
        }
        assert not told.exists() or shown == {told.read_text()}, calls
        with open_run(path):
            assert len(generations(path)) == 1, calls
            assert told.exists()
        if finished:
            assert generations(path) == {"new"} and not (path / "variants/old").exists()
            return
    raise AssertionError("it never finished")


def test_a_limit_of_descriptors_leaves_the_report_and_what_it_speaks_of(tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = len(os.listdir("/dev/fd"))
    told = []
    for room in range(20):
        path = tmp_path / str(room)
        write(path, "old")
        resource.setrlimit(resource.RLIMIT_NOFILE, (held + room, limits[1]))
        try:
            write(path, "new")
            told.append("new")
        except RunError as err:
            assert "Too many open files" in str(err)
            told.append("old")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        results = (*path.glob("*.json"), *path.glob("variants/*/*.onnx"))
        assert [file.read_text() for file in results] == [told[-1]] * 4
    assert told == sorted(told, reverse=True) and len(set(told)) == 2


def test_who_only_looks_locks_nothing_and_reads_and_keeps_its_stage(tmp_path):
    with open_run(tmp_path / "run") as run:
        run.kept.made_json("layers", "a", lambda: 1)
        with look_at(tmp_path / "run", "look_log.txt", "layers") as looked:
            assert looked.kept.made_json("layers", "a", lambda: 2) == 1
            assert looked.kept.made_json("layers", "b", lambda: 3) == 3
        assert run.kept.made_json("layers", "b", lambda: 4) == 3
    with pytest.raises(UserError, match="^told$"), look_at(tmp_path / "none", "l.txt", "layers"):
        raise UserError("told")
    assert not (tmp_path / "none").exists()
