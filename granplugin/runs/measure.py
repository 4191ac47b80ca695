"""Variants on engines: their outputs on the evaluation data, and metrics."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from granplugin import backends
from granplugin.audits.audit import audit
from granplugin.audits.audit_file import examine
from granplugin.backends import calls
from granplugin.backends.base import Backend, BuildFailed, Engine, LayerPrecision, Options
from granplugin.capabilities.legality import Written
from granplugin.data.batches import Batches
from granplugin.errors import EngineError, LackError, ModelError, UserError
from granplugin.measures import metrics
from granplugin.measures.samples import joined, sampled
from granplugin.progress import track
from granplugin.recipe.callables import blame, resolve
from granplugin.recipe.loaded import Loaded, located
from granplugin.recipe.schema import Recipe
from granplugin.recipe.strict import Target
from granplugin.results.values import FP32, Audited, Built, Measured, Results
from granplugin.runs.build_options import cannot_run, options_of
from granplugin.runs.executor import run_tasks
from granplugin.runs.failed_build import engine_name, explain, in_words_of
from granplugin.runs.session import Session
from granplugin.store.arrays import save_arrays
from granplugin.store.cache import Cache
from granplugin.store.keys import content_key
from granplugin.store.maker import made_by

log = logging.getLogger(__name__)


def open_backends(loaded: Loaded) -> dict[str, Backend]:
    """The backends of the recipe's engines; RecipeError for one that is not installed and is not
    optional."""
    found = {}
    for index, name in enumerate(loaded.recipe.engines):
        module = backends.backend_of(name)
        reason = module.unavailable()
        if reason:
            raise loaded.error(("engines", index), f"engine {name} cannot be used: {reason}")
        found[name] = module
    for name in loaded.recipe.optional_engines:
        module = backends.backend_of(name)
        if reason := module.unavailable():
            log.warning("engine %s is left out: %s", name, reason)
        else:
            found.setdefault(name, module)
    return found


def check_data(session: Session) -> None:
    """Refuse, before anything is computed, metrics that no output serves, and labels that they need
    and the data lacks or the model does not know."""
    with located(session.loaded, "data", "evaluation"):
        labels = session.evaluation.labels()
    for index, name in enumerate(session.recipe.metrics):
        if metrics.METRICS[name].needs_labels and labels is None:
            raise session.loaded.error(
                ("metrics", index),
                f"{name} needs labels and the evaluation data has none; name them in "
                "data.evaluation.labels, or measure agreement and sqnr_db",
            )
    with located(session.loaded, "data", "evaluation"):
        outputs = sampled(session.network.outputs(session.example), session.axes)
        scores = metrics.class_scores(outputs, session.recipe.classes)
        if scores and labels is not None:
            name, axis = scores
            metrics.check_labels(labels, outputs[name].shape[axis])
    if why := session.unmeasurable:
        raise session.loaded.error(("model",), why)
    for index, name in enumerate(session.recipe.metrics):
        labels = np.zeros(len(next(iter(outputs.values()))), np.int64)
        try:
            if not _left_out(session.recipe, name, outputs):
                metrics.METRICS[name].measure(outputs, outputs, labels, session.recipe.classes)
        except UserError as err:
            raise session.loaded.error(("metrics", index), str(err)) from err


@dataclass(frozen=True, eq=False)
class MeasureVariant:
    """The task to build a variant's engine, to audit it, and to run it on all evaluation samples,
    where it can run: with the user's own metrics, which need it opened. `loaded` is the recipe that
    the run's settings are from; `axes` tell where outputs have their samples."""

    built: Built
    engine: str
    options: Options
    loaded: Loaded
    evaluation: Batches
    axes: Mapping[str, int | None]

    def run(self, cache: Cache) -> Measured:
        """What came of it; where the engine refuses, crashes, takes too long or computes what is
        not finite, the reason, with what is known by then."""
        module = backends.backend_of(self.engine)
        found = Measured(Engine(self.engine, Path(), None, None, module.version()), Audited())
        try:
            engine = build_engine(self.built, module, self.options, cache)
            found = replace(found, engine=engine)
            found = replace(found, audited=self._audited(engine, module, cache))
            reason = cannot_run(self.loaded.recipe, module)
            return replace(found, cannot_run=reason) if reason else self._ran(found, module, cache)
        except LackError:
            raise
        except EngineError as err:
            name = self.built.job.name
            told = in_words_of(self.built, self.engine, err).removeprefix(f"variant {name}: ")
            log.info("%s has nothing of %s: %s", self.engine, name, told)
            return replace(found, refused=told)

    def _audited(self, engine: Engine, module: Backend, cache: Cache) -> Audited:
        built, layers = self.built, self._layers(engine, module, cache)
        written = built.job.written.get(self.engine, Written(()))
        onnx, plan = built.file(self.engine).path, module.engine_plan(engine)
        sites, findings = examine(self.engine, onnx, plan, built.quantized) if plan else ((), ())
        verdicts = audit(built.quantized, (*layers, *sites), written.promises, written.made)
        return Audited(layers, plan, verdicts, findings)

    def _ran(self, built: Measured, module: Backend, cache: Cache) -> Measured:
        outputs = self._outputs(built.engine, module, cache)
        values: dict[str, metrics.Score] = {}
        evaluate = self.loaded.recipe.evaluate
        if evaluate:
            with located(self.loaded, "evaluate"), calls.opened(module, built.engine) as runner:
                predict = partial(calls.run, runner)
                values = user_metrics(evaluate, predict, self.evaluation)
        return replace(built, outputs=outputs, values=values)

    def _layers(self, engine: Engine, module: Backend, cache: Cache) -> tuple[LayerPrecision, ...]:
        """What ran in what; kept, since OpenVINO compiles the model to tell."""
        key = content_key(*self._key(engine, module))
        layers = cache.made_json("ran", key, lambda: [asdict(x) for x in module.layers(engine)])
        return tuple(LayerPrecision(**layer) for layer in layers)

    def _outputs(self, engine: Engine, module: Backend, cache: Cache) -> dict[str, np.ndarray]:
        def run_all(path: Path) -> None:
            with calls.opened(module, engine) as runner:
                batches = [calls.run(runner, batch) for batch in self.evaluation]
            outputs = joined(batches, self.axes)
            what = f"{self.built.job.name} on {engine.backend}: output"
            try:
                metrics.check_finite(outputs, what)
            except ModelError as err:
                raise EngineError(str(err)) from err
            save_arrays(path, outputs)

        key = content_key(*self._key(engine, module), self.evaluation.key(), self.axes)
        with np.load(cache.made("outputs", key, ".npz", run_all)) as arrays:
            return dict(arrays)

    def _key(self, engine: Engine, module: Backend) -> tuple[Any, ...]:
        """What two engines of one file can differ in, and the code that opens them; the version of
        its library is the engine's."""
        options = asdict(self.options)
        built_for = {key: options[key] for key in options if key not in ("seconds", "memory_mb")}
        name = self.built.file(self.engine).path.name
        opener = made_by(type(module).__module__, calls.__name__, joined.__module__)
        return name, self.engine, engine.version, built_for, opener


