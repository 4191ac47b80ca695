"""Why a layer loses what it loses: one sentence in plain words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from granplugin.analysis.losses import LayerLosses, Loss
from granplugin.analysis.settings import label
from granplugin.analysis.tried import START
from granplugin.network.weight_facts import OUTLIER, WeightFacts
from granplugin.quant.calibrators import EDGES
from granplugin.quant.folding import spread, typical
from granplugin.words import digits

Where = Literal["weight", "input", "both", "neither"]

MATTERS = 1e-3
"""A share of the channels' signal (30 dB) below which a loss is not worth a word."""
MIXED = 0.5
"""Of a layer's larger loss, the share from which on the other role's is told beside it."""
GAIN_DB = 3.0
"""An alternative that wins back less is none."""


@dataclass(frozen=True)
class InputFacts:
    """The largest |x| of each channel of a layer's input, float32; percent of values beyond the
    recipe's range, where that is known; the largest over the median of the samples' peaks, and how
    many samples are over OUTLIER times that median."""

    ranges: np.ndarray
    clipped: float | None
    sample_spread: float | None
    outlier_samples: int

    @property
    def spread(self) -> float | None:
        return spread(self.ranges)

    @property
    def widest(self) -> int | None:
        return int(self.ranges.argmax()) if self.ranges.any() else None

    @property
    def outliers(self) -> tuple[int, ...]:
        order = np.argsort(-self.ranges, kind="stable")
        return tuple(order[self.ranges[order] > OUTLIER * typical(self.ranges)].tolist())

    @property
    def dead(self) -> int:
        return int((self.ranges == 0).sum())


def loss_in(losses: LayerLosses) -> Where:
    """Which of the recipe's roundings changes the layer's output more; both where each by itself
    takes much of what the other takes."""
    weight, given = losses.own("weight"), losses.own("input")
    lost = (weight.channels_lost if weight else 0.0, given.channels_lost if given else 0.0)
    if max(lost) < MATTERS:
        return "neither"
    if min(lost) >= max(MATTERS, MIXED * max(lost)):
        return "both"
    return "weight" if lost[0] >= lost[1] else "input"


def roles_of(where: Where) -> tuple[str, ...]:
    """The roles that lose there."""
    return {"both": ("weight", "input"), "neither": ()}.get(where, (where,))


def why(losses: LayerLosses, weight: WeightFacts, given: InputFacts | None) -> str:
    """One sentence; `given` describes the input."""
    where = loss_in(losses)
    if where == "weight":
        return _of_weight(losses, weight) + _remedy(losses.weights)
    if where == "both":
        of_weight = _of_weight(losses, weight) + _remedy(losses.weights)
        of_input = _of_input(losses, given) + _input_remedy(losses.inputs)
        return (
            "its weight and its input each lose by themselves: the weight's "
            f"{of_weight}; the input's {of_input}"
        )
    if where == "input":
        said = "the loss is in the input, where the weight's granularity cannot help: "
        return said + _of_input(losses, given) + _input_remedy(losses.inputs)
    if losses.own("weight") is None and losses.own("input") is None:
        if losses.tried.asked.start:
            return "nothing is rounded: its tensors hold only zeros"
        return "the recipe leaves it float"
    return (
        f"nothing to gain: rounding takes {digits(100 * losses.both)} % of its channels' signal at "
        "most"
    )


def reason(
    losses: LayerLosses,
    weight: WeightFacts,
    given: InputFacts | None,
    changed: Sequence[int | str | None],
) -> str:
    """Why an override gives the layer these settings, of its weight and its input: what its own
    lose, and what they leave; empty where the layer itself loses nothing. None: it is not changed;
    FLOAT: it is left float."""
    said = []
    roles: tuple[tuple[Mapping[int, Loss], int | str | None, Callable[[], str]], ...] = (
        (losses.weights, changed[0], lambda: _of_weight(losses, weight)),
        (losses.inputs, changed[1], lambda: "in its input, " + _of_input(losses, given)),
    )
    for found, index, own in roles:
        if index in (None, START):
            continue
        if isinstance(index, str):
            # Where the setting before loses nothing by itself, the other role tells why.
            if START in found and found[START].channels_lost >= MATTERS:
                said.append(f"{own()}; float keeps it")
            continue
        start, chosen = found[START], found[index]
        only_bn = chosen.row.block == start.row.block and chosen.row.bn != start.row.bn
        name = f"bn: {chosen.row.bn}" if only_bn else label(chosen.row)
        if chosen.db < start.db + 1 and chosen.channels_db < start.channels_db + 1:
            said.append(f"{own()}; {name} keeps more of the network's output, not of the layer's")
        elif _hidden(start, chosen):
            said.append(f"{own()}; {name} takes {_share(chosen)}")
        else:
            said.append(f"{own()}; {name} leaves {chosen.db:.0f} dB instead of {start.db:.0f}")
    return "; ".join(said)


