"""What can be said of a model before anything is calibrated: layers, weights, defaults."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from granplugin.errors import DataError, RecipeError
from granplugin.network.weight_facts import WeightFacts
from granplugin.planning.coverage import Coverage, coverage
from granplugin.planning.plan import make_plan, plan_before_rules
from granplugin.planning.rows import Plan, Row
from granplugin.quant.layers import Layer
from granplugin.quant.multiplications import macs
from granplugin.recipe.loaded import Loaded
from granplugin.report.build.verbs import inspect_output
from granplugin.report.result import Result
from granplugin.report.schema.verbs import InspectOutput
from granplugin.runs.session import LAYERS, Session
from granplugin.sources.protocol import LayerFacts, Unsited
from granplugin.store.run_folder import default_folder, look_at


@dataclass(frozen=True, slots=True)
class Inspected:
    """One layer. `parameters` are the module's own, bias included; `macs` the multiply-accumulates
    of its product for one sample, all calls together, None where shapes vary or are not known.

    `weight` has the facts of layers with a weight. `defaults` are the rows that the recipe's
    defaults alone give its sites, `rules` those that its rules make something else of.
    """

    layer: Layer
    parameters: int
    macs: int | None
    weight: WeightFacts | None
    defaults: tuple[Row, ...]
    rules: tuple[Row, ...]


@dataclass(frozen=True, slots=True, repr=False)
class Inspection(Result):
    """`layers` in the order they run. `parameters` counts the model's, each once.

    `missing` says why no forward pass could be run: then `layers` are what the modules alone say,
    in the order of their registration, and no rule is resolved. `refused` says why the recipe's
    rules do not fit the model.
    """

    recipe: Path
    defaults: str
    parameters: int
    layers: tuple[Inspected, ...]
    others: tuple[Unsited, ...]
    missing: str | None
    refused: str | None
    coverage: Coverage | None

    def output(self) -> InspectOutput:
        """Every layer."""
        return inspect_output(self)


def inspect(loaded: Loaded, out: Path | None = None) -> Inspection:
    """Look at a recipe's model; of its data one batch is read, for shapes and what reads what. What
    was found is kept in the run folder `out`, by default runs/<name>, which is not locked: another
    run may go on in it.

    Raises ModelError where the model cannot run on these.
    """
    found: Inspection | None = None
    try:
        folder = out or default_folder(loaded.recipe.name)
        with look_at(folder, "inspect_log.txt", LAYERS) as run:
            found = _look(Session(loaded, run))
            if found.refused:
                raise RecipeError(found.refused)  # so that no folder is left
    except RecipeError:
        if found is None:
            raise
    return found


def _look(session: Session) -> Inspection:
    missing = None
    try:
        if session.network.alone() is None:
            session.example
    except DataError as err:
        missing = str(err)
    layers = session.network.untraced() if missing else session.layers
    example = None if missing or session.network.alone() is not None else session.example
    facts, loaded = session.network.facts(layers, example), session.loaded
    said = loaded.recipe.base or loaded.recipe.defaults
    defaults, _ = _rows(lambda: plan_before_rules(loaded, layers))
    # A rule may ask for what only a forward pass shows.
    rules, refused = ({}, None) if missing else _rows(lambda: make_plan(loaded, layers))
    return Inspection(
        recipe=loaded.path,
        defaults=said if isinstance(said, str) else "defaults",
        parameters=facts.parameters,
        layers=tuple(
            _inspected(
                layer, facts.layers[layer.name], defaults[layer.name], rules.get(layer.name, ())
            )
            for layer in layers
        ),
        others=facts.others,
        missing=missing,
        refused=refused,
        coverage=None
        if missing or refused
        else coverage(session.products, layers, Plan(tuple(chain.from_iterable(rules.values())))),
    )


def _inspected(
    layer: Layer, facts: LayerFacts, defaults: Sequence[Row], rules: Sequence[Row]
) -> Inspected:
    given = {_decision(row) for row in defaults}
    return Inspected(
        layer=layer,
        parameters=facts.parameters,
        macs=macs(layer),
        weight=facts.weight,
        defaults=tuple(defaults),
        rules=tuple(row for row in rules if _decision(row) not in given),
    )


def _rows(make: Callable[[], Plan]) -> tuple[dict[str, list[Row]], str | None]:
    """The rows of each layer, or why there is no such plan."""
    found: dict[str, list[Row]] = defaultdict(list)
    try:
        for row in make().rows:
            found[row.layer].append(row)
    except RecipeError as err:
        return found, str(err)
    return found, None


def _decision(row: Row) -> tuple[Any, ...]:
    """What is decided, without who decided it."""
    if not row.quantized:
        return row.operand, row.bn
    return (
        row.operand, row.bn, row.format, row.granularity, row.block, row.calibrator, row.amax,
        row.share,
    )  # fmt: skip
