"""What engines promise for every setting that was tried, what it costs on those that are built
for it, and which a suggestion may rely on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from granplugin import backends
from granplugin.analysis.costs import (
    Cost,
    Setting,
    named_engines,
    promises,
    setting_costs,
    whole_plans,
)
from granplugin.analysis.losses import LayerLosses
from granplugin.analysis.questions import Questions
from granplugin.analysis.tried import START, Pair, RoundedNetwork, Tried
from granplugin.calibration.statistics import Statistics
from granplugin.capabilities import Promise
from granplugin.engines import ENGINES
from granplugin.planning.rows import Plan
from granplugin.runs.calibrated import calibrate
from granplugin.runs.session import Session

ALLOWED = ("native", "lowered")
"""Promises that a suggestion may rely on."""


@dataclass(frozen=True)
class Promised:
    """`layers` has for each setting of a layer, in the order of `pairs_of`, engine -> the promises
    of its weight and its input; `sites` has engine -> site -> promise of the recipe as it is;
    `weights`, of the sites that are weights of calls, which of their settings every engine has."""

    layers: Mapping[str, list[dict[str, list[Promise | None]]]]
    sites: Mapping[str, Mapping[str, Promise]]
    weights: Mapping[str, frozenset[int]] = field(default_factory=dict)

    def had(self, each: LayerLosses) -> dict[str, set[int]]:
        """Which settings every engine has, natively or rewritten; and the recipe's own."""
        found = {"weight": {START}, "input": {START}}
        told = self.layers.get(each.name, [])
        for (i, j), engines in zip(pairs_of(each.tried), told, strict=False):
            kinds = {p.kind for of in engines.values() for p in of if p is not None}
            if kinds <= set(ALLOWED):
                if j == START:
                    found["weight"].add(i)
                if i == START:
                    found["input"].add(j)
        return {
            "weight": found["weight"] & each.weights.keys(),
            "input": found["input"] & each.inputs.keys(),
        }

    def allowed(self, each: LayerLosses, fixed: frozenset[str]) -> dict[str, set[int]]:
        """The same; of a site whose range the recipe says, its own alone."""
        roles = {row.operand for row in each.tried.asked.start if row.site in fixed}
        return {
            role: had & {START} if role in roles else had for role, had in self.had(each).items()
        }

    def lowered(self, tried: Tried, pair: Pair) -> bool:
        """Whether an engine has this setting only rewritten."""
        pairs, (weight, given) = pairs_of(tried), pair
        ones = [] if weight is None else [(0, (weight, START))]
        ones += [] if given is None else [(1, (START, given))]
        return any(
            (promise := of[role]) is not None and promise.kind == "lowered"
            for role, one in ones
            for of in self.layers[tried.name][pairs.index(one)].values()
        )


def pairs_of(tried: Tried) -> list[tuple[int, int]]:
    """All settings of a layer: each of the weight, then each of the input."""
    asked = tried.asked
    return [(i, START) for i in range(len(asked.weights))] + [
        (START, j) for j in range(len(asked.inputs))
    ]


def settings_of(network: RoundedNetwork, plan: Plan) -> dict[str, list[Setting]]:
    """Layer -> its settings, as rows: each of the weight beside the `plan`'s own of the input, then
    the other way round."""
    own = {row.site: row for row in plan.rows}
    found: dict[str, list[Setting]] = {}
    for name, each in network.tried.items():
        weights, inputs = each.asked.weights, each.asked.inputs
        if weights and inputs:
            found[name] = [
                *((row, own[inputs[START].site]) for row in weights),
                *((own[weights[START].site], row) for row in inputs),
            ]
    return found


def find_promises(session: Session, questions: Questions, network: RoundedNetwork) -> Promised:
    """For every setting, in as few plans of the whole network as have them all."""
    settings = settings_of(network, questions.plan)
    plans = whole_plans(questions.plan, session.layers, settings)
    named = {str(j): plan for j, plan in enumerate(plans)} | {"own": questions.plan}
    told = promises(session, named)
    layers = {
        name: [
            {engine: [of.get(row.site) for row in pair] for engine, of in told[str(j)].items()}
            for j, pair in enumerate(each)
        ]
        for name, each in settings.items()
    }
    return Promised(layers, told["own"], _weights(session, questions))


def _weights(session: Session, questions: Questions) -> dict[str, frozenset[int]]:
    """Of each weight that is a site of its own, which of its settings every engine has, natively or
    rewritten, beside the plan's own of the layer's other operands."""
    rows = {site: of for site, of in questions.sites.items() if of[START].at.constant}
    plans = {
        str(at): Plan(
            tuple(
                replace(of[min(at, len(of) - 1)], bn=row.bn)
                if (of := rows.get(row.site)) is not None
                else row
                for row in questions.plan.rows
            )
        )
        for at in range(max(map(len, rows.values()), default=0))
    }
    told = promises(session, plans)
    return {
        site: frozenset(
            at
            for at in range(len(of))
            if all(
                promise is None or promise.kind in ALLOWED
                for engine in told[str(at)].values()
                for row in questions.plan.rows
                if row.layer == of[START].layer
                for promise in [engine.get(row.site)]
            )
        )
        for site, of in rows.items()
    }


def find_costs(
    session: Session,
    questions: Questions,
    network: RoundedNetwork,
    statistics: Statistics,
    measured: bool,
) -> dict[str, list[dict[str, Cost]]]:
    """Layer -> for each of its settings, engine -> cost; without `measured` nothing is built."""
    engines = named_engines(session.recipe)
    builds = measured and any(
        ENGINES[engine].tells_plan and backends.backend_of(engine).unavailable() is None
        for engine in engines
    )
    # Exporting takes longer than all the rest where nothing is built of the file.
    float_onnx = calibrate(session, []).floats if builds else Path()
    settings, built = settings_of(network, questions.plan), engines if builds else []
    return setting_costs(session, questions.plan, settings, float_onnx, statistics, built)