def measure(
    session: Session, built: Sequence[Built], engines: Mapping[str, Backend]
) -> dict[tuple[str, str], Measured]:
    """(variant, engine) -> what came out on all evaluation samples, and its metrics.

    An engine that refuses a file keeps its place, with the reason. Raises EngineError where none
    takes fp32, which everything is compared with, or none any recipe's or variant's file.
    """
    tasks = [_task(session, each, module) for module in engines.values() for each in built]
    results: dict[tuple[str, str], Measured] = {}
    same: dict[Path, Mapping[str, metrics.Score]] = {}  # engine's folder -> the user's own values
    names = [f"{task.built.job.name} on {task.engine}" for task in tasks]
    done = track(run_tasks(tasks, session.run.kept), "building and measuring", names=names)
    for task, found in zip(tasks, done, strict=True):
        variant = task.built.job.name
        if found.ran:
            # An `evaluate` that draws lots would tell one file from itself.
            found = replace(found, values=same.setdefault(found.engine.path, found.values))
            found = replace(found, values=_values(session, variant, found, results))
        results[variant, task.engine] = found
        _refuse_without(session.recipe, results, [FP32], len(engines))
    wanted = [each.job.name for each in built if each.job.kind != "baseline"]
    _refuse_without(session.recipe, results, wanted, len(engines))
    return results


def measure_again(session: Session, built: Built, module: Backend, results: Results) -> Measured:
    """One variant on one engine, beside the others' results."""
    (found,) = run_tasks([_task(session, built, module)], session.run.kept)
    if not found.ran:
        return found
    return replace(found, values=_values(session, built.job.name, found, results))


def _task(session: Session, built: Built, module: Backend) -> MeasureVariant:
    return MeasureVariant(
        built=built,
        engine=module.name,
        options=options_of(session.recipe, session.input_sizes, built, module),
        loaded=session.loaded,
        evaluation=session.evaluation,
        axes=session.axes,
    )


