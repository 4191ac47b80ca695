"""On which axis of an output its samples lie, and the outputs of batches joined along it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """One of a network's outputs: its `kind` of number, and its `shape` in a first pass; None where
    it is a `kind` of object and no tensor."""

    name: str
    kind: str
    shape: Shape | None
    axis: int | None
    """Of the samples; None where there is none, as of a loss, or no one, as of a matrix of all
    samples with all."""

    @property
    def note(self) -> str | None:
        """What a reader must know of it."""
        if self.shape is None:
            return f"output {self.name!r} ({self.kind}) is no tensor: no file has it"
        if self.axis == 0:
            return None
        if self.axis is not None:
            return f"output {self.name!r} has its samples on axis {self.axis}: measured along it"
        return (
            f"output {self.name!r} has no axis of samples (shape {list(self.shape)} in the first "
            "pass): files have it, and no metric is of it"
        )


def output_from_json(told: Mapping[str, Any]) -> Output:
    """An output of the dict that `dataclasses.asdict` made of it, from JSON."""
    shape = told["shape"]
    return Output(told["name"], told["kind"], None if shape is None else tuple(shape), told["axis"])


def sample_axis(few: Shape, more: Shape | None, counts: tuple[int, int]) -> int | None:
    """The axis that is counts[0] long in one shape and counts[1] in the other; None where there is
    none, or where more than that differs. Without the other shape, axis 0 if that fits.

    >>> sample_axis((2, 10), (3, 10), (2, 3)), sample_axis((7, 2), (7, 3), (2, 3))
    (0, 1)
    >>> sample_axis((), (), (2, 3)), sample_axis((2, 2), (3, 3), (2, 3))
    (None, None)
    """
    if more is None:
        return 0 if few and few[0] == counts[0] else None
    if len(few) != len(more):
        return None
    changed = [axis for axis, sizes in enumerate(zip(few, more, strict=True)) if len({*sizes}) > 1]
    fits = len(changed) == 1 and (few[changed[0]], more[changed[0]]) == counts
    return changed[0] if fits else None


def sampled(outputs: Mapping[str, np.ndarray], axes: Mapping[str, int | None]) -> dict[str, Any]:
    """The outputs that have an axis of samples, that axis first; those that `axes` does not name
    have it first already."""
    return {
        name: np.moveaxis(array, axis, 0)
        for name, array in outputs.items()
        if (axis := axes.get(name, 0)) is not None
    }


def joined(
    batches: Sequence[Mapping[str, np.ndarray]], axes: Mapping[str, int | None]
) -> dict[str, np.ndarray]:
    """The `sampled` outputs of several batches as those of one; what is shorter than the longest of
    some batch is filled up (`filled`)."""
    parts = [sampled(batch, axes) for batch in batches]
    found = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        largest = tuple(map(max, *(a.shape[1:] for a in arrays))) if len(arrays) > 1 else None
        if largest and any(a.shape[1:] != largest for a in arrays):
            arrays = [filled(array, largest) for array in arrays]
        found[name] = np.concatenate(arrays)
    return found


def filled(values: np.ndarray, shape: Shape) -> np.ndarray:
    """Samples of this shape, (N, ...), with what is not `present` behind what they have; those of
    booleans as int8."""
    values = values.astype(np.int8) if values.dtype == bool else values
    made = np.full((len(values), *shape), _absent(values.dtype), values.dtype)
    made[tuple(map(slice, values.shape))] = values
    return made


def present(values: np.ndarray) -> np.ndarray:
    """Which values are there: those that `filled` did not put in.

    >>> present(filled(np.array([[1.0, np.nan]]), (3,))).tolist()
    [[True, True, False]]
    """
    if values.dtype == bool:
        return np.ones(values.shape, bool)
    absent = _absent(values.dtype)
    if values.dtype.kind != "f":
        return values != absent
    bits = f"u{values.dtype.itemsize}"
    return np.ascontiguousarray(values).view(bits) != absent.view(bits)


def present_or_zero(values: np.ndarray) -> np.ndarray:
    """The values, with 0 for those that are not `present`."""
    there = present(values)
    return values if there.all() else np.where(there, values, 0).astype(values.dtype)


def _absent(dtype: np.dtype) -> Any:
    """What no network puts out: of floats a NaN with bits of its own, as R has one for what is not
    available; of integers the last one, which is no class and no index."""
    if dtype.kind == "f":
        quiet = {2: 0x7E00, 4: 0x7FC0_0000, 8: 0x7FF8_0000_0000_0000}[dtype.itemsize]
        return np.array(quiet | 0x1A5, f"u{dtype.itemsize}").view(dtype)
    return np.array(np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max, dtype)
