"""The recipe's `build` section, as each engine takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from granplugin.backends.base import Backend, Options
from granplugin.backends.gpu import gpu
from granplugin.engines import ENGINES, taking
from granplugin.quant.site import Shape
from granplugin.recipe.build import Shapes
from granplugin.recipe.schema import Recipe
from granplugin.results.values import Built
from granplugin.runs.session import Session
from granplugin.suggest import did_you_mean


def options_of(
    recipe: Recipe,
    sizes: Mapping[str, tuple[Shape, Shape]],
    built: Built,
    module: Backend,
    again: bool = False,
    fixed: bool = False,
    elsewhere: bool = False,
) -> Options:
    """What the recipe's `build` says, as far as this engine takes it; `sizes` are the smallest and
    the largest of each of the network's inputs, without its batch (Session.input_sizes).

    For a second build, `again`, that is without the timings of the first; where sizes are to be
    `fixed`, for data.batch_size samples alone, of the sizes that it is tuned for; where it runs
    `elsewhere`, as if it could run here.
    """
    batch = recipe.data.batch_size
    own: dict[str, Any] = {}
    for key in module.facts.build:
        value = getattr(recipe.build, key)
        if key == "shapes":
            cannot = not elsewhere and module.can_run() is not None
            value = _shapes(recipe, sizes, module, fixed, cannot)
        elif key == "timing_cache":
            value = None if again or value is None else str(value)
        own[key] = tuple(value) if isinstance(value, list) else value
    return module.options(
        batch=batch,
        min_batch=batch if fixed else None,
        plan=built.file(module.name).key,
        **own,
    )


def _shapes(
    recipe: Recipe,
    sizes: Mapping[str, tuple[Shape, Shape]],
    module: Backend,
    fixed: bool,
    seen_fixed: bool,
) -> dict[str, tuple[Shape, Shape, Shape]]:
    """Input -> min, opt and max shapes. Those that `build.shapes` leaves out have the batch of those
    that it names, and every size of the data; where it names none, these are fixed too if
    `seen_fixed`: only where all sizes are does an engine's plan say how large tensors are. Empty
    where nothing is said and the engine need not be told: it takes any size, or nothing but the
    batch varies."""
    given, batch = recipe.build.shapes, recipe.data.batch_size
    if not given and (module.facts.any_size or not recipe.model.form.dynamic):
        return {}
    first = next(iter(given.values()), None)
    batches = (first.min[0], first.opt[0], first.max[0]) if first else (1, batch, batch)
    shapes: dict[str, tuple[Shape, Shape, Shape]] = {}
    for name, (low, high) in sizes.items():
        own = given.get(name)
        least, usual, most = ((n, *of) for n, of in zip(batches, (low, high, high), strict=True))
        each = (tuple(own.min), tuple(own.opt), tuple(own.max)) if own else (least, usual, most)
        only_one = fixed or (seen_fixed and not given)
        one = (batch, *each[1][1:])
        shapes[name] = (one, one, one) if only_one else each
    return shapes


def check_build(session: Session) -> None:
    """Refuse, before anything is computed, targets that cannot run the model, and shapes that its
    inputs or the batches to measure do not have."""
    error = session.loaded.error
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
    _check_sizes(session)
    given = session.recipe.build.shapes
    for name, shapes in given.items():
        if name not in session.example:
            known = did_you_mean(name, session.example)
            raise error(("build", "shapes", name), f"the model has no input {name!r}{known}")
        _check_shapes(session, name, shapes, next(iter(given.items())))


def _check_sizes(session: Session) -> None:
    """Refuse samples of several sizes where files are written for one: of an ONNX file that leaves
    axes open."""
    form, dynamic, told = session.recipe.model.form, [], []
    for name, (low, high) in session.input_sizes.items():
        named = {**session.network.open_axes.get(name, {}), **form.of(name)}
        several = [
            axis
            for axis, (least, most) in enumerate(zip(low, high, strict=True), 1)
            if least < most
        ]
        if not form.of(name).keys() >= {*several}:
            axes = ", ".join(f"{axis}: {named.get(axis, f'axis_{axis}')}" for axis in several)
            dynamic.append(f"{name}: {{{axes}}}")
            told += [
                f"{low[axis - 1]} to {high[axis - 1]} on axis {axis} of {name}" for axis in several
            ]
    if told:
        raise session.loaded.error(
            ("model",),
            f"the data have {' and '.join(told)}; to keep that open in the files that are written, "
            f"write dynamic: {{{', '.join(dynamic)}}} here",
        )


def _check_shapes(session: Session, name: str, shapes: Shapes, first: tuple[str, Shapes]) -> None:
    """Refuse shapes of an input that the network, the `first` input that is named, or the data do
    not have."""
    error, data = session.loaded.error, session.recipe.data
    at, open_axes = ("build", "shapes", name), session.recipe.model.form.of(name)
    own = (data.batch_size, *session.example[name].shape[1:])
    takes = ", ".join(open_axes.get(axis, str(size)) for axis, size in enumerate(own))
    for key in ("min", "opt", "max"):
        shape, batch = getattr(shapes, key), getattr(first[1], key)[0]
        fixed = [axis for axis in range(len(own)) if axis not in open_axes]
        if len(shape) != len(own) or any(shape[axis] != own[axis] for axis in fixed):
            vary = f"only its {' and '.join(open_axes.values())}" if open_axes else "nothing in it"
            raise error((*at, key), f"{name} is [{takes}], and {vary} can vary")
        if shape[0] != batch:
            raise error((*at, key), f"inputs share one batch, and that of {first[0]} is {batch}")
    last = session.evaluation.samples % data.batch_size or data.batch_size
    low, high = session.input_sizes[name]
    asked = [(0, data.batch_size, "data.batch_size"), (0, last, "the last batch")]
    for axis in range(1, len(own)):
        asked += [(axis, size[axis - 1], "one of the data's") for size in (low, high)]
    for axis, size, whose in asked:
        least, most = shapes.min[axis], shapes.max[axis]
        if not least <= size <= most:
            what = f"{open_axes.get(axis, '')} of" if axis else "batches of"
            raise error(
                (*at, "min" if size < least else "max"),
                f"{name} is built for {what} {least} to {most}, and {whose} is {size}",
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
    """The batch sizes that are timed: 1, where the file takes it and the engine is built for it,
    and data.batch_size."""
    if recipe.model.form.static_batch:
        return [recipe.data.batch_size]
    least = [shapes.min[0] for shapes in recipe.build.shapes.values() if engine in taking("shapes")]
    return sorted({max([1, *least]), recipe.data.batch_size})