def _values(
    session: Session, variant: str, measured: Measured, results: Results
) -> dict[str, metrics.Score]:
    """The recipe's metrics, against fp32 on the same engine, and the user's own."""
    engine = measured.engine.backend
    reference = None if variant == FP32 else results[FP32, engine].outputs or None
    return scores(session, measured.outputs, reference) | dict(measured.values)


def _refuse_without(
    recipe: Recipe,
    results: Mapping[tuple[str, str], Measured],
    names: Sequence[str],
    engines: int,
) -> None:
    """Raises EngineError where each of so many engines refused all of these variants."""
    of = [(name, found.refused) for (name, _), found in results.items() if name in names]
    if len(of) == len(names) * engines and all(refused for _, refused in of):
        own = ", ".join(recipe.model.form.custom_ops)
        way = f"; granplugin export writes files for an engine that knows {own}" if own else ""
        raise EngineError("variant {}: {}{}".format(*of[0], way))


def build_engine(
    built: Built, module: Backend, options: Options, cache: Cache, again: bool = False
) -> Engine:
    """The backend's engine of a variant, kept by the ONNX file's content; or a second one,
    `again`. Raises EngineError, of a layer and its rule where they can be found."""
    onnx = built.file(module.name).path
    folder = cache.path(engine_name(onnx, module.name, again))
    try:
        return calls.build(module, onnx, folder, options)
    except BuildFailed as err:
        raise explain(built, module, options, cache.folder, err) from err


def scores(
    session: Session,
    outputs: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray] | None,
) -> dict[str, metrics.Score]:
    """The recipe's metrics of a variant's outputs; without FP32's, `reference`, only those that
    need none."""
    labels = session.evaluation.labels()
    found = {}
    for name in session.recipe.metrics:
        if reference is None and metrics.METRICS[name].needs_reference:
            continue
        if _left_out(session.recipe, name, outputs):
            continue
        with located(session.loaded, "data", "evaluation"):
            measure = metrics.METRICS[name].measure
            found[name] = measure(outputs, reference, labels, session.recipe.classes)
    return found


def _left_out(recipe: Recipe, metric: str, outputs: Mapping[str, np.ndarray]) -> bool:
    """Whether it is a metric that nobody asked for and that these outputs do not serve."""
    asked = "metrics" in recipe.model_fields_set
    return not asked and metrics.unserved(metric, outputs, recipe.classes) is not None


def user_metrics(
    target: Target, predict: Callable[..., Any], data: Batches
) -> dict[str, metrics.Score]:
    """What the user's `evaluate` says: metric -> value, and its per-sample values where given.

    It returns {metric: value, "per_sample": {metric: values}, "lower_is_better": [metric]}, the
    last two where there is something to say.
    """
    fn = resolve(target)
    try:
        scores = fn(predict, data)
    except UserError:
        raise
    except (Exception, SystemExit) as err:
        raise blame(target, "evaluating", err, ModelError) from err
    if not isinstance(scores, dict):
        raise ModelError(
            f"{target}: it must return a dict of metrics, not a {type(scores).__name__}"
        )
    per_sample = scores.get("per_sample", {})
    lower = scores.get("lower_is_better", ())
    names = [name for name in scores if name not in ("per_sample", "lower_is_better")]
    if not names:
        raise ModelError(f"{target}: it returned no metric")
    if not isinstance(per_sample, dict) or (stray := [n for n in per_sample if n not in names]):
        wrong = f"has {stray[0]!r}" if isinstance(per_sample, dict) else f"is {per_sample!r:.40}"
        raise ModelError(f"{target}: per_sample {wrong}; it maps {', '.join(map(str, names))}")
    values = {}
    for name in names:
        if name in metrics.METRICS or not isinstance(name, str):
            raise ModelError(f"{target}: a metric of one's own cannot be called {name!r}")
        try:
            samples = np.asarray(per_sample[name], float) if name in per_sample else None
            values[name] = metrics.Score(float(scores[name]), samples, name not in lower)
        except (TypeError, ValueError):
            raise ModelError(
                f"{target}: metric {name!r} is not a number: {scores[name]!r:.40}"
            ) from None
        if math.isnan(values[name].value) or (samples is not None and np.isnan(samples).any()):
            raise ModelError(f"{target}: metric {name!r} is NaN")
        if samples is not None and samples.shape != (data.samples,):
            raise ModelError(
                f"{target}: per_sample {name!r} has shape {list(samples.shape)}, "
                f"not [{data.samples}]"
            )
    return values
