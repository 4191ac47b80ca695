"""The advice: found by measuring, said in a sentence, and as rules of a recipe."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from granplugin.analysis import why
from granplugin.analysis.advice import BAD_DB, Advice, held, judged, verdict_of
from granplugin.analysis.answer import network_effect
from granplugin.analysis.effects import Effect, choice_name, effect
from granplugin.analysis.evidence import Evidence
from granplugin.analysis.facts import Facts, reasons
from granplugin.analysis.heap import kept_heap
from granplugin.analysis.losses import LayerLosses
from granplugin.analysis.measuring import effects_task, measure_figures
from granplugin.analysis.outputs import OutputEffects
from granplugin.analysis.places import places_of
from granplugin.analysis.racing import Racing
from granplugin.analysis.search import Search, choose
from granplugin.analysis.subject import Clock, Subject
from granplugin.analysis.suggestion import suggest
from granplugin.analysis.tried import FLOATING, Choice
from granplugin.measures.power import samples_to_tell
from granplugin.progress import stage
from granplugin.quant.layers import Layer
from granplugin.report.schema import analysis as model

log = logging.getLogger(__name__)


def find_advice(
    subject: Subject, evidence: Evidence, tolerance: float, clock: Clock
) -> Advice | None:
    """What to change, worst layers first; None where the recipe quantizes no layer's product."""
    outputs = evidence.outputs
    start, network = outputs.start, outputs.network
    if not outputs.quantizes:
        return None
    verdict = verdict_of(outputs.whole(start), tolerance)
    wanted = subject.loaded.recipe.analyze
    if verdict != "above" or not wanted.top:
        return Advice(verdict, {})
    chosen_by, promised_on = subject.halves()
    most = wanted.choices
    with kept_heap(), stage("measuring choices, at most", most) as running:

        def figures(choices: Sequence[Choice], numbers: np.ndarray) -> list[np.ndarray]:
            task = effects_task(subject, network, choices, stage="suggestions", numbers=numbers)
            found = measure_figures(task, clock)
            return [found[choice_name(network, choice)] for choice in choices]

        by_labels = subject.distrust is None
        racing = Racing(figures, chosen_by, most, by_labels, running.done)
        places = places_of(evidence)
        search = Search(tolerance, wanted.top, places, start, list(network.sites), racing)
        chosen = choose(search)
        log.info("measured %d choices of settings, at most %d", racing.tried, most)
        shares, found = chosen.shares, chosen.found
        overrides = dict(sorted(found.overrides.items(), key=lambda of: -shares.get(of[0], 0.0)))
        if not overrides:
            return Advice(verdict, {}, tried=racing.tried)
        judge = figures([start, {**start, **overrides}], promised_on)
    before, final = (effect(sums, by_labels) for sums in judge)
    untold = judged(found.effect.loss, tolerance) != "above"
    advice = held(overrides, before, final, tolerance)
    return replace(advice, untold=untold, shares=shares, tried=racing.tried)


def say(
    advice: Advice | None,
    evidence: Evidence,
    facts: Mapping[str, Facts],
    subject: Subject,
    layers: Sequence[Layer],
) -> model.Advice:
    """The advice in words, and as rules of a recipe, each with its reason."""
    if advice is None:
        said = "The recipe quantizes nothing whose settings could be tried: there is nothing to advise."
        return model.Advice(
            verdict="within",
            enough_samples=None,
            said=said,
            overrides=[],
            suggested=None,
            promise=None,
            per_tensor=0,
            layers=0,
        )
    outputs, tried = evidence.outputs, evidence.outputs.network.tried
    lowered = {
        name: evidence.promised.lowered(tried[name], pair)
        for name, pair in advice.overrides.items()
        if name in tried
    }
    rules = suggest(
        advice.overrides,
        outputs.start,
        outputs.network,
        lowered,
        reasons(advice, facts, evidence, subject.loaded.recipe.analyze.tolerance),
        layers,
    )
    per_tensor, weights = _per_tensor(advice, outputs)
    at_start = outputs.whole(outputs.start)
    told = advice.verdict != "cannot tell"
    return model.Advice(
        verdict=advice.verdict,
        enough_samples=None if told or advice.broken else _enough(at_start, subject),
        said=_sentence(advice, evidence, subject),
        overrides=[
            model.Override(layers=list(r.layers), rule=r.rule, reason=r.reason) for r in rules
        ],
        suggested=None if advice.final is None else network_effect(advice.final),
        promise=advice.promise,
        per_tensor=per_tensor,
        layers=weights,
    )


def _per_tensor(advice: Advice, outputs: OutputEffects) -> tuple[int, int]:
    """Of the weights that stay quantized, those of calls too, how many have one scale; and how many
    there are."""
    network, overrides = outputs.network, advice.overrides
    final = {**outputs.start, **{n: p for n, p in overrides.items() if n in network.tried}}
    weights = [
        network.tried[name].asked.weights[weight]
        for name, (weight, _) in final.items()
        if weight is not None
    ]
    for name, site in network.sites.items():
        at = overrides.get(name, (None, 0))[1]
        if site.own.operand == "weight" and at is not None:
            weights.append(site.rows[at])
    return sum(row.scales == 1 for row in weights), len(weights)


