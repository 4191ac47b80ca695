"""The recipe's `build` section, as each engine takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from granplugin.backends.base import Backend, Options
from granplugin.backends.gpu import gpu
from granplugin.engines import ENGINES, taking
from granplugin.quant.site import Shape
from granplugin.recipe.schema import Recipe
from granplugin.results.values import Built
from granplugin.runs.session import Session
from granplugin.suggest import did_you_mean


def options_of(
    recipe: Recipe,
    inputs: Mapping[str, Shape],
    built: Built,
    module: Backend,
    again: bool = False,
    fixed: bool = False,
) -> Options:
    """What the recipe's `build` says, as far as this engine takes it; `inputs` are the shapes of
    the network's, whatever their batch.

    For a second build, `again`, that is without the timings of the first; where sizes are to be
    `fixed`, for data.batch_size samples alone.
    """
    batch = recipe.data.batch_size
    own: dict[str, Any] = {}
    for key in module.facts.build:
        value = getattr(recipe.build, key)
        if key == "shapes":
            value = {} if fixed else _shapes(recipe, inputs)
        elif key == "timing_cache":
            value = None if again or value is None else str(value)
        own[key] = tuple(value) if isinstance(value, list) else value
    return module.options(
        batch=batch,
        min_batch=batch if fixed else None,
        plan=built.file(module.name).key,
        **own,
    )


def _shapes(recipe: Recipe, inputs: Mapping[str, Shape]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Input -> min, opt and max shapes; an input that `build.shapes` leaves out has the batch of
    those that it names."""
    given = recipe.build.shapes
    if not given:
        return {}
    first = next(iter(given.values()))
    shapes = {}
    for name, shape in inputs.items():
        wanted = [getattr(given.get(name, first), key) for key in ("min", "opt", "max")]
        shapes[name] = tuple((each[0], *shape[1:]) for each in wanted)
    return shapes


def check_build(session: Session) -> None:
    """Refuse, before anything is computed, targets that cannot run the model, and shapes that its
    inputs or the batches to measure do not have."""
    error, data = session.loaded.error, session.recipe.data
    kinds = {layer.name: layer.kind for layer in session.layers if layer.kind is not None}
    linear = next((name for name, kind in kinds.items() if kind.operation == "linear"), None)
    for index, target in enumerate(session.recipe.build.targets if linear else ()):
        for name, facts in ENGINES.items():
            if target in facts.no_fp32_product:
                raise error(
                    ("build", "targets", index),
                    f"for {target} {name} has no matrix product in FP32, which {linear!r} and the "
                    f"fp32 baseline need; leave {target} out",
                )
    given = session.recipe.build.shapes
    for name, shapes in given.items():
        at = ("build", "shapes", name)
        if name not in session.example:
            known = did_you_mean(name, session.example)
            raise error(at, f"the model has no input {name!r}{known}")
        first, ours = next(iter(given.items()))
        own = tuple(session.example[name].shape[1:])
        for key in ("min", "opt", "max"):
            shape, batch = getattr(shapes, key), getattr(ours, key)[0]
            if tuple(shape[1:]) != own:
                takes = ", ".join(["batch", *map(str, own)])
                raise error((*at, key), f"{name} is [{takes}], and only its batch can vary")
            if shape[0] != batch:
                raise error((*at, key), f"inputs share one batch, and that of {first} is {batch}")
        last = session.evaluation.samples % data.batch_size or data.batch_size
        for batch, whose in [(data.batch_size, "data.batch_size"), (last, "the last batch")]:
            low, high = shapes.min[0], shapes.max[0]
            if not low <= batch <= high:
                key = "min" if batch < low else "max"
                raise error(
                    (*at, key),
                    f"{name} is built for batches of {low} to {high}, and {whose} is {batch}",
                )


def cannot_run(recipe: Recipe, module: Backend) -> str | None:
    """Why this engine, built as the recipe says, cannot run here, or None."""
    targets = recipe.build.targets if module.name in taking("targets") else []
    reason = module.can_run()
    here = gpu() if targets and reason is None else None
    if here and here.target not in targets:
        return f"it is built for {', '.join(targets)}, and the {here.name} here is {here.target}"
    return reason


def latency_batches(recipe: Recipe, engine: str) -> list[int]:
    """The batch sizes that are timed: 1, where the engine is built for it, and data.batch_size."""
    least = [shapes.min[0] for shapes in recipe.build.shapes.values() if engine in taking("shapes")]
    return sorted({max([1, *least]), recipe.data.batch_size})
