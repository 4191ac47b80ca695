"""Batches that a callable gives, called anew for each pass."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from hashlib import blake2b
from itertools import repeat
from typing import Any

import numpy as np

from granplugin.data.arrays import as_array, by_path, check_names, class_numbers, finite_numbers
from granplugin.data.batches import Batch, length_of, rebatched, shapes_of
from granplugin.errors import DataError
from granplugin.quant.site import Shape
from granplugin.recipe.callables import blame, resolve
from granplugin.recipe.data import CallableSource
from granplugin.recipe.strict import Target
from granplugin.store.keys import content_key


def open_called(
    source: CallableSource,
    batch_size: int,
    seed: int,
    role: str,
    input_names: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]],
) -> Called:
    """What the callable gives; `samples` are the first ones, so `seed` decides nothing."""
    return Called(
        source.callable,
        resolve(source.callable, DataError),
        source.args,
        source.samples,
        batch_size,
        tuple(input_names),
        f"{role} data {source.callable}",
        dynamic,
    )


@dataclass(frozen=True, eq=False)
class _Seen:
    """What one pass shows: how many samples, their labels and shapes, and a hash of it all."""

    samples: int
    labels: np.ndarray | None
    shapes: dict[str, list[Shape]]
    key: str


@dataclass(frozen=True)
class _Kind:
    """What the samples of a batch look like."""

    shapes: dict[str, Shape]
    labelled: bool

    def __str__(self) -> str:
        told = ", ".join(f"{name} {list(shape)}" for name, shape in self.shapes.items())
        return told + (" and labels" if self.labelled else " and no labels")

    def unlike(self, other: _Kind, dynamic: Mapping[str, Mapping[int, str]]) -> str | None:
        """The way out where they differ in more than the length of axes that are dynamic, empty
        where there is none; None where they do not."""
        ranks = [
            {name: len(shape) for name, shape in each.shapes.items()} for each in (self, other)
        ]
        if ranks[0] != ranks[1] or self.labelled != other.labelled:
            return ""
        more: dict[str, dict[int, str]] = {}
        for name, shape in self.shapes.items():
            sizes = zip(shape, other.shapes[name], strict=True)
            varies = [axis for axis, pair in enumerate(sizes, 1) if len({*pair}) > 1]
            if stray := [axis for axis in varies if axis not in dynamic.get(name, {})]:
                more[name] = {axis: f"axis{axis}" for axis in stray}
        if not more:
            return None
        told = ", ".join(
            f"{name}: {{{', '.join(f'{axis}: {word}' for axis, word in axes.items())}}}"
            for name, axes in more.items()
        )
        return f"; where an axis may have any length, give it a name in model.dynamic: {{{told}}}"


@dataclass(frozen=True, eq=False)
class Called:
    """What a callable gives, called anew for each pass."""

    target: Target
    function: Callable[..., Any]
    args: dict[str, Any]
    limit: int | None
    batch_size: int
    input_names: tuple[str, ...]
    where: str
    dynamic: Mapping[str, Mapping[int, str]]
    # Of each batch of the first pass: labels and inputs of different orders must not be paired.
    checksums: list[int] = field(default_factory=list)

    @property
    def samples(self) -> int:
        return self._seen.samples

    def labels(self) -> np.ndarray | None:
        labels = self._seen.labels
        return None if labels is None else labels.copy()

    def __iter__(self) -> Iterator[Batch]:
        return rebatched((inputs for inputs, _ in self._chunks()), repeat(self.batch_size))

    def few(self, most: int) -> Batch:
        chunks = (inputs for inputs, _ in self._chunks())
        return next(iter(rebatched(chunks, [most])))

    def shapes(self) -> dict[str, list[Shape]]:
        return {name: list(shapes) for name, shapes in self._seen.shapes.items()}

    def key(self) -> str:
        """Of the samples, not of the code: what it reads may change without it."""
        return self._seen.key

    @cached_property
    def _seen(self) -> _Seen:
        """At the cost of one pass."""
        count, labels = 0, []
        # One for each input, so that it is the same however the samples are batched.
        digests: dict[str, Any] = defaultdict(partial(blake2b, digest_size=16))
        kinds: dict[str, str] = {}
        # Each run of samples of one shape, with its length.
        runs: list[tuple[dict[str, Shape], int]] = []
        for inputs, numbers in self._chunks():
            length, shapes = length_of(inputs), shapes_of(inputs)
            count += length
            # All of them have labels, or none.
            labels += [] if numbers is None else [numbers]
            for name, values in inputs.items():
                digests[name].update(np.ascontiguousarray(values).data)
                kinds[name] = str(values.dtype)
            before = runs.pop() if runs and runs[-1][0] == shapes else (shapes, 0)
            runs.append((shapes, before[1] + length))
        known = np.concatenate(labels) if labels else None
        content = {name: (kinds[name], digest.hexdigest()) for name, digest in digests.items()}
        told = None if known is None else known.tolist()
        seen = {name: list(dict.fromkeys(run[name] for run, _ in runs)) for name in kinds}
        return _Seen(count, known, seen, content_key("callable", content, runs, told))

    def _chunks(self) -> Iterator[tuple[Batch, np.ndarray | None]]:
        """Inputs and labels of each of the callable's own batches, up to `limit` samples."""
        count = number = 0
        first = None
        for number, given in enumerate(self._given(), 1):
            place = f"{self.where}: batch {number}"
            inputs, labels = self._named(given, place)
            length = length_of(inputs)
            if self.limit is not None:
                length = min(length, self.limit - count)
            indices = np.arange(count, count + length)
            inputs = {
                name: finite_numbers(values[:length], f"{place}: {name!r}", indices)
                for name, values in inputs.items()
            }
            if labels is not None:
                labels = class_numbers(labels[:length], f"{place}: its labels")
            kind = _Kind(shapes_of(inputs), labels is not None)
            first = first or kind
            if (told := kind.unlike(first, self.dynamic)) is not None:
                raise DataError(f"{place} has {kind} per sample, but batch 1 has {first}{told}")
            self._check_repeats(number, [*inputs.values(), *([] if labels is None else [labels])])
            count += length
            yield inputs, labels
            if count == self.limit:
                return
        if number < len(self.checksums):
            raise self._other()
        if count < (self.limit or 1):
            asked = f", and samples: {self.limit} are asked for" if self.limit and count else ""
            raise DataError(f"{self.where}: it gives {count or 'no'} samples{asked}")

    def _given(self) -> Iterator[Any]:
        try:
            batches = self.function(**self.args)
            # A batch by itself can be iterated too, and would be taken apart.
            alone = isinstance(batches, (Mapping, tuple, str)) or hasattr(batches, "shape")
            if alone or not hasattr(batches, "__iter__"):
                kind = type(batches).__name__
                raise DataError(f"{self.where}: it returned {kind}, not a list of batches")
            yield from batches
        except DataError:
            raise
        except (Exception, SystemExit) as err:
            raise blame(self.target, "giving batches", err, DataError) from err

    def _named(self, given: Any, place: str) -> tuple[Batch, np.ndarray | None]:
        """A batch: {argument: array}, (inputs, labels), (inputs,) or one array."""
        labels = None
        if isinstance(given, (tuple, list)):
            if len(given) not in (1, 2):
                raise DataError(
                    f"{place} has {len(given)} parts; write {{argument: array}} or (inputs, labels)"
                )
            given, labels = given if len(given) == 2 else (given[0], None)
        if not isinstance(given, Mapping):
            if not self.input_names:
                raise DataError(f"{place} does not name its input; write {{argument: array}}")
            given = {self.input_names[0]: given}
        if not given:
            raise DataError(f"{place} has no inputs")
        check_names(given, self.input_names, place)
        given = by_path(given, "")
        inputs = {name: as_array(values, f"{place}: {name!r}") for name, values in given.items()}
        if labels is not None:
            labels = as_array(labels, f"{place}: its labels")
        lengths = {f"{name!r}": len(values) for name, values in inputs.items()}
        if labels is not None:
            lengths["labels"] = len(labels)
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{count} of {name}" for name, count in lengths.items())
            raise DataError(
                f"{place} does not have as many samples in each array: {listed}; axis 0 of every input "
                "counts the samples"
            )
        return inputs, labels

    def _check_repeats(self, number: int, arrays: list[np.ndarray]) -> None:
        checksum = 0
        for values in arrays:
            checksum = zlib.crc32(np.ascontiguousarray(values).data, checksum)
        if number > len(self.checksums):
            self.checksums.append(checksum)
        elif checksum != self.checksums[number - 1]:
            raise self._other()

    def _other(self) -> DataError:
        return DataError(
            f"{self.where}: it gives other samples at each call; "
            "do not shuffle or augment, or seed it inside"
        )
