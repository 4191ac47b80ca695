"""What the recipe's choices do to the network's output: measured for the worst layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from granplugin.analysis.advice import LOUD_DB, judged
from granplugin.analysis.effects import Effect, alone_name, choice_name, restored_name
from granplugin.analysis.losses import LayerLosses, Losses
from granplugin.analysis.measuring import effects_task, measure_effects
from granplugin.analysis.promised import Promised
from granplugin.analysis.subject import Clock, Subject
from granplugin.analysis.tried import FLOATING, Choice, Pair, RoundedNetwork
from granplugin.measures.labelled import one_class
from granplugin.measures.metrics import METRICS
from granplugin.recipe.analyze import Analyze

_CONTRADICTS = 90.0
"""Percent of equal decisions below which an unchanged metric is no evidence."""


@dataclass(frozen=True)
class OutputEffects:
    """`start` is the recipe's own choice, `finest` what loses least of what engines have, each
    setting of its own layer - whatever the recipe says - `top` the worst layers, which were measured
    alone and restored."""

    network: RoundedNetwork
    start: Choice
    finest: Choice
    top: tuple[str, ...]
    found: Mapping[str, Effect]

    @property
    def quantizes(self) -> bool:
        """Whether the recipe quantizes anything whose settings were tried."""
        return bool(self.start or self.network.sites)

    def whole(self, choice: Choice) -> Effect:
        return self.found[choice_name(self.network, choice)]

    def alone(self, layer: str) -> Effect:
        """Of one of the `top` layers with its own settings."""
        return self.found[alone_name(self.network, layer, self.start[layer])]

    def of_setting(self, layer: str, role: str, index: int) -> Effect | None:
        """Of one setting of a layer, beside its own of the other role; None where that was not
        measured."""
        if layer not in self.start:
            return None
        own = self.start[layer]
        pair = (index, own[1]) if role == "weight" else (own[0], index)
        return self.found.get(alone_name(self.network, layer, pair))

    def restored(self, layer: str) -> Effect:
        return self.found[restored_name(self.network, layer)]


def measure_outputs(
    subject: Subject,
    network: RoundedNetwork,
    losses: Losses,
    promised: Promised,
    wanted: Analyze,
    clock: Clock,
) -> OutputEffects:
    """The effects of the recipe as it is, of its finest settings, and of its `wanted.top` worst
    layers alone and restored."""
    start = network.start()
    top = [each.name for each in losses.layers if each.name in start][: wanted.top]
    best = {
        each.name: each.finest(start[each.name], promised.had(each))
        for each in losses.layers
        if each.name in start
    }
    floating = {each.tried.own.site: FLOATING for each in losses.sites}
    alone = [(name, pair) for name in top for pair in _measured(network, start[name], name, wanted)]
    candidates: list[Choice] = [best, {**best, **floating}]
    found = measure_effects(effects_task(subject, network, [*candidates, start], alone, top), clock)

    def harm(choice: Choice) -> tuple[float, float]:
        effect = found[choice_name(network, choice)]
        return effect.loss.value, -effect.db

    return OutputEffects(network, start, min(candidates, key=harm), tuple(top), found)


def contradiction(
    outputs: OutputEffects, metric: str | None, labels: np.ndarray | None = None
) -> str | None:
    """Why the labels cannot judge the recipe; None where they can, or there are none. FP32 is held
    to be at chance where its interval has what choosing blindly hits; and a metric that stays while
    decisions change does so by chance alone."""
    effect = outputs.whole(outputs.start if outputs.quantizes else outputs.finest)
    if metric is None or effect.metric is None or effect.fp32_metric is None:
        return None
    fp32, agreement = effect.fp32_metric, effect.agreement
    chance = 100 * min(METRICS[metric].guesses / effect.classes, 1.0)
    told = "so the loss is measured by decisions that differ from fp32's, not by the labels"
    if labels is not None and (one := one_class(labels)):
        return f"{one}; {told}"
    if fp32.low is not None and fp32.low <= chance:
        return (
            f"fp32 is at chance on these labels: {metric} is {fp32.value:.1f} % "
            f"({fp32.low:.1f} to {fp32.high:.1f}) where {effect.classes} classes give "
            f"{chance:.3g} % blindly; are they these samples' labels, and are inputs as the model "
            f"was trained on? {told}"
        )
    loss = effect.loss
    if agreement is None or agreement.high is None or loss.low is None or loss.high is None:
        return None
    if loss.low <= 0 <= loss.high and agreement.high < _CONTRADICTS:
        return (
            f"{metric} is the same as fp32's while only {agreement.value:.1f} % of decisions are: "
            f"the labels contradict what the networks do; {told}"
        )
    return None


def rank(
    layers: Sequence[LayerLosses], outputs: OutputEffects, tolerance: float
) -> tuple[LayerLosses, ...]:
    """Measured layers by the noise they make in the network's output, the others behind them by
    their own loss. A layer that surely loses more than the tolerance goes with the loud ones,
    however little noise that takes: what all scores share decides nothing, and has most energy."""

    def harm(each: LayerLosses) -> tuple[bool, bool, float]:
        if each.name not in outputs.top:
            return True, True, 0.0
        effect = outputs.alone(each.name)
        sure = judged(effect.loss, tolerance) == "above"
        return False, not sure and effect.db >= LOUD_DB, effect.db

    return tuple(sorted(layers, key=harm))


def _measured(network: RoundedNetwork, own: Pair, name: str, wanted: Analyze) -> Sequence[Pair]:
    """The settings of a layer whose effect on the network is measured: the first is its own."""
    tried, found = network.tried[name], [own]
    if wanted.effects == "all":
        found += [(i, own[1]) for i, weight in enumerate(tried.weights) if weight is not None]
        found += [(own[0], j) for j, given in enumerate(tried.inputs) if given is not None]
    return list(dict.fromkeys(found))