def _of_weight(losses: LayerLosses, facts: WeightFacts) -> str:
    start = losses.weights[START]
    folded = start.row.bn == "fold"
    wide = facts.spread_after if folded else facts.spread_before
    widest = facts.widest_after if folded else facts.widest_before
    said = _loses(start, losses.weights)
    behind = " after BN folding" if folded and start.row.bn else ""
    several = start.row.scales < facts.ranges_after.size
    if wide is not None and wide >= 2 and several:
        said += f": channel {widest}'s filter is {_times(wide)} the median{behind}"
        if losses.tried.asked.layer.traits & {"depthwise"}:
            said += ", and a depthwise filter is all its channel has"
    else:
        said += f": {_steps(start)}"
    return said


def _remedy(among: Mapping[int, Loss]) -> str:
    start = among[START]
    better = _better(start, among)
    if not better:
        return "; no setting that was tried does better"
    most = max(loss.channels_db for loss in better)
    enough = min(most - 10, start.channels_db + 20)
    near = [loss for loss in better if loss.channels_db >= enough]
    best = min(near, key=lambda loss: (loss.row.scales, -loss.channels_db))
    if best.row.block == start.row.block and best.row.bn != start.row.bn:
        return f"; bn: {best.row.bn} would not"
    return f"; {label(best.row)} would not"


def _of_input(losses: LayerLosses, facts: InputFacts | None) -> str:
    start = losses.inputs[START]
    said = _loses(start, losses.inputs)
    wide = facts.spread if facts else None
    if facts and facts.clipped is not None and facts.clipped > 0.1:
        said += f": {digits(facts.clipped)} % of its values are clipped"
    elif facts and facts.outlier_samples and (peaks := facts.sample_spread or 0) > (wide or 0):
        several = "samples reach" if facts.outlier_samples > 1 else "sample reaches"
        said += (
            f": {facts.outlier_samples} {several} up to {_times(peaks)} the median sample's peak"
        )
    elif facts and wide is not None and wide >= 2:
        said += f": channel {facts.widest} reaches {_times(wide)} the median channel"
    else:
        said += f": {_steps(start)}"
    return said


def _input_remedy(among: Mapping[int, Loss]) -> str:
    start = among[START]
    better = _better(start, among)
    if not better:
        tried = {str(loss.row.granularity) for loss in among.values()}
        others = [kind for kind in ("per_channel", "per_token(dynamic)") if kind not in tried]
        rest = f"; {' and '.join(others)} were not tried" if others else ""
        return f"; no setting that was tried does better{rest}"
    best = max(better, key=lambda loss: loss.channels_db)
    if _hidden(start, best):
        return f"; {label(best.row)} takes {_share(best)}"
    return f"; {label(best.row)} wins back {best.db - start.db:.0f} dB"


def _better(start: Loss, among: Mapping[int, Loss]) -> list[Loss]:
    return [loss for loss in among.values() if loss.channels_db >= start.channels_db + GAIN_DB]


def _loses(start: Loss, among: Mapping[int, Loss]) -> str:
    better = _better(start, among)
    best = max(better, key=lambda loss: loss.channels_db, default=start)
    if not better or _hidden(start, best):
        return f"{label(start.row)} takes {_share(start)} of its channels' signal"
    return f"{label(start.row)} loses {best.db - start.db:.0f} dB"


def _hidden(start: Loss, best: Loss) -> bool:
    """Whether the loudest channels, which decide an SQNR, keep it from telling the difference."""
    return (
        math.isinf(best.db) or best.db - start.db < best.channels_db - start.channels_db - GAIN_DB
    )


def _share(loss: Loss) -> str:
    return f"{digits(100 * loss.channels_lost)} %"


def sample_facts(counts: np.ndarray, largest: float) -> tuple[float | None, int]:
    """Of the samples' peaks, from their histogram (BINS,): largest / median, and the number over
    OUTLIER times the median, to the 0.4 % of a bin's width."""
    middles = np.concatenate([[0.0], (EDGES[1:-1] + EDGES[2:]) / 2])
    below = np.cumsum(counts)
    median = float(middles[np.searchsorted(below, (below[-1] + 1) / 2)]) if below[-1] else 0.0
    if median == 0:
        return None, 0
    return largest / median, int(counts[middles > OUTLIER * median].sum())


def _steps(start: Loss) -> str:
    if start.row.scales == 1:
        return "most of its values are small beside the range of its one scale"
    return f"most of its values are small beside the ranges of its {start.row.scales} scales"


def _times(factor: float) -> str:
    return f"{factor:,.0f} times" if factor >= 10 else f"{factor:.1f} times"
