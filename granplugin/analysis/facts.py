"""What describes a layer's weight and input, and why it loses what it loses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from granplugin.analysis import losses as shares
from granplugin.analysis import why
from granplugin.analysis.advice import LOUD_DB, Advice, judged
from granplugin.analysis.evidence import Evidence
from granplugin.analysis.losses import LayerLosses, SiteLosses
from granplugin.analysis.ranges import input_needs
from granplugin.analysis.settings import label
from granplugin.analysis.tried import FLOATING, START
from granplugin.network.weight_facts import WeightFacts
from granplugin.recipe.settings import FLOAT
from granplugin.words import digits

MUCH = 0.25
"""A share of the noise of a network that loses too much, from which on a layer is not either."""
SOME = 0.05
"""A share of that noise from which on something can be gained at a layer."""


@dataclass(frozen=True)
class Facts:
    """Of one layer; `input_shares` are the percent of values clipped and rounded to 0 by each
    setting of its input, where that is known."""

    weight: WeightFacts
    given: why.InputFacts | None
    input_shares: tuple[tuple[float, float] | None, ...]


def facts_of(each: LayerLosses, evidence: Evidence) -> Facts:
    """What is known of a layer besides its losses."""
    ranges, statistics = evidence.ranges, evidence.statistics
    tried = each.tried
    weight = tried.held.facts
    needs = input_needs(tried.asked)
    if needs is None:
        return Facts(weight, None, ())
    _, values = statistics.of(needs.values)
    assert values is not None, "the need is of a histogram"
    found = []
    for row in tried.asked.inputs:
        amax = None if row.dynamic else ranges.amax.get(row)
        found.append(None if amax is None else shares.input_shares(row, amax, values.reshape(-1)))
    channels, _ = statistics.of(needs.channels)
    largest, counts = statistics.of(needs.peaks)
    assert counts is not None, "the need is of a histogram"
    own = found[START]
    given = why.InputFacts(
        channels.reshape(-1),
        own[0] if own and START in each.inputs else None,
        *why.sample_facts(counts.reshape(-1), float(largest.max())),
    )
    return Facts(weight, given, tuple(found))


def why_of(
    each: LayerLosses, facts: Facts, evidence: Evidence, tolerance: float, least: float = SOME
) -> str:
    """Why a layer loses what it loses; `least` is the share of the network's noise to speak of."""
    lost = {
        site.tried.own.operand: site.lost(0) or 0.0
        for site in evidence.sites
        if site.tried.own.layer == each.name
    }
    role = max(lost, key=lambda operand: lost[operand], default=None)
    where = why.loss_in(each)
    if role is not None and lost[role] >= why.MATTERS and where == "neither":
        return (
            f"its {role} loses, not its weight or input: rounding takes "
            f"{digits(100 * lost[role])} % of that tensor's channels' signal"
        )
    if where == "neither" and (harm := _harm(each, evidence, tolerance, least)):
        return (
            f"rounding takes only {digits(100 * each.both)} % of its channels' signal, but {harm}"
        )
    told = why.why(each, facts.weight, facts.given)
    own = {row.operand: row for row in each.tried.asked.start}
    for each_role in why.roles_of(where):
        if each_role in own and own[each_role].site in evidence.ranges.fixed:
            told += (
                f"; the recipe itself says that {each_role}'s range, so nothing else is suggested"
            )
    return told


def _harm(each: LayerLosses, evidence: Evidence, tolerance: float, least: float) -> str | None:
    """What a layer that hardly loses anything itself does to the network; None: as good as nothing,
    or that was not measured."""
    outputs = evidence.outputs
    if each.name not in outputs.top:
        return None
    start, alone = outputs.whole(outputs.start), outputs.alone(each.name)
    if alone.measured_by != "outputs" and judged(alone.loss, tolerance) == "above":
        of = "points" if alone.measured_by == "metric" else "% of decisions"
        return f"what is left decides: this layer alone loses {alone.loss.value:.1f} {of}"
    above = judged(start.loss, tolerance) == "above"
    share = 10 ** ((start.db - alone.db) / 10) if above else 0.0
    if alone.db < LOUD_DB or share >= MUCH:
        return (
            f"the layers behind make much of it: {alone.db:.0f} dB are left at the network's output"
        )
    if share > least:
        return f"{digits(100 * share)} % of the noise at the network's output comes of it"
    return None


def reasons(
    advice: Advice,
    facts: Mapping[str, Facts],
    evidence: Evidence,
    tolerance: float,
) -> dict[str, str]:
    """Why each override is made."""
    of_layers = {each.name: each for each in evidence.layers}
    of_sites = {each.tried.own.site: each for each in evidence.sites}
    found = {}
    for name, pair in advice.overrides.items():
        if name in of_sites:
            share = advice.shares.get(name) if pair == FLOATING else None
            found[name] = _of_site(of_sites[name], pair[1], share)
        else:
            own = evidence.outputs.start[name]
            changed = tuple(
                None if n == o else FLOAT if n is None else n
                for n, o in zip(pair, own, strict=True)
            )
            of = facts[name]
            told = why.reason(of_layers[name], of.weight, of.given, changed)
            found[name] = told or why_of(of_layers[name], of, evidence, tolerance, least=0)
    return found


def _of_site(site: SiteLosses, index: int | None, share: float | None) -> str:
    """`share` is of the noise at the network's output, of a place that is left float."""
    then = "float" if index is None else label(site.tried.rows[index])
    leaves = " keeps it" if index is None else f" leaves {site.db(index):.0f} dB"
    noise = ""
    if share is not None:
        noise = f", and {digits(100 * share)} % of the noise at the network's output comes of it"
    return (
        f"{label(site.tried.own)} leaves {site.db(0):.0f} dB of this tensor and takes "
        f"{digits(100 * (site.lost(0) or 0.0))} % of its channels' signal{noise}; {then}{leaves}"
    )
