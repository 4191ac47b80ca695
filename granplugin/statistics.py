"""What one pass over the data collects, and the amax of any row from it.

Statistics hold no values, only the largest |x| per block and, for rows that ask, histograms: their
size does not depend on the number of samples.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from granplugin.calibrators import BINS, LEAST_VALUES, Calibrator, amax_of, histogram
from granplugin.errors import DataError, ModelError, UserError
from granplugin.formats import FORMATS, Format
from granplugin.granularity import Shape, expand, grid
from granplugin.plan import Row

_SMALLEST_NORMAL = np.finfo(np.float32).smallest_normal


@dataclass(frozen=True, slots=True)
class Need:
    """What has to be seen at one site (an input or output, axis 0 of `shape` standing for any
    batch): the largest |x| of each block, and its histogram where asked."""

    site: str
    block: Shape
    histogram: bool
    shape: Shape

    @property
    def grid(self) -> Shape:
        return grid(self.shape, self.block)


def needs_of(rows: Iterable[Row]) -> frozenset[Need]:
    """What must be seen to calibrate these rows; weights and pinned ranges need no data."""
    needs = {
        _need(row)
        for row in rows
        if row.quantized and row.role != "weight" and row.amax is None
    }
    return frozenset(n for n in needs if n.histogram or replace(n, histogram=True) not in needs)


def _need(row: Row) -> Need:
    return Need(row.observed, row.block, row.calibrator.kind != "max", row.shape)


@dataclass(frozen=True, eq=False)
class Statistics:
    """`amax`: need -> grid, float32; `counts`: need -> grid + (BINS,), int64, for needs with a
    histogram; over `samples` samples."""

    amax: Mapping[Need, np.ndarray]
    counts: Mapping[Need, np.ndarray]
    samples: int

    def covers(self, needs: Iterable[Need]) -> bool:
        return all(self._key(need) is not None for need in needs)

    def of(self, need: Need) -> tuple[np.ndarray, np.ndarray | None]:
        """amax and counts; DataError where the site was not observed."""
        key = self._key(need)
        if key is None:
            raise DataError(
                f"{need.site}: not among the calibration statistics; calibrate again, or pin its "
                "range with amax"
            )
        return self.amax[key], self.counts.get(key)

    def merge(self, other: Statistics) -> Statistics:
        """The statistics of both data together; the same needs in both."""
        if self.amax.keys() != other.amax.keys():
            raise ValueError("merge takes the same needs, seen on different data")
        return Statistics(
            {need: np.maximum(amax, other.amax[need]) for need, amax in self.amax.items()},
            {need: counts + other.counts[need] for need, counts in self.counts.items()},
            self.samples + other.samples,
        )

    def join(self, other: Statistics) -> Statistics:
        """The statistics of both sets of needs; the same data in both."""
        if self.samples != other.samples:
            raise ValueError("join takes other needs, seen on the same data")
        return Statistics(
            {**self.amax, **other.amax}, {**self.counts, **other.counts}, self.samples
        )

    def save(self, path: Path, key: str) -> None:
        """Write a safetensors file, whole or not at all; `key` says what was calibrated on what."""
        needs = list(self.amax)
        tensors = {f"{i}.amax": self.amax[need] for i, need in enumerate(needs)}
        tensors |= {
            f"{i}.counts": self.counts[need] for i, need in enumerate(needs) if need.histogram
        }
        metadata = {
            "key": key,
            "samples": str(self.samples),
            "needs": json.dumps([asdict(need) for need in needs]),
        }
        _write_whole(path, save(tensors, metadata))

    @classmethod
    def load(cls, path: Path, key: str) -> Statistics:
        """Read a file written by `save`; UserError if it is none, or was made for another key."""
        try:
            with safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
                if "needs" not in metadata:
                    raise UserError(f"{path}: not a file of calibration statistics")
                if metadata["key"] != key:
                    raise UserError(
                        f"{path}: these statistics are of {metadata['key']}, not of {key}; "
                        "delete the file to calibrate again"
                    )
                needs = [
                    Need(n["site"], tuple(n["block"]), n["histogram"], tuple(n["shape"]))
                    for n in json.loads(metadata["needs"])
                ]
                return cls(
                    {need: file.get_tensor(f"{i}.amax") for i, need in enumerate(needs)},
                    {
                        need: file.get_tensor(f"{i}.counts")
                        for i, need in enumerate(needs)
                        if need.histogram
                    },
                    int(metadata["samples"]),
                )
        except (OSError, SafetensorError) as err:
            raise UserError(f"{path}: cannot read calibration statistics: {err}") from err

    def _key(self, need: Need) -> Need | None:
        wider = replace(need, histogram=True)
        return next((key for key in (need, wider) if key in self.amax), None)


def find_amax(
    row: Row, statistics: Statistics | None = None, weight: np.ndarray | None = None
) -> np.ndarray | None:
    """The amax grid of a quantized row, float32, every scale a positive normal number.

    A weight's comes from `weight` (its batch norm already folded where the row says so), another
    one's from `statistics`, a pinned range from the row. A block too small to have a scale, such
    as a channel of zeros, takes the largest amax: its zeros stay exact. None where all blocks are
    so: the site stays float. Raises ModelError for a weight that is not finite, DataError
    for statistics that do not serve the row.
    """
    fmt = FORMATS[row.format]
    if row.amax is not None:
        amax = np.full(row.grid, row.amax, np.float32)
    elif row.role == "weight":
        amax = _weight_amax(row, np.asarray(weight, np.float32), fmt)
    else:
        largest, counts = statistics.of(_need(row))
        amax = _calibrate(row, largest, counts, fmt)
    usable = amax >= fmt.largest * _SMALLEST_NORMAL
    return np.where(usable, amax, amax.max()) if usable.any() else None


def _weight_amax(row: Row, weight: np.ndarray, fmt: Format) -> np.ndarray:
    if weight.shape != row.shape:
        raise ModelError(
            f"{row.site}: its shape is {list(weight.shape)}, the plan says {list(row.shape)}"
        )
    if not np.isfinite(weight).all():
        raise ModelError(f"{row.site}: NaN or Inf among the weights")
    cells = _cells(np.abs(weight), row.block)
    largest = cells.max(-1)
    if row.calibrator.kind == "max":
        return largest
    counts = np.empty((*row.grid, 0)) if False else None
    return _calibrate(row, largest, counts, fmt)


def _calibrate(row: Row, largest: np.ndarray, counts: np.ndarray, fmt: Format) -> np.ndarray:
    raise NotImplementedError
