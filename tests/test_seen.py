"""What is seen batch by batch is what is in all of it together, however it is counted."""

import numpy as np
import pytest
import torch

from granplugin.calibration.seen import Seen
from granplugin.calibration.statistics import Need
from granplugin.quant.calibrators import histogram

LARGE = 1_100_000  # more values than are counted at once


def values(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_cauchy(shape)).float()


def of_tensor() -> Seen:
    return Seen(Need("a.input", (1, LARGE), True, (1, LARGE)))


@pytest.mark.parametrize("length", [3, LARGE])
def test_counts_of_batches_are_those_of_all_values(length):
    x, seen = values(2, length), of_tensor()
    for batch in (x[:1], x[1:]):
        seen.add(batch)
    assert (seen.counts_grid() == histogram(x.numpy())).all()
    assert seen.amax_grid() == x.abs().max()


def test_each_cell_has_the_counts_of_its_values():
    x, seen = values(6, 2, 5), Seen(Need("a.input", (1, 1, 5), True, (1, 2, 5)))
    for batch in x.split(4):
        seen.add(batch)
    for at in range(2):
        assert (seen.counts_grid()[0, at, 0] == histogram(x[:, at].numpy())).all()


@pytest.mark.parametrize("length, fails", [(3, "ones"), (LARGE, "bincount")])
def test_a_batch_that_memory_was_lacking_for_is_not_counted_in_part(monkeypatch, length, fails):
    x, seen, calls = values(1, length), of_tensor(), []
    whole = getattr(torch, fails)

    def lacking(*args, **kwargs):
        calls.append(fails)
        if len(calls) == (2 if length == LARGE else 1):
            raise RuntimeError("out of memory")
        return whole(*args, **kwargs)

    monkeypatch.setattr(torch, fails, lacking)
    with pytest.raises(RuntimeError):
        seen.add(x)
    seen.add(x)
    assert (seen.counts_grid() == histogram(x.numpy())).all()
