"""What one pass over the data collects, and the amax of any row from it.

Statistics hold no values, only the largest |x| per block and, for rows that ask, histograms: their
size does not depend on the number of samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from granplugin.errors import DataError, ModelError, UserError
from granplugin.planning.rows import QuantizedRow, Row
from granplugin.quant.calibrators import amax_of, histogram, least_values, too_few
from granplugin.quant.formats import FORMATS, NO_RANGE, Format
from granplugin.quant.granularity import grid
from granplugin.quant.site import MULTIPLIED, Shape
from granplugin.reading import check_file, read_json, reading
from granplugin.store.whole_file import write_whole


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


def splits(need: Need, shape: Shape) -> list[int]:
    """A tensor's shape with each axis cut: the batch, then cells and values within a cell for each
    other axis. An axis with one cell may have any length: a layer may see images of several sizes.

    Raises DataError where the need's blocks do not fit.

    >>> splits(Need("a.input", (1, 4, 8), False, (1, 4, 16)), (2, 5, 16))
    [2, 1, 5, 2, 8]
    """
    sizes = zip(shape[1:], need.shape[1:], need.grid[1:], strict=False)
    if len(shape) != len(need.shape) or any(
        cells > 1 and length != planned for length, planned, cells in sizes
    ):
        raise DataError(
            f"{need.site}: saw a tensor of shape {list(shape)} during calibration, the "
            f"plan was made for {['batch', *need.shape[1:]]}; use per_tensor here"
        )
    cut = zip(shape[1:], need.grid[1:], strict=True)
    return [*shape[:1], *(n for length, cells in cut for n in (cells, length // cells))]


def needs_of(rows: Iterable[Row]) -> frozenset[Need]:
    """What must be seen to calibrate these rows; weights, pinned ranges and ranges found at run
    time need no data."""
    needs = {
        _need(row)
        for row in rows
        if row.quantized and not row.at.constant and row.amax is None and not row.dynamic
    }
    return frozenset(n for n in needs if n.histogram or replace(n, histogram=True) not in needs)


def _need(row: QuantizedRow) -> Need:
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

    def largest(self, row: QuantizedRow) -> float:
        """The largest |x| that was seen at a row's site, however it is calibrated."""
        return float(self.of(_need(row))[0].max())

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
        write_whole(path, save(tensors, metadata))

    @classmethod
    def load(cls, path: Path, key: str) -> Statistics:
        """Read a file written by `save`; UserError if it is none, or was made for another key."""
        with _reading(path), safe_open(path, "numpy") as file:
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

    @staticmethod
    def key_of(path: Path) -> str:
        """What a file written by `save` is of; UserError if it is none."""
        with _reading(path), safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
        if "needs" not in metadata:
            raise UserError(f"{path}: not a file of calibration statistics")
        return metadata["key"]

    def _key(self, need: Need) -> Need | None:
        wider = replace(need, histogram=True)
        return next((key for key in (need, wider) if key in self.amax), None)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    check_file(path, UserError)
    with reading(str(path), UserError, "cannot read calibration statistics: it is damaged"):
        yield


def find_amax(
    row: QuantizedRow, statistics: Statistics | None = None, weight: np.ndarray | None = None
) -> np.ndarray | None:
    """The amax grid of a quantized row, float32, all above NO_RANGE.

    A weight's comes from `weight` (its batch norm already folded where the row says so), another
    one's from `statistics`, a pinned range from the row. A block without a range, such as a channel
    of zeros, takes the largest amax: its zeros stay exact. None where all blocks are so: the site
    stays float, and its layer with it (`ranged`). What is found is fitted to the row's format.
    Raises ModelError for a weight that is not finite, DataError for statistics that do not serve
    the row.
    """
    fmt = FORMATS[row.format]
    if row.amax is not None:
        amax = np.full(row.grid, row.amax, np.float32)
    elif row.at.constant:
        cells = _cells(row, np.asarray(weight, np.float32))
        amax = _calibrate(
            row, fmt, _largest(row, cells), lambda cell: histogram(cells[_within(cell)])
        )
    else:
        assert statistics is not None, f"{row.site} is calibrated on data"
        largest, counts = statistics.of(_need(row))
        amax = _calibrate(row, fmt, largest, partial(_counted, row, counts))
    found = usable(amax)
    return None if found is None else fmt.fit(found)


def usable(amax: np.ndarray) -> np.ndarray | None:
    """An amax grid with the largest in place of those that are no range; None where all are so."""
    ranges = amax > NO_RANGE
    return np.where(ranges, amax, amax.max()) if ranges.any() else None


def ranged(rows: Iterable[Row], amax: Collection[str]) -> tuple[QuantizedRow, ...]:
    """The rows that can be quantized, where `amax` has the sites with a range.

    A layer that multiplies a tensor without one stays float as a whole: engines multiply in float
    unless both factors are quantized.
    """
    quantized = [row for row in rows if row.quantized]
    without = {row.site for row in quantized if not row.dynamic and row.site not in amax}
    dead = {row.layer for row in quantized if row.site in without and row.operand in MULTIPLIED}
    return tuple(row for row in quantized if row.site not in without and row.layer not in dead)


