"""What each setting of a layer loses there, ready to be ranked, chosen from and told."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from granplugin.analysis.figures import FigureKey, Sqnr, sqnr
from granplugin.analysis.tried import START, Pair, Tried, TriedSite, channels_of
from granplugin.planning.rows import QuantizedRow
from granplugin.quant.formats import FORMATS

LocalFigures = Mapping[FigureKey, np.ndarray]


@dataclass(frozen=True, slots=True)
class Loss:
    """One setting of one site: of the layer's output, with this site alone rounded, and with the
    layer's other site as the recipe has it.

    `channels_lost` is the mean over output channels of min(1, noise / signal): in it a channel
    counts as much as any other, where in an SQNR the largest ones decide.
    """

    row: QuantizedRow
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

    def finest(self, start: Pair, allowed: Mapping[str, set[int]]) -> Pair:
        """The settings that lose least, of those that engines can have; what is float by `start`
        stays so."""
        weight, given = start
        return (
            None if weight is None else self.best("weight", allowed["weight"]),
            None if given is None else self.best("input", allowed["input"]),
        )

    def own(self, role: str) -> Loss | None:
        """That of the recipe's own setting; None where it leaves the weight or input float."""
        if role not in {row.operand for row in self.tried.asked.start}:
            return None
        return (self.weights if role == "weight" else self.inputs).get(START)

    def best(self, role: str, among: set[int] | None = None) -> int | None:
        """The setting of the weight or input that loses least; of equals, the one that stores the
        fewest scales."""
        losses = self.weights if role == "weight" else self.inputs
        found = [i for i in losses if among is None or i in among]
        if not found:
            return None

        # Differences below a tenth of a decibel are no reason to store more.
        def worse(i: int) -> tuple[Any, ...]:
            loss = losses[i]
            return -round(loss.channels_db, 1), -round(loss.db, 1), loss.row.scales, i

        return min(found, key=worse)


def channels_lost(figure: np.ndarray) -> float:
    """The mean over channels of min(1, noise / signal); channels without a signal are left out."""
    signal, error = channels_of(figure)
    alive = signal > 0
    share = np.minimum(1.0, error[alive] / signal[alive])
    return float(share.mean()) if alive.any() else 0.0


def layer_losses(tried: Tried, figures: LocalFigures, population: int) -> LayerLosses:
    """What a layer's figures say of its settings."""

    def measured(alone: FigureKey | None, both: FigureKey | None, row: QuantizedRow) -> Loss | None:
        if alone is None or alone not in figures:
            return None
        together = None if both is None or both not in figures else sqnr(figures[both], population)
        return Loss(row, sqnr(figures[alone], population), together, channels_lost(figures[alone]))

    roles = {row.operand for row in tried.asked.start}
    weight = START if "weight" in roles else None
    given = START if "input" in roles else None
    weights = {
        i: measured(tried.figure(weight=i), tried.figure(i, given), row)
        for i, row in enumerate(tried.asked.weights)
    }
    inputs = {
        j: measured(tried.figure(given=j), tried.figure(weight, j), row)
        for j, row in enumerate(tried.asked.inputs)
    }
    either = tried.figure(weight, given), tried.figure(weight), tried.figure(given=given)
    own = next((figure for figure in either if figure in figures), None)
    return LayerLosses(
        tried,
        {i: loss for i, loss in weights.items() if loss is not None},
        {j: loss for j, loss in inputs.items() if loss is not None},
        0.0 if own is None else channels_lost(figures[own]),
    )


@dataclass(frozen=True)
class SiteLosses:
    """The losses of the settings of a site that is no factor of a layer's product: of its tensor.
    A setting without a range has None."""

    tried: TriedSite
    losses: tuple[Loss | None, ...]

    def sqnr(self, index: int) -> Sqnr | None:
        loss = self.losses[index]
        return None if loss is None else loss.alone

    def db(self, index: int) -> float:
        loss = self.losses[index]
        return math.inf if loss is None else loss.db

    def lost(self, index: int) -> float | None:
        loss = self.losses[index]
        return None if loss is None else loss.channels_lost


def site_losses(tried: TriedSite, figures: LocalFigures, population: int) -> SiteLosses:
    """What a site's figures say of its settings."""
    found: list[Loss | None] = []
    for index, row in enumerate(tried.rows):
        figure = tried.figure(index)
        if figure is None:
            found.append(None)
        else:
            alone = sqnr(figures[figure], population)
            found.append(Loss(row, alone, None, channels_lost(figures[figure])))
    return SiteLosses(tried, tuple(found))


@dataclass(frozen=True)
class Losses:
    """Of all layers, the most harmful first: what each loses there, or a site of something else
    that goes with it; and of all such sites, worst first."""

    layers: tuple[LayerLosses, ...]
    sites: tuple[SiteLosses, ...]


def all_losses(
    layers: Iterable[Tried], sites: Iterable[TriedSite], figures: LocalFigures, population: int
) -> Losses:
    """What local errors say; `population` counts the samples that they are drawn of."""
    of_sites = sorted(
        (site_losses(each, figures, population) for each in sites),
        key=lambda each: (each.db(0), each.tried.own.site),
    )
    every = [layer_losses(each, figures, population) for each in layers]
    harm = {each.name: each.both for each in every}
    for each in of_sites:
        layer = each.tried.own.layer
        if layer in harm:
            harm[layer] = max(harm[layer], each.lost(0) or 0.0)
    ranked = sorted(every, key=lambda each: -harm[each.name])
    return Losses(tuple(ranked), tuple(of_sites))


def weight_sqnr(tried: Tried, index: int) -> Sqnr | None:
    """Of the weight itself: folded where the setting folds it."""
    rounded, row = tried.weights[index], tried.asked.weights[index]
    if rounded is None:
        return None
    whole = tried.whole(row).astype(np.float64)
    noise, signal = float(np.square(whole - rounded).sum()), float(np.square(whole).sum())
    if signal == 0:
        return Sqnr(None, None, None, 0, 0)
    return Sqnr(math.inf if noise == 0 else 10 * math.log10(signal / noise), None, None, 0, 0)


def weight_shares(tried: Tried, index: int, amax: np.ndarray) -> tuple[float, float]:
    """Percent of the weight's values beyond the range, and of its nonzero ones rounded to 0."""
    from granplugin.quant.granularity import expand

    row = tried.asked.weights[index]
    whole = np.abs(tried.whole(row))
    clipped = float((whole > expand(amax, row.block)).mean())
    nonzero = whole > 0
    rounded = tried.weights[index]
    assert rounded is not None, f"{row.site} has no range"
    gone = float((rounded[nonzero] == 0).mean()) if nonzero.any() else 0.0
    return 100 * clipped, 100 * gone


def input_shares(
    row: QuantizedRow, amax: np.ndarray, counts: np.ndarray
) -> tuple[float, float] | None:
    """The same of an input with one scale, from its histogram; a bin's width is 0.4 % of its
    value. None for other granularities."""
    from granplugin.quant.calibrators import EDGES

    if amax.size != 1:
        return None
    largest = float(amax.max())
    total, nonzero = counts.sum(), counts[1:].sum()
    # What rounds to 0 is below half of the smallest step.
    fmt = FORMATS[row.format]
    step = largest / fmt.largest * fmt.step
    clipped = counts[np.searchsorted(EDGES, largest * 1.004) :].sum() / max(total, 1)
    below = counts[1 : max(int(np.searchsorted(EDGES, step / 2)), 1)].sum() / max(nonzero, 1)
    return 100 * float(clipped), 100 * float(below)
