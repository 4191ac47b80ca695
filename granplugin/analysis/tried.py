"""What is tried at each layer and site, rounded: values, whatever runs the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from granplugin.analysis.figures import SUMS, FigureKey, Rounded, sums
from granplugin.analysis.questions import Questions
from granplugin.analysis.settings import Asked
from granplugin.network.weight_facts import WeightFacts
from granplugin.planning.rows import QuantizedRow
from granplugin.quant.formats import FORMATS, fake_quantize, scale_of
from granplugin.quant.layers import Layer
from granplugin.recipe.settings import FLOAT

START = 0
"""The first setting of each role: what the other role has in "both"."""
Pair = tuple[int | None, int | None]
"""Which weight and which input setting of a layer; None: float."""
Choice = Mapping[str, Pair]
"""Layer -> its settings; layers that are not named are float, with all that goes with them. Site of something else that the
recipe quantizes -> (None, which of its settings); those not named have the recipe's own."""
FLOATING: Pair = (None, None)


@dataclass(frozen=True, eq=False)
class Held:
    """A layer's `weight` as the network holds it, float32, its weight and bias with the batch norm
    behind it `folded` in, that batch norm's `factor` of each output channel, broadcast over the
    weight (None without one), and what describes the weight."""

    weight: np.ndarray
    folded: tuple[np.ndarray, np.ndarray | None]
    factor: np.ndarray | None
    facts: WeightFacts


@dataclass(frozen=True, eq=False)
class Ranged:
    """A setting of an activation that has a range: its `amax` (row.grid), None where scales are
    found at run time."""

    row: QuantizedRow
    amax: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Tried:
    """One layer with all that is tried on it. `weights` and `inputs` are None where a site has no
    range (it saw only zeros) and stays float."""

    asked: Asked
    held: Held
    weights: tuple[np.ndarray | None, ...]
    """Of each weight row, the rounded weight: folded or not, as the row says."""
    inputs: tuple[Ranged | None, ...]

    @property
    def name(self) -> str:
        return self.asked.layer.name

    def whole(self, row: QuantizedRow) -> np.ndarray:
        """The weight that a row rounds."""
        return self.held.folded[0] if row.bn == "fold" else self.held.weight

    def change(self, index: int) -> np.ndarray | None:
        """How far weight setting `index` moves the folded weight, float32."""
        rounded, row = self.weights[index], self.asked.weights[index]
        if rounded is None:
            return None
        if row.bn != "keep":
            return rounded - self.held.folded[0]
        assert self.held.factor is not None, f"{self.name} has no batch norm to keep"
        moved = rounded.astype(np.float64) - self.held.weight
        return (moved * self.held.factor).astype(np.float32)

    def figure(self, weight: int | None = None, given: int | None = None) -> FigureKey | None:
        """The figure of these settings of the weight, the input or both; None where one of them
        has no range, or neither is given."""
        if weight is None and given is None:
            return None
        settings = []
        for index, rows, rounded in (
            (weight, self.asked.weights, self.weights),
            (given, self.asked.inputs, self.inputs),
        ):
            if index is not None:
                if index >= len(rounded) or rounded[index] is None:
                    return None
                settings.append(key(rows[index]))
        what: Rounded = "both" if len(settings) == 2 else "weight" if given is None else "input"
        return FigureKey(self.name, what, tuple(settings))

    def figures(self) -> dict[FigureKey, Pair]:
        """Figure -> the settings of the weight and the input that it is of: each alone, and beside
        the other's first."""
        pairs = [
            *((i, j) for i in range(len(self.weights)) for j in (None, START)),
            *((i, j) for j in range(len(self.inputs)) for i in (None, START)),
        ]
        found = {self.figure(*pair): pair for pair in pairs}
        return {figure: pair for figure, pair in found.items() if figure is not None}


@dataclass(frozen=True, eq=False)
class TriedSite:
    """One site that is no factor of an analyzed layer's product, with its settings, the recipe's
    own first; None for one without a range. `axis` has the channels."""

    rows: tuple[QuantizedRow, ...]
    ranged: tuple[Ranged | None, ...]
    axis: int

    @property
    def own(self) -> QuantizedRow:
        return self.rows[0]

    def figure(self, index: int) -> FigureKey | None:
        """That of a setting; None where it has no range."""
        if self.ranged[index] is None:
            return None
        return FigureKey(self.own.site, "site", (key(self.rows[index]),))

    def figures(self) -> dict[FigureKey, Ranged]:
        """What is measured."""
        return {
            figure: ranged
            for n, ranged in enumerate(self.ranged)
            if ranged is not None and (figure := self.figure(n)) is not None
        }