def share_amax(rows: Iterable[Row], amax: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Site -> amax, where rows with the same `share` have the largest of theirs, cell by cell.

    Rows that were coarsened for an engine share with those that have as many scales; a row
    without an amax has none.
    """
    groups: dict[tuple[Any, ...], list[QuantizedRow]] = {}
    for row in rows:
        if row.quantized and row.share is not None and row.site in amax:
            groups.setdefault((row.share, row.scales), []).append(row)
    shared = dict(amax)
    for group in groups.values():
        largest = np.max([amax[row.site].reshape(-1) for row in group], axis=0)
        shared |= {row.site: largest.reshape(row.grid) for row in group}
    return shared


def _calibrate(
    row: QuantizedRow, fmt: Format, largest: np.ndarray, counts_of: Callable[[Shape], np.ndarray]
) -> np.ndarray:
    if row.calibrator.kind == "max":
        return largest
    amax = np.zeros_like(largest)
    for cell in zip(*np.nonzero(largest), strict=True):
        counts = counts_of(cell)
        if (seen := int(counts.sum())) < least_values(row.calibrator):
            raise DataError(f"{row.site}: {too_few(row.calibrator, seen)}, or more samples")
        amax[cell] = amax_of(row.calibrator, counts, float(largest[cell]), fmt)
    return amax


def _counted(row: QuantizedRow, counts: np.ndarray | None, cell: Shape) -> np.ndarray:
    assert counts is not None, f"{row.site} needs a histogram"
    found: np.ndarray = counts[cell]
    return found


def _cells(row: QuantizedRow, weight: np.ndarray) -> np.ndarray:
    """A view of the weight as (cells, values of the block) of each axis in turn."""
    if weight.shape != row.shape:
        raise ModelError(
            f"{row.site}: its shape is {list(weight.shape)}, the plan says {list(row.shape)}"
        )
    return weight.reshape([n for pair in zip(row.grid, row.block, strict=True) for n in pair])


def _within(cell: Shape) -> tuple[int | slice, ...]:
    """The index of one cell's values."""
    return tuple(each for at in cell for each in (at, slice(None)))


def _largest(row: QuantizedRow, cells: np.ndarray) -> np.ndarray:
    """The largest |value| of each cell; without a copy, as a weight may be most of the memory."""
    values = tuple(range(1, cells.ndim, 2))
    with np.errstate(invalid="ignore"):
        ends = [np.abs(cells.max(values)), np.abs(cells.min(values))]
    largest = np.maximum(*ends)
    if not np.isfinite(largest).all():
        raise ModelError(f"{row.site}: NaN or Inf among the weights")
    return largest


def export_amax(path: Path, rows: Iterable[QuantizedRow], amax: Mapping[str, np.ndarray]) -> None:
    """Write the amax grids of these rows, site -> grid, as JSON that people can read and keep."""
    sites = {
        row.site: {
            "format": row.format,
            "shape": list(row.shape),
            "block": list(row.block),
            "amax": amax[row.site].tolist(),
        }
        for row in rows
        if row.site in amax
    }
    write_whole(path, json.dumps({"granplugin_amax": 1, "sites": sites}, indent=1).encode())


_AMAX = "a file of amax values as granplugin writes it"


def import_amax(path: Path, rows: Iterable[Row]) -> dict[str, np.ndarray]:
    """The amax grids of those rows that a file of `export_amax` has, site -> grid, float32.

    DataError if it is no such file, holds something that is no amax, or has other blocks than a
    row. A file may hold more sites than there are rows, and fewer.
    """
    with reading(str(path), DataError, f"not {_AMAX}"):
        sites = read_json(path, DataError, _AMAX)["sites"]
        with np.errstate(over="ignore"):
            found = {site: np.array(entry["amax"], np.float32) for site, entry in sites.items()}
        blocks = {site: (tuple(e["shape"]), tuple(e["block"])) for site, e in sites.items()}
    imported = {}
    for row in rows:
        if not row.quantized or row.dynamic or row.site not in found:
            continue
        shape, block = blocks[row.site]
        if (shape, block) != (row.shape, row.block):
            raise DataError(
                f"{path}: {row.site} has blocks {list(block)} of {list(shape)}, the plan says "
                f"{list(row.block)} of {list(row.shape)}; leave the site out of the file"
            )
        amax = found[row.site]
        if amax.shape != row.grid or not (np.isfinite(amax) & (amax > 0)).all():
            raise DataError(
                f"{path}: {row.site} needs {list(row.grid)} positive numbers, one per scale"
            )
        imported[row.site] = FORMATS[row.format].fit(amax)
    return imported
