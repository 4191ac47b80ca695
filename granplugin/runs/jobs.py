"""The variants of a run, each with its plan."""

from __future__ import annotations

from collections.abc import Sequence

from granplugin.capabilities.legality import decide, engines_of, targets_of
from granplugin.errors import RecipeError
from granplugin.planning.plan import make_plan, preset_plan
from granplugin.planning.rows import Plan, as_float
from granplugin.quant.layers import Layer
from granplugin.recipe.algorithms import Algorithm
from granplugin.recipe.load import RECIPE, load_variants
from granplugin.recipe.loaded import Loaded
from granplugin.recipe.presets import DEFAULT
from granplugin.results.values import FP32, Job


def plan_jobs(
    recipes: Sequence[Loaded], layers: Sequence[Layer], engines: Sequence[str] | None = None
) -> list[Job]:
    """Every variant of the run with its plan: baselines, then each recipe and its variants;
    planned for `engines`, or for the recipe's own.

    Raises RecipeError where a rule cannot be honoured: by the model, or by an engine.
    """
    first = recipes[0]
    jobs = [Job(FP32, "baseline", first, Plan(()), FP32)]
    moves: list[tuple[str, Algorithm]] | None = None
    for name in dict.fromkeys(first.recipe.baselines):
        if name == "fp16":
            jobs.append(Job(name, "baseline", first, _floating(layers, first), name))
        elif name != FP32:
            plan, precision = preset_plan(name, layers, first), first.recipe.precision
            wanted, targets = engines or engines_of(first.recipe), targets_of(first.recipe)
            written = decide(plan, layers, wanted, None, precision, targets)
            jobs.append(Job(name, "baseline", first, plan, precision, written))
    for loaded in recipes:
        for name, variant in load_variants(loaded).items():
            plan = make_plan(variant, layers)
            own_moves = [(each.layer, each.algorithm) for each in plan.moved]
            moves = own_moves if moves is None else moves
            if own_moves != moves:
                raise variant.error(
                    ("rules",),
                    f"{name}: all variants of a run are of one float network, and algorithms would "
                    f"change other layers of it than in {first.recipe.name}; apply it alone, and "
                    "compare the two runs",
                )
            wanted, recipe = engines or engines_of(variant.recipe), variant.recipe
            written = decide(
                plan, layers, wanted, recipe.on_unsupported, recipe.precision, targets_of(recipe)
            )
            own = name == RECIPE
            title = loaded.recipe.name if own else name
            if any(job.name == title for job in jobs):
                title = f"{loaded.recipe.name}-{name}"
            if any(job.name == title for job in jobs):
                raise RecipeError(f"{loaded.path}: two variants of this run are called {title!r}")
            kind = "recipe" if own else "variant"
            jobs.append(Job(title, kind, variant, plan, recipe.precision, written))
    return jobs


def _floating(layers: Sequence[Layer], loaded: Loaded) -> Plan:
    """Nothing quantized, batch norms folded: what TensorRT makes of the float network."""
    rows = preset_plan(DEFAULT, layers, loaded).rows
    return Plan(tuple(as_float(row) for row in rows))
