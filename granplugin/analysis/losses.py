"""What each setting of a layer loses there, ready to be ranked, chosen from and told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from granplugin.analysis.figures import Sqnr, sqnr
from granplugin.analysis.local import START, Tried, channels_of, key
from granplugin.planning.rows import Row
from granplugin.quant.formats import FORMATS


@dataclass(frozen=True, slots=True)
class Loss:
    """One setting of one site: of the layer's output, with this site alone rounded, and with the
    layer's other site as the recipe has it.

    `channels_lost` is the mean over output channels of min(1, noise / signal): in it a channel
    counts as much as any other, where in an SQNR the largest ones decide.
    """

    row: Row
    alone: Sqnr
    both: Sqnr | None
    channels_lost: float

    @property
    def db(self) -> float:
        return math.inf if self.alone.db is None else self.alone.db

    @property
    def channels_db(self) -> float:
        """`channels_lost` in dB: it tells settings apart where one loud channel hides the rest."""
        return -10 * math.log10(self.channels_lost) if self.channels_lost else math.inf


@dataclass(frozen=True)
class LayerLosses:
    """The losses of a layer's settings; a setting without a range (only zeros seen) has none."""

    tried: Tried
    weights: Mapping[int, Loss]
    inputs: Mapping[int, Loss]
    both: float
    """channels_lost with both sites as the recipe has them."""

    @property
    def name(self) -> str:
        return self.tried.name

    def best(self, role: str, among: set[int] | None = None) -> int | None:
        """The setting of the weight or input that loses least; of equals, the one that stores the
        fewest scales."""
        losses = self.weights if role == "weight" else self.inputs
        found = [i for i in losses if among is None or i in among]
        if not found:
            return None

        # Differences below a tenth of a decibel are no reason to store more.
        def worse(i: int) -> tuple:
            loss = losses[i]
            return -round(loss.channels_db, 1), -round(loss.db, 1), loss.row.scales, i

        return min(found, key=worse)


def channels_lost(figure: np.ndarray) -> float:
    """The mean over channels of min(1, noise / signal); channels without a signal are left out."""
    signal, error = channels_of(figure)
    alive = signal > 0
    share = np.minimum(1.0, error[alive] / signal[alive])
    return float(share.mean()) if alive.any() else 0.0


def layer_losses(tried: Tried, figures: Mapping[str, np.ndarray], population: int) -> LayerLosses:
    """What a layer's figures say of its settings."""

    def lost(name: str) -> float:
        return channels_lost(figures[name])

    def of(role: str, rows: tuple[Row, ...], ranges: tuple) -> dict[int, Loss]:
        found = {}
        for i, row in enumerate(rows):
            name = f"{tried.name}|{role}|{key(row)}"
            if ranges[i] is None or name not in figures:
                continue
            pair = (i, START) if role == "weight" else (START, i)
            together = next((n for n, f in names.items() if f == ("both", *pair)), None)
            both = sqnr(figures[together], population) if together in figures else None
            found[i] = Loss(row, sqnr(figures[name], population), both, lost(name))
        return found

    names = tried.figures()
    together = next((n for n, f in names.items() if f == ("both", START, START)), None)
    either = [n for n, (_, i, j) in names.items() if (i, j) == (START, START)]
    own = together if together in figures else next((n for n in either if n in figures), None)
    return LayerLosses(
        tried,
        of("weight", tried.asked.weights, tried.weights),
        of("input", tried.asked.inputs, tried.inputs),
        0.0 if own is None else lost(own),
    )


def weight_sqnr(tried: Tried, index: int) -> Sqnr | None:
    """Of the weight itself: folded where the setting folds it."""
    rounded, row = tried.weights[index], tried.asked.weights[index]
    if rounded is None:
        return None
    whole = _whole(tried, row).astype(np.float64)
    noise, signal = float(np.square(whole - rounded).sum()), float(np.square(whole).sum())
    if signal == 0:
        return Sqnr(None, None, None, 0, 0)
    return Sqnr(math.inf if noise == 0 else 10 * math.log10(signal / noise), None, None, 0, 0)


def weight_shares(tried: Tried, index: int, amax: np.ndarray) -> tuple[float, float]:
    """Percent of the weight's values beyond the range, and of its nonzero ones rounded to 0."""
    from granplugin.quant.granularity import expand

    row = tried.asked.weights[index]
    whole = np.abs(_whole(tried, row))
    clipped = float((whole > expand(amax, row.block)).mean())
    nonzero = whole > 0
    gone = float((tried.weights[index][nonzero] == 0).mean()) if nonzero.any() else 0.0
    return 100 * clipped, 100 * gone


def input_shares(row: Row, amax: np.ndarray, counts: np.ndarray) -> tuple[float, float] | None:
    """The same of an input with one scale, from its histogram; a bin's width is 0.4 % of its
    value. None for other granularities."""
    from granplugin.quant.calibrators import EDGES

    if amax.size != 1:
        return None
    largest = float(amax.max())
    total, nonzero = counts.sum(), counts[1:].sum()
    # What rounds to 0 is below half a step; fp8's smallest steps are 2^-9 of its scale.
    fmt = FORMATS[row.format]
    step = largest / fmt.largest * (1 if fmt.integer else 2.0**-9)
    clipped = counts[np.searchsorted(EDGES, largest * 1.004) :].sum() / max(total, 1)
    below = counts[1 : max(int(np.searchsorted(EDGES, step / 2)), 1)].sum() / max(nonzero, 1)
    return 100 * float(clipped), 100 * float(below)


def _whole(tried: Tried, row: Row) -> np.ndarray:
    if row.bn == "fold":
        return tried.folded[0]
    return tried.module.weight.detach().float().cpu().numpy()
