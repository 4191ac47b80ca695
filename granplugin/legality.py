"""Before calibration: what each engine promises for each row, and what is made of the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from granplugin import backends, capabilities
from granplugin.backends import TARGETED
from granplugin.capabilities import Promise
from granplugin.errors import RecipeError
from granplugin.graph.lowering.methods import How
from granplugin.layers import WEIGHTED, Layer
from granplugin.plan import Plan, Row
from granplugin.presets import PRESETS
from granplugin.recipe.schema import Recipe


def engines_of(recipe: Recipe) -> list[str]:
    """The recipe's engines, with the optional ones that are installed."""
    optional = [name for name in recipe.optional_engines if not backends.load(name).unavailable()]
    return [*recipe.engines, *(name for name in optional if name not in recipe.engines)]


def promised(
    plan: Plan, layers: Sequence[Layer], engines: Sequence[str], precision: str = "fp32"
) -> dict[str, dict[str, Promise]]:
    """Engine -> site -> promise, for every quantized row and every engine that has a table;
    `precision` is that of the rest of the graph."""
    found = {}
    for name in engines:
        if name not in capabilities.backends():
            continue
        module = backends.load(name)
        table = capabilities.load(name, None if module.unavailable() else module.version())
        graph = precision if precision in module.PRECISIONS else "fp32"
        found[name] = capabilities.plan_promises(table, layers, plan.rows, graph)
    return found


def decide(
    plan: Plan, promises: Mapping[str, Mapping[str, Promise]], on_unsupported: str
) -> dict[str, dict[str, How]]:
    """Targeted engine -> site -> how it is written there, for rows that it does not have natively.

    lower: exactly, from what the engine has; simulate: in float arithmetic, with the rest of its
    layer. Raises RecipeError, at the deciding rule's line, for the first row of which
    `on_unsupported` makes neither.
    """
    ways: dict[str, dict[str, How]] = {}
    for engine in TARGETED:
        of_engine = promises.get(engine, {})
        for row in plan.quantized:
            promise = of_engine.get(row.site)
            if promise is None or promise.kind == "native" or promise.cause not in (None, row.role):
                continue
            if promise.kind == "simulated" and (row.type not in WEIGHTED or row.rule in PRESETS):
                # Nothing multiplies in pools and norms; and what a preset alone says of a layer is
                # what the engine makes of it: the audit tells.
                continue
            way = ways.setdefault(engine, {})
            if on_unsupported == "simulate":
                way |= {other.site: "simulate" for other in _together(plan, row)}
            elif on_unsupported == "lower" and promise.kind == "lowered":
                way[row.site] = "lower"
            else:
                raise RecipeError(_refusal(engine, row, promise))
    return ways


def kept(promises: Mapping[str, Promise], ways: Mapping[str, How]) -> dict[str, Promise]:
    """What is promised of a file in which these sites are lowered or simulated."""
    kinds = {"lower": "lowered", "dynamic": "lowered", "simulate": "simulated"}
    return {
        site: replace(promise, kind=kinds[ways[site]]) if site in ways else promise
        for site, promise in promises.items()
    }


def _together(plan: Plan, row: Row) -> list[Row]:
    """The rows that run in float with this one: its layer's weight and input, or it alone."""
    if row.role == "output":
        return [row]
    return [
        other for other in plan.quantized if other.layer == row.layer and other.role != "output"
    ]


def _refusal(engine: str, row: Row, promise: Promise) -> str:
    way_out = "on_unsupported: simulate, or format: float for the layer, runs it in float"
    if promise.kind == "lowered":
        way_out = "on_unsupported: lower writes it so"
    return (
        f"{row.where}: {engine} does not have {row.format} {row.granularity} for the {row.role} of "
        f"{row.layer!r}: {promise.reason}; {way_out}"
    )
