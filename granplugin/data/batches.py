"""Batches of samples: in a fixed order, as often as one asks, drawn or cut to size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from granplugin.errors import DataError
from granplugin.store.keys import content_key

Batch = dict[str, np.ndarray]


class Batches(Protocol):
    """Samples in a fixed order, in batches; can be iterated any number of times.

    A batch maps arguments of forward to arrays with the samples on axis 0: `batch_size` of them,
    fewer in the last batch. Floats are float32; integers and booleans are as given. The arrays
    are the caller's to change.
    """

    @property
    def samples(self) -> int: ...

    def labels(self) -> np.ndarray | None:
        """Class numbers, int64 of shape (samples,), or None for data without labels."""

    def __iter__(self) -> Iterator[Batch]: ...

    def key(self) -> str:
        """A hash of all samples, their order and labels; the same for every batch size."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Samples that can be read in any order: an .npz or a folder."""

    samples: int
    batch_size: int
    read: Callable[[slice], Batch]
    known_labels: np.ndarray | None
    facts: Callable[[], list[Any]]

    def labels(self) -> np.ndarray | None:
        return None if self.known_labels is None else self.known_labels.copy()

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.samples, self.batch_size):
            yield self.read(slice(start, min(start + self.batch_size, self.samples)))

    def key(self) -> str:
        return self._key

    @cached_property
    def _key(self) -> str:
        labels = None if self.known_labels is None else self.known_labels.tolist()
        return content_key(*self.facts(), labels)


def drawn_indices(total: int, samples: int | None, seed: int, where: str) -> np.ndarray:
    """The positions of `samples` of `total`, in rising order; all where `samples` is None."""
    if not total:
        raise DataError(f"{where}: there are no samples in it")
    if samples is None:
        return np.arange(total)
    if samples > total:
        raise DataError(f"{where}: it has {total} samples, and samples: {samples} are asked for")
    return np.sort(np.random.default_rng(seed).choice(total, samples, replace=False))


def rebatched(chunks: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The same samples in batches of `size`, fewer in the last one; copies."""
    held: list[Batch] = []
    room = size
    for chunk in chunks:
        start, length = 0, length_of(chunk)
        while length - start >= room:
            yield _join([*held, _part(chunk, start, start + room)])
            held, start, room = [], start + room, size
        if start < length:
            held.append(_part(chunk, start, length))
            room -= length - start
    if held:
        yield _join(held)


def _part(batch: Batch, start: int, stop: int) -> Batch:
    # The user's callable may fill one buffer again and again.
    return {name: values[start:stop].copy() for name, values in batch.items()}


def _join(parts: list[Batch]) -> Batch:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def length_of(batch: Batch) -> int:
    """Samples in the batch."""
    return len(next(iter(batch.values())))
