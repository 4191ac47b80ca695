"""A long stage tells what it is at and how much is left: lines in a pipe, a bar on a terminal."""

from __future__ import annotations

import io
import logging
import time

import pytest
from rich.console import Console

from granplugin import progress


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.02)


def wait_for(done):
    until = time.monotonic() + 10
    while not done() and time.monotonic() < until:
        time.sleep(0.005)


def test_in_a_pipe_a_long_stage_tells_a_line_with_what_it_is_at(soon, caplog):
    with caplog.at_level(logging.INFO, "granplugin.progress"):
        names = ["a on openvino", "b on openvino"]
        for _ in progress.track(range(2), "building", names=names):
            told = len(caplog.messages)
            wait_for(lambda seen=told: len(caplog.messages) > seen)
    assert caplog.messages[0].startswith("building: 0 of 2 (a on openvino) after ")
    assert any("1 of 2 (b on openvino)" in line and " left" in line for line in caplog.messages)


def test_a_short_stage_tells_nothing_and_leaves_no_thread(caplog):
    import threading

    before = threading.active_count()
    with caplog.at_level(logging.INFO, "granplugin.progress"):
        assert list(progress.track(iter("abc"), "short", 3)) == ["a", "b", "c"]
    assert caplog.messages == [] and threading.active_count() == before


def test_lines_are_seen_without_verbose_and_other_steps_are_not(soon, monkeypatch):
    from granplugin.cli.telling import Telling

    root, said = logging.getLogger(), io.StringIO()
    held, level = root.handlers[:], root.level
    monkeypatch.setattr(progress, "console", progress.console)
    try:
        with Telling().told():
            monkeypatch.setattr(progress.console, "file", said)
            logging.getLogger("granplugin.runs").info("a step")
            with progress.stage("exporting"):
                wait_for(said.getvalue)
    finally:
        root.handlers[:] = held
        root.setLevel(level)
        logging.captureWarnings(False)
    assert "exporting: after under 1 s" in said.getvalue() and "a step" not in said.getvalue()


def test_on_a_terminal_a_stage_within_another_is_a_line_of_its_bars(monkeypatch):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(progress, "console", terminal)
    with progress.stage("outer", 2) as outer:
        outer.now("a")
        bars = progress._bars[-1]
        for _ in progress.track([1, 2], "inner", 2):
            assert [task.description for task in bars.tasks] == ["outer: a", "inner"]
        outer.done()
        assert [task.completed for task in bars.tasks] == [1]
    assert progress._bars == []
