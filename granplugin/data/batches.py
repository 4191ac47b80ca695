"""Batches of samples: in a fixed order, as often as one asks, drawn or cut to size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from granplugin.errors import DataError
from granplugin.quant.site import Shape
from granplugin.store.keys import content_key

Batch = dict[str, np.ndarray]


class Batches(Protocol):
    """Samples in a fixed order, in batches; can be iterated any number of times.

    A batch maps arguments of forward, or paths into one, to arrays with the samples on axis 0:
    `batch_size` of them, fewer in the last batch and in front of samples of another shape. Floats are float32; integers and booleans are as given. The arrays
    are the caller's to change.
    """

    @property
    def samples(self) -> int: ...

    def labels(self) -> np.ndarray | None:
        """Class numbers, int64 of shape (samples,), or None for data without labels."""

    def __iter__(self) -> Iterator[Batch]: ...

    def few(self, most: int) -> Batch:
        """Up to so many samples, at the cost of these: from all over where they can be had, else
        the first ones."""

    def shapes(self) -> dict[str, list[Shape]]:
        """Input -> the shapes that a sample of it has, without the axis of samples; each once."""

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

    def few(self, most: int) -> Batch:
        if self.samples <= most:
            return self.read(slice(None))
        starts = [self.samples * at // most for at in range(most)]
        return _join([self.read(slice(start, start + 1)) for start in starts])

    def shapes(self) -> dict[str, list[Shape]]:
        return {name: [array.shape[1:]] for name, array in self.few(1).items()}

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


SAME_BITS = 16
"""On a CPU, torch computes a sample's activations to the same bits in any batch of 16 or more, on
any number of threads, and to others below, where it picks another convolution (use_mkldnn of
ConvParams in aten/src/ATen/native/Convolution.cpp)."""


def calibration_sizes(samples: int, most: int) -> tuple[int, ...]:
    """The batches to calibrate in: none has more than `most` samples, and none fewer than SAME_BITS
    where that can be, so that ranges do not depend on `most`.

    >>> calibration_sizes(36, 32), calibration_sizes(36, 18), calibration_sizes(36, 16)
    ((16, 20), (18, 18), (16, 16, 4))
    >>> calibration_sizes(5, 2)
    (2, 2, 1)
    """
    size = min(SAME_BITS, most)
    sizes, left = [size] * (samples // size), samples % size
    for at in reversed(range(len(sizes))):
        more = min(left, most - size)
        sizes[at] += more
        left -= more
    return (*sizes, left) if left else tuple(sizes)


def even_sizes(samples: int, most: int) -> tuple[int, ...]:
    """As few batches as hold `samples` with no more than `most` in one, as even as can be: so that
    none falls below SAME_BITS where `most` is twice that.

    >>> even_sizes(36, 32), even_sizes(512, 512), even_sizes(5, 2)
    ((18, 18), (512,), (2, 2, 1))
    """
    count = -(-samples // most)
    least, more = divmod(samples, count)
    return (*(least + 1 for _ in range(more)), *(least for _ in range(count - more)))


def same_bits(samples: int, most: int) -> bool:
    """Whether calibration_sizes gives the same ranges as any larger batch does."""
    return min(calibration_sizes(samples, most)) >= min(SAME_BITS, samples)


def rebatched(chunks: Iterable[Batch], sizes: Iterable[int]) -> Iterator[Batch]:
    """The same samples in batches of these sizes, fewer in the last one and in front of samples of
    another shape; copies."""
    held: list[Batch] = []
    following = iter(sizes)
    room: float = next(following, math.inf)
    for chunk in chunks:
        start, length = 0, length_of(chunk)
        if held and shapes_of(chunk) != shapes_of(held[0]):
            yield _join(held)
            held, room = [], next(following, math.inf)
        while length - start >= room:
            stop = start + int(room)
            yield _join([*held, _part(chunk, start, stop)])
            held, start, room = [], stop, next(following, math.inf)
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


def shapes_of(batch: Batch) -> dict[str, Shape]:
    """Input -> the shape of a sample."""
    return {name: array.shape[1:] for name, array in batch.items()}


def length_of(batch: Batch) -> int:
    """Samples in the batch."""
    return len(next(iter(batch.values())))