def _sentence(advice: Advice, evidence: Evidence, subject: Subject) -> str:
    outputs, wanted = evidence.outputs, subject.loaded.recipe.analyze
    at_start, tolerance = outputs.whole(outputs.start), wanted.tolerance
    of = {
        "metric": f"points of {subject.metric}",
        "decisions": "% of its decisions",
        "outputs": "% of its outputs (relative error)",
    }[at_start.measured_by]
    if advice.broken:
        return (
            f"Cannot tell whether anything needs to change: {advice.broken}. Mend the data first."
        )
    samples = _counted(subject.data.samples)
    lost = f"{at_start.loss.value:.2f} {of}"
    if advice.verdict == "within":
        return (
            f"Nothing needs to change: on {samples} the recipe loses {lost}"
            f"{_interval(at_start)}, which is within the tolerance of {tolerance:g}."
        )
    if advice.verdict == "cannot tell":
        return (
            f"Cannot tell whether anything needs to change: on {samples} the recipe loses {lost}"
            f"{_interval(at_start)}, and {tolerance:g} is tolerated; {_open(at_start, subject)}."
        )
    lost += ", more than is accepted" if not advice.overrides else ""
    kept = advice.promise in ("within", "cannot tell")
    first = "" if kept else _mend_first(evidence.layers, evidence.ranges.fixed)
    if not advice.overrides and not wanted.top:
        return f"The recipe loses {lost}; with analyze.top at 0 nothing else was measured."
    layers = len(outputs.start)
    further = first or (_MORE_FLOAT if wanted.top < layers else "") + _TRAIN
    if advice.final is None:
        loudest = f"its {wanted.top} loudest layers" if wanted.top < layers else "layers"
        return (
            f"The recipe loses {lost}, and no setting that was tried, nor leaving {loudest} float, "
            f"wins any of it back.{further}"
        )
    sites = outputs.network.sites
    of_layers = {n: sites[n].own.layer if n in sites else n for n in advice.overrides}
    changed = len(set(of_layers.values()))
    many = f"{changed} layer{'s' if changed > 1 else ''}"
    floats = len({of_layers[n] for n, pair in advice.overrides.items() if pair == FLOATING})
    left = f" ({floats} of them left float)" if floats else ""
    final = advice.final
    reaches = {
        "within": "",
        "above": ", still more than is accepted",
        "cannot tell": f", where {tolerance:g} is tolerated; {_open(final, subject)}",
    }[advice.promise or "cannot tell"]
    per_tensor, weights = _per_tensor(advice, outputs)
    unseen = "" if subject.data.samples == 1 else " that it was not chosen by"
    return (
        f"The recipe loses {lost}; with {many} changed{left} it loses {final.loss.value:.2f}"
        f"{_interval(final)} on {_counted(final.sqnr.samples)}{unseen}{reaches}. "
        f"{per_tensor} of {weights} weights are per_tensor then."
        f"{_ENOUGH if advice.untold and advice.promise == 'above' else ''}"
        f"{further if first or advice.promise == 'above' else ''}"
        f"{_spent(advice, subject)}"
    )


def _spent(advice: Advice, subject: Subject) -> str:
    most = subject.loaded.recipe.analyze.choices
    if advice.tried < most:
        return ""
    return (
        f" After {advice.tried} choices of settings the search ended: a larger analyze.choices than "
        f"{most} goes on."
    )


_ENOUGH = (
    " The samples that it was chosen by cannot tell that from the tolerance, so no more was left "
    "float for it: more samples could."
)
_MORE_FLOAT = " With a larger analyze.top more of its layers may be left float."
_TRAIN = " What no setting wins back, fine-tuning may: granplugin.quantize (docs/qat.md)."


def _counted(samples: int) -> str:
    return "1 sample" if samples == 1 else f"{samples:,} samples"


def _interval(effect: Effect) -> str:
    loss = effect.loss
    return "" if loss.low is None else f" ({loss.low:.2f} to {loss.high:.2f})"


def _enough(effect: Effect, subject: Subject) -> int | None:
    """How many samples could tell whether this loss is within the tolerance; None: no number is
    known."""
    tolerance, deviation = subject.loaded.recipe.analyze.tolerance, effect.deviation
    if math.isnan(deviation) or judged(effect.loss, tolerance) == "within":
        return None
    # Were the loss the tolerance, so many decisions at least would be others.
    flips = 0.0 if effect.measured_by == "outputs" else math.sqrt(tolerance * (100 - tolerance))
    enough = samples_to_tell(effect.loss.value, tolerance, deviation, max(deviation, flips))
    if enough is None:
        return None
    # What is suggested is measured on a part of them.
    enough = math.ceil(enough * subject.data.samples / effect.sqnr.samples)
    return max(enough, subject.data.samples + 1)


def _open(effect: Effect, subject: Subject) -> str:
    """Why it cannot be told, and what could."""
    if judged(effect.loss, subject.loaded.recipe.analyze.tolerance) == "within":
        return (
            f"but the outputs keep {effect.db:.1f} dB only, and below {BAD_DB:g} dB a tenth of their "
            "energy is noise: that may be luck"
        )
    enough = _enough(effect, subject)
    if enough is None:
        return "these samples cannot tell more, nor how many could"
    return f"some {enough:,} samples like these could tell"


def _mend_first(layers: Sequence[LayerLosses], fixed: frozenset[str]) -> str:
    """Losses that no rule could win back, since the recipe itself says a range."""
    said = [
        f"{each.name}.{where}"
        for each in layers
        for where in why.roles_of(why.loss_in(each))
        for row in each.tried.asked.start
        if row.operand == where and row.site in fixed
    ]
    if not said:
        return ""
    return (
        f" The recipe itself says the range of {', '.join(said[:3])}"
        f"{' and others' if len(said) > 3 else ''} (amax, share or an imported file): "
        "mend that first."
    )
