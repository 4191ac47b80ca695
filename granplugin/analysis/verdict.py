"""The advice: found by measuring, said in a sentence, and as rules of a recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from granplugin.analysis import why
from granplugin.analysis.advice import (
    BAD_DB,
    Advice,
    Goal,
    Search,
    choose,
    held,
    judged,
    verdict_of,
)
from granplugin.analysis.answer import network_effect
from granplugin.analysis.effects import Effect, choice_name
from granplugin.analysis.evidence import Evidence
from granplugin.analysis.facts import Facts, reasons
from granplugin.analysis.losses import LayerLosses, SiteLosses
from granplugin.analysis.measuring import effects_task, measure_effects
from granplugin.analysis.outputs import OutputEffects
from granplugin.analysis.subject import Clock, Subject
from granplugin.analysis.suggestion import suggest
from granplugin.analysis.tried import FLOATING, Choice, Pair
from granplugin.measures.power import samples_to_tell
from granplugin.progress import stage
from granplugin.quant.layers import Layer
from granplugin.report.schema import analysis as model


def find_advice(
    subject: Subject, evidence: Evidence, tolerance: float, clock: Clock
) -> Advice | None:
    """What to change, worst layers first; None where the recipe quantizes no layer's product."""
    outputs, fixed = evidence.outputs, evidence.ranges.fixed
    start, network = outputs.start, outputs.network
    if not outputs.quantizes:
        return None
    verdict = verdict_of(outputs.whole(start), tolerance)
    if verdict != "above":
        return Advice(verdict, {})
    chosen_by, promised_on = subject.halves()
    with stage("measuring what to suggest") as running:

        def measure(choices: Sequence[Choice], numbers: np.ndarray = chosen_by) -> list[Effect]:
            task = effects_task(subject, network, choices, stage="suggestions", numbers=numbers)
            found = measure_effects(task, clock)
            running.done(len(choices))
            return [found[choice_name(network, choice)] for choice in choices]

        at_start, at_finest = measure([start, outputs.finest])
        search = Search(
            Goal(tolerance, at_finest.loss),
            worst=[each for each in evidence.layers if each.name in outputs.top],
            start=start,
            allowed={each.name: evidence.promised.allowed(each, fixed) for each in evidence.layers},
            sites={
                each.tried.own.site: _site_options(
                    each, fixed, evidence.promised.weights.get(each.tried.own.site, frozenset())
                )
                for each in evidence.sites
            },
            kept=[
                each.name
                for each in evidence.layers
                if any(row.site in fixed for row in each.tried.asked.start)
            ],
            measure=measure,
        )
        overrides = choose(search, at_start)
        if not overrides:
            return Advice(verdict, {})
        before, final = measure([start, {**start, **overrides}], promised_on)
    return held(overrides, before, final, tolerance)


def _site_options(each: SiteLosses, fixed: frozenset[str], had: frozenset[int]) -> list[Pair]:
    """Other calibrators with the same blocks, or settings `had` by all engines, the best first; then
    float."""
    own = each.tried.own
    better = [
        index
        for index, row in enumerate(each.tried.rows)
        if index and (row.block == own.block or index in had) and each.losses[index] is not None
        if each.db(index) > each.db(0) and own.site not in fixed
    ]
    return [*((None, n) for n in sorted(better, key=lambda n: -each.db(n))[:2]), FLOATING]


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
        reasons(advice.overrides, facts, evidence, subject.loaded.recipe.analyze.tolerance),
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
    outputs, tolerance = evidence.outputs, subject.loaded.recipe.analyze.tolerance
    at_start = outputs.whole(outputs.start)
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
    if not advice.overrides and not outputs.top:
        return f"The recipe loses {lost}; with analyze.top at 0 nothing else was measured."
    tried, layers = len(outputs.top), len(outputs.start)
    further = first or (_TRY_MORE if tried < layers else "") + _TRAIN
    if advice.final is None:
        return (
            f"The recipe loses {lost}, and no setting that was tried on its {tried} worst layers"
            f"{f' of {layers}' if tried < layers else ''}, nor leaving them float, wins any of it "
            f"back.{further}"
        )
    many = f"{len(advice.overrides)} layer{'s' if len(advice.overrides) > 1 else ''}"
    floats = sum(pair == FLOATING for pair in advice.overrides.values())
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
        f"{further if first or advice.promise == 'above' else ''}"
    )


_TRY_MORE = " A larger analyze.top tries more of its layers."
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
