"""Passes that add figures up: interrupted, halved, on damaged files and full disks."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from granplugin.analysis import passes
from granplugin.analysis.collect import collect_resumably
from granplugin.analysis.passes import Kept, accumulate
from granplugin.calibration.statistics import Need
from granplugin.errors import DataError, RunError

X = np.random.default_rng(0).standard_normal((40, 3))
NO_MEMORY = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: not enough memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
]


def batches(size, x=X):
    return ({"x": x[at : at + size]} for at in range(0, len(x), size))


class Step:
    """Sums of each batch; raises where told, and remembers what it saw."""

    def __init__(self, fails=lambda batch: None):
        self.fails, self.seen = fails, []

    def __call__(self, batch, names):
        found = {name: (batch["x"] ** len(name)).sum(0) for name in names}
        if error := self.fails(batch["x"]):
            raise error
        self.seen += [(row, names) for row in batch["x"][:, 0].tolist()]
        return found


def expect(found, names, x=X):
    assert list(found) == list(names)
    for name in names:
        np.testing.assert_allclose(found[name], (x ** len(name)).sum(0), rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 41), st.integers(0, 12)), max_size=4), st.integers(1, 41))
def test_an_interrupted_pass_goes_on_behind_its_last_batch(tmp_path_factory, tries, size):
    path = tmp_path_factory.mktemp("kept") / "a.safetensors"
    done = []
    for batch_size, at in tries:
        step = Step()
        step.fails = lambda x: (
            KeyboardInterrupt() if len(step.calls) == at else step.calls.append(x)
        )
        step.calls = []
        try:
            accumulate(Kept(path), ["a", "bb"], batches(batch_size), step)
        except KeyboardInterrupt:
            pass
        done += step.seen
    step = Step()
    expect(accumulate(Kept(path), ["a", "bb"], batches(size), step), ["a", "bb"])
    assert [row for row, _ in done + step.seen] == X[:, 0].tolist()


def test_only_figures_that_are_not_kept_are_measured(tmp_path):
    path = tmp_path / "a.safetensors"
    expect(accumulate(Kept(path), ["a"], batches(7), Step()), ["a"])
    again, more = Step(), Step()
    expect(accumulate(Kept(path), ["a"], batches(7), again), ["a"])
    expect(accumulate(Kept(path), ["bb", "a", "bb"], batches(7), more), ["bb", "a"])
    assert not again.seen and {names for _, names in more.seen} == {frozenset({"bb"})}
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_an_interrupted_pass_for_other_figures_is_not_taken_for_these(tmp_path):
    path = tmp_path / "a.safetensors"
    interrupted = Step(lambda x: KeyboardInterrupt() if x[0, 0] == X[14, 0] else None)
    with pytest.raises(KeyboardInterrupt):
        accumulate(Kept(path), ["a", "bb"], batches(7), interrupted)
    expect(accumulate(Kept(path), ["a"], batches(7), Step()), ["a"])


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
@pytest.mark.parametrize("size", [2, 7, 40])
def test_batches_without_enough_memory_are_halved_once(tmp_path, error, size, caplog):
    most = -(-size // 2)
    step = Step(lambda x: error if len(x) > most else None)
    expect(accumulate(Kept(tmp_path / "a.safetensors"), ["a"], batches(size), step), ["a"])
    assert caplog.text.count("halving") == 1
    assert [row for row, _ in step.seen] == X[:, 0].tolist()


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_where_half_a_batch_is_too_much_the_way_out_is_said_and_works(tmp_path, error):
    path = tmp_path / "a.safetensors"
    # The first three batches fit.
    step = Step(lambda x: error if len(x) > 3 and x[0, 0] not in X[:24, 0] else None)
    with pytest.raises(DataError, match="out of memory with 4 samples .*data.batch_size lower"):
        accumulate(Kept(path), ["a"], batches(8), step)
    smaller = Step(step.fails)
    expect(accumulate(Kept(path), ["a"], batches(3), smaller), ["a"])
    assert [row for row, _ in smaller.seen] == X[24:, 0].tolist()


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path):
    step = Step(lambda x: RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        accumulate(Kept(tmp_path / "a.safetensors"), ["a"], batches(8), step)


def test_no_samples_are_an_error(tmp_path):
    with pytest.raises(DataError, match="no samples"):
        accumulate(Kept(tmp_path / "a.safetensors"), ["a"], batches(8, X[:0]), Step())


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 400), st.sampled_from(["a.safetensors", "a.partial.safetensors"]))
def test_what_was_cut_short_is_measured_again(tmp_path_factory, length, name):
    path = tmp_path_factory.mktemp("kept") / "a.safetensors"
    interrupted = Step(lambda x: KeyboardInterrupt() if x[0, 0] == X[14, 0] else None)
    with pytest.raises(KeyboardInterrupt):
        accumulate(Kept(path), ["a"], batches(7), interrupted)
    if name == path.name:
        expect(accumulate(Kept(path), ["a"], batches(7), Step()), ["a"])
    file = path.with_name(name)
    whole = file.read_bytes()
    file.write_bytes(whole[: min(length, len(whole) - 1)])
    expect(accumulate(Kept(path), ["a"], batches(7), Step()), ["a"])
    expect(Kept(path).figures, ["a"])


def test_a_full_disk_is_said_and_loses_nothing(tmp_path, monkeypatch, caplog):
    path = tmp_path / "a.safetensors"
    accumulate(Kept(path), ["a"], batches(7), Step())
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match="a.safetensors: cannot be written: No space left"):
        accumulate(Kept(path), ["a", "bb"], batches(7), Step())
    interrupted = Step(lambda x: KeyboardInterrupt() if x[0, 0] == X[14, 0] else None)
    with pytest.raises(KeyboardInterrupt):
        accumulate(Kept(path), ["a", "bb"], batches(7), interrupted)
    assert "partial.safetensors: cannot be written" in caplog.text
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


NEEDS = [Need(f"{layer}.input", (1, 3), True, (1, 3)) for layer in ("0", "2")]


def ranges(path, model, size, forward=None):
    run = forward or (lambda batch: model(torch.from_numpy(batch["x"]).float()))
    with torch.no_grad():
        return collect_resumably(model, NEEDS, batches(size), run, path, "key")


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt()], ids=repr)
def test_ranges_see_nothing_twice_in_a_batch_that_failed_half_way(tmp_path, monkeypatch, error):
    monkeypatch.setattr(passes, "_APART", 0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh())
    expected = ranges(tmp_path / "a", model, 16)

    def fails(batch):
        x = torch.from_numpy(batch["x"]).float()
        half = model[2](model[1](model[0](x)))
        if len(x) > 8 and x[0, 0] != np.float32(X[0, 0]):
            raise error
        return model[3](half)

    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            ranges(tmp_path / "b", model, 16, fails)
        found = ranges(tmp_path / "b", model, 16)
    else:
        found = ranges(tmp_path / "b", model, 16, fails)
    for need in NEEDS:
        np.testing.assert_allclose(found.amax[need], expected.amax[need], rtol=1e-6)
        assert found.counts[need].sum() == X.size
    assert found.samples == expected.samples == len(X)