@dataclass(frozen=True, eq=False)
class RoundedNetwork:
    """All that is tried: the layers, and what else the recipe quantizes, each with the layer it is
    of."""

    tried: Mapping[str, Tried]
    sites: Mapping[str, TriedSite]

    def start(self) -> dict[str, Pair]:
        """What the recipe quantizes."""
        choice: dict[str, Pair] = {}
        for name, each in self.tried.items():
            roles = {row.operand for row in each.asked.start}
            pair = (0 if "weight" in roles else None, 0 if "input" in roles else None)
            if pair != (None, None):
                choice[name] = pair
        return choice

    def chosen_sites(self, choice: Choice, others: bool = True) -> Iterator[Ranged]:
        """What a choice rounds of the sites; `others`: those too whose layers are not analyzed."""
        for name, site in self.sites.items():
            chosen = choice.get(name, (None, 0))[1]
            layer = site.own.layer
            goes = choice.get(layer, FLOATING) != FLOATING if layer in self.tried else others
            if goes and chosen is not None and (ranged := site.ranged[chosen]) is not None:
                yield ranged

    def names(self, choice: Choice) -> list[tuple[str, str, str]]:
        """A choice in JSON-able words that tell it from others."""
        found = []
        for layer, (weight, given) in sorted(choice.items()):
            if layer not in self.tried:
                rows = self.sites[layer].rows
                found.append((layer, "", FLOAT if given is None else key(rows[given])))
                continue
            asked = self.tried[layer].asked
            found.append(
                (
                    layer,
                    "" if weight is None else key(asked.weights[weight]),
                    "" if given is None else key(asked.inputs[given]),
                )
            )
        return found


def round_all(
    questions: Questions,
    held_of: Callable[[Layer], Held],
    ranges: Mapping[QuantizedRow, np.ndarray | None],
) -> RoundedNetwork:
    """Everything that is asked about, rounded by these ranges."""
    sites = []
    for rows in questions.sites.values():
        axis = rows[0].at.channel_axis
        axis = len(rows[0].shape) - 1 if axis is None else axis
        sites.append(TriedSite(rows, tuple(_ranged(row, ranges) for row in rows), axis))
    tried = try_settings(questions.layers, held_of, ranges)
    return RoundedNetwork(
        {each.name: each for each in tried}, {each.own.site: each for each in sites}
    )


def try_settings(
    asked: Sequence[Asked],
    held_of: Callable[[Layer], Held],
    ranges: Mapping[QuantizedRow, np.ndarray | None],
) -> tuple[Tried, ...]:
    """The layers with their rounded weights, and the ranges of their inputs."""
    found = []
    for each in asked:
        held, weights = held_of(each.layer), []
        for row in each.weights:
            amax, fmt = ranges[row], FORMATS[row.format]
            whole = held.folded[0] if row.bn == "fold" else held.weight
            weights.append(
                None if amax is None else fake_quantize(whole, scale_of(amax, fmt), row.block, fmt)
            )
        inputs = tuple(_ranged(row, ranges) for row in each.inputs)
        found.append(Tried(each, held, tuple(weights), inputs))
    return tuple(found)


def _ranged(row: QuantizedRow, ranges: Mapping[QuantizedRow, np.ndarray | None]) -> Ranged | None:
    if row.dynamic:
        return Ranged(row, None)
    amax = ranges.get(row)
    return None if amax is None else Ranged(row, amax)


def factor_of(
    gamma: np.ndarray | None,
    variance: np.ndarray,
    eps: float,
    weight: np.ndarray,
    axis: int,
    groups: int,
) -> np.ndarray:
    """A batch norm's factor of each output channel, float64, broadcast over the weight, whose
    output channels are on `axis` as in granplugin.quant.folding."""
    factor = 1 / np.sqrt(variance.astype(np.float64) + eps)
    if gamma is not None:
        factor = factor * gamma
    if axis == 1:
        # [in, out / groups, ...], one run of rows per group.
        rows = factor.reshape(groups, 1, -1).repeat(weight.shape[0] // groups, 1)
        factor = rows.reshape(weight.shape[0], -1)
    return factor.reshape(*factor.shape, *(1,) * (weight.ndim - factor.ndim))


def key(row: QuantizedRow) -> str:
    """A row's setting as a name that tells it from the site's others."""
    bn = row.bn if row.operand == "weight" else None
    parts = (row.format, row.granularity, row.calibrator, row.amax, bn)
    return "/".join(str(part) for part in parts if part is not None)


def figure(signal: np.ndarray, error: np.ndarray) -> np.ndarray:
    """SUMS sums, then the signal and the error of each channel, of (samples, channels) each."""
    return np.concatenate([sums(signal.sum(1), error.sum(1)), signal.sum(0), error.sum(0)])


def channels_of(figure: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The signal and the error of each output channel."""
    signal, error = np.split(figure[SUMS:], 2)
    return signal, error


def per_sample(rows: np.ndarray, samples: int) -> np.ndarray:
    """(rows, channels) -> (samples, channels). Axis 0 may hold several rows of each
    sample, such as windows; where it cannot be told whose they are, samples share them evenly."""
    if len(rows) % samples:
        return np.repeat(rows.sum(0, keepdims=True) / samples, samples, 0)
    return rows.reshape(samples, -1, rows.shape[1]).sum(1)
