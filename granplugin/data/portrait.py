"""What samples look like: figures of each input that two sets of data can be held together by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from granplugin.quant.calibrators import EDGES, histogram

COLOURS = 3
"""Channels of an image whose order can be told."""


@dataclass(frozen=True, eq=False)
class Portrait:
    """One input over n samples. `peaks`, `means` and `deviations`, (n,) each, are of each sample's
    values, peaks of their absolute ones; `counts` (BINS,) of all absolute values; `colours`
    (n, 3) are each colour's mean, None for what is no colour image. `levels` and `swings`
    (n, channels) are each channel's mean and how far its values lie from the channel's median
    level, as a root mean square; None where what are channels is not known. `varies` is the share
    of the values' variance that is between samples, at the same place. `whole`: the input holds
    integers."""

    low: float
    high: float
    peaks: np.ndarray
    means: np.ndarray
    deviations: np.ndarray
    counts: np.ndarray
    colours: np.ndarray | None
    levels: np.ndarray | None
    swings: np.ndarray | None
    varies: float
    whole: bool

    @property
    def samples(self) -> int:
        """How many were looked at."""
        return len(self.peaks)

    @property
    def deviation(self) -> float:
        """Of the median sample."""
        return float(np.median(self.deviations))

    def beyond(self, largest: float) -> float:
        """The share of absolute values over `largest`, to the 0.4 % of a bin's width."""
        over = self.counts[np.searchsorted(EDGES, largest * 1.004) :].sum()
        return float(over / self.counts.sum())


def portraits(samples: Mapping[str, np.ndarray]) -> dict[str, Portrait]:
    """Of each input of a batch, (n, ...) each."""
    return {name: _portrait(values) for name, values in samples.items() if values.size}


def _portrait(values: np.ndarray) -> Portrait:
    rows = values.reshape(len(values), -1).astype(np.float64)
    spread = rows.var()
    levels, swings = _channels(values)
    return Portrait(
        low=float(rows.min()),
        high=float(rows.max()),
        peaks=np.abs(rows).max(1),
        means=rows.mean(1),
        deviations=rows.std(1),
        counts=histogram(rows),
        colours=_colours(values),
        levels=levels,
        swings=swings,
        varies=float(rows.var(0).mean() / spread) if spread else 0.0,
        whole=values.dtype.kind != "f",
    )


def _channels(values: np.ndarray) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Of features (n, features), images, and sequences, whose steps outnumber their channels."""
    if values.ndim not in (2, 3, 4):
        return None, None
    axis = _colour_axis(values) or 1
    if values.ndim == 3 and values.shape[2] < values.shape[1]:
        axis = 2
    apart = np.moveaxis(values, axis, 1).reshape(len(values), values.shape[axis], -1)
    apart = apart.astype(np.float64)
    levels = apart.mean(2)
    middle = np.median(levels, axis=0)[:, None]
    return levels, np.sqrt(np.square(apart - middle).mean(2))


def _colour_axis(values: np.ndarray) -> int | None:
    """Images are (n, colours, height, width); of other tools (n, height, width, colours)."""
    if values.ndim != 4:
        return None
    return next((axis for axis in (1, 3) if values.shape[axis] == COLOURS), None)


def _colours(values: np.ndarray) -> np.ndarray | None:
    axis = _colour_axis(values)
    if axis is None:
        return None
    others = tuple(each for each in (1, 2, 3) if each != axis)
    return values.mean(others, dtype=np.float64)
