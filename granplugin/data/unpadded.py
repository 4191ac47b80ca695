"""Samples without their padding: of each, what its masks say to be real.

Whatever a network computes of a padded position - an attention's row, a normed embedding, a share
of a histogram - is not there to be seen, in any site and for any calibrator.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from granplugin.data.batches import Batch, length_of
from granplugin.errors import DataError
from granplugin.words import first

Axes = Mapping[str, Mapping[int, str]]
"""Input -> axis behind the samples' -> its name; axes of one name have one length."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """Of one input, the axis that is cut, and of each sample where it begins and ends."""

    name: str
    axis: int
    starts: np.ndarray
    stops: np.ndarray


def unpadded(batches: Iterable[Batch], masks: Sequence[str], axes: Axes) -> Iterator[Batch]:
    """The samples cut to where their masks - inputs of at least 2 axes, 1 for what is real and 0
    for padding - are 1, those of a batch that are of one size in a batch.

    Cut are the axes of inputs that have the name of a mask's axis in `axes`; where a mask of
    (samples, length) has none there, axis 1 of every input of that length whose own has none.
    Samples of padding alone are left out. Raises DataError for what is no mask, for real positions that
    are not in one piece, and where none are.
    """
    seen, given = 0, False
    for batch in batches:
        cuts = [cut for mask in masks for cut in _cuts(batch, mask, masks, axes, seen)]
        _check_once(cuts)
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for at in range(length_of(batch)):
            sizes = tuple(int(cut.stops[at] - cut.starts[at]) for cut in cuts)
            if all(sizes):
                groups[sizes].append(at)
        for members in groups.values():
            given = True
            yield _cut(batch, cuts, members)
        seen += length_of(batch)
    if not given:
        raise DataError(f"{first(masks)}: no sample has a position that is not padding")


def cut_inputs(batch: Batch, masks: Sequence[str], axes: Axes) -> dict[str, list[int]]:
    """Input -> the axes of it that `unpadded` cuts. Raises DataError."""
    found: dict[str, list[int]] = defaultdict(list)
    for mask in masks:
        for cut in _cuts(batch, mask, masks, axes, 0):
            found[cut.name].append(cut.axis)
    return dict(found)


def _cuts(batch: Batch, mask: str, masks: Sequence[str], axes: Axes, seen: int) -> Iterator[_Cut]:
    """What a mask cuts of a batch, in front of which `seen` samples have been."""
    if mask not in batch:
        raise DataError(f"mask {mask!r} is none of the inputs: {first([*batch])}")
    real = batch[mask] != 0
    if real.ndim < 2:
        raise DataError(f"mask {mask!r} has one number a sample; a mask is (samples, length)")
    if ((batch[mask] != 1) & real).any():
        raise DataError(f"mask {mask!r} holds other numbers than 1 (real) and 0 (padding)")
    pieces = np.ones_like(real)
    for axis in range(1, real.ndim):
        others = tuple(each for each in range(1, real.ndim) if each != axis)
        along = real.any(others)
        starts = along.argmax(1)
        stops = np.where(along.any(1), along.shape[1] - along[:, ::-1].argmax(1), starts)
        at = np.arange(along.shape[1])
        within = (at >= starts[:, None]) & (at < stops[:, None])
        pieces &= np.expand_dims(within, others)
        for name, of_input in _read(batch, mask, axis, masks, axes):
            yield _Cut(name, of_input, starts, stops)
    broken = (pieces != real).reshape(len(real), -1).any(1)
    if broken.any():
        raise DataError(
            f"mask {mask!r}: sample {seen + int(broken.argmax())} has padding between real "
            "positions, which cannot be cut off; leave data.mask out"
        )


def _read(
    batch: Batch, mask: str, axis: int, masks: Sequence[str], axes: Axes
) -> Iterator[tuple[str, int]]:
    """The inputs that are as long as the mask's axis for the same reason, each with its axis."""
    named = axes.get(mask, {}).get(axis)
    if named is not None:
        for name in batch:
            for each, called in axes.get(name, {}).items():
                if called == named:
                    yield name, each
        return
    length = batch[mask].shape[axis]
    alike = [name for name in masks if name != mask and batch[name].shape[1:2] == (length,)]
    if batch[mask].ndim > 2 or alike:
        told = f"mask {alike[0]!r} is as long" if alike else "it has more than two axes"
        raise DataError(
            f"mask {mask!r}: which inputs it is of cannot be told by their length, as {told}; name "
            f"the axes in model.dynamic, as {{{mask}: {{{axis}: length}}, ...}}"
        )
    for name, array in batch.items():
        if array.shape[1:2] == (length,) and 1 not in axes.get(name, {}):
            yield name, 1


def _check_once(cuts: Sequence[_Cut]) -> None:
    known: dict[tuple[str, int], _Cut] = {}
    for cut in cuts:
        other = known.setdefault((cut.name, cut.axis), cut)
        if not all(
            np.array_equal(mine, theirs)
            for mine, theirs in ((cut.starts, other.starts), (cut.stops, other.stops))
        ):
            raise DataError(f"axis {cut.axis} of {cut.name!r} has two masks that differ")


def _cut(batch: Batch, cuts: Sequence[_Cut], members: Sequence[int]) -> Batch:
    found = {}
    for name, array in batch.items():
        mine = [cut for cut in cuts if cut.name == name]
        rows = []
        for at in members:
            index = [slice(None)] * (array.ndim - 1)
            for cut in mine:
                index[cut.axis - 1] = slice(int(cut.starts[at]), int(cut.stops[at]))
            rows.append(array[at][tuple(index)])
        found[name] = np.stack(rows)
    return found
