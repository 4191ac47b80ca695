"""Variants on engines: their outputs on the evaluation data, and metrics."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from granplugin import backends
from granplugin.measures import metrics
from granplugin.audits.audit import audit
from granplugin.audits.audit_file import examine
from granplugin.backends.base import Backend, BuildFailed, Engine, LayerPrecision
from granplugin.runs.failed_build import explain
from granplugin.runs.build_options import cannot_run, options_of
from granplugin.data.batches import Batches
from granplugin.errors import EngineError, ModelError, UserError
from granplugin.capabilities.legality import Written
from granplugin.recipe.callables import blame, resolve
from granplugin.progress import track
from granplugin.recipe.loaded import Loaded, located
from granplugin.recipe.strict import Target
from granplugin.store.keys import content_key
from granplugin.store.maker import made_by
from granplugin.runs.session import Session
from granplugin.results.values import FP32, Audited, Built, Measured

log = logging.getLogger(__name__)


def open_backends(loaded: Loaded) -> dict[str, Backend]:
    """The backends of the recipe's engines; RecipeError for one that is not installed and is not
    optional."""
    found = {}
    for index, name in enumerate(loaded.recipe.engines):
        module = backends.load(name)
        reason = module.unavailable()
        if reason:
            raise loaded.error(("engines", index), f"engine {name} cannot be used: {reason}")
        found[name] = module
    for name in loaded.recipe.optional_engines:
        module = backends.load(name)
        if reason := module.unavailable():
            log.warning("engine %s is left out: %s", name, reason)
        else:
            found.setdefault(name, module)
    return found


def check_data(session: Session) -> None:
    """Refuse labels that metrics need and the data lacks or the model does not know, before
    anything is computed."""
    with located(session.loaded, "data", "evaluation"):
        labelled = session.evaluation.labels() is not None
    for index, name in enumerate(session.recipe.metrics):
        if metrics.METRICS[name].needs_labels and not labelled:
            raise session.loaded.error(
                ("metrics", index),
                f"{name} needs labels and the evaluation data has none; name them in "
                "data.evaluation.labels, or measure agreement and sqnr_db",
            )
    with located(session.loaded, "data", "evaluation"):
        outputs = session.network.outputs(session.example)
        scores = metrics.scores_of(outputs)
        if scores and labelled:
            metrics.check_labels(session.evaluation.labels(), outputs[scores].shape[1])


def measure(
    session: Session, built: Sequence[Built], engines: Mapping[str, Backend]
) -> dict[tuple[str, str], Measured]:
    """(variant, engine) -> what came out on all evaluation samples."""
    work = [(name, module, each) for name, module in engines.items() for each in built]
    results: dict[tuple[str, str], Measured] = {}
    for name, module, each in track(work, "building and measuring"):
        engine = build_engine(session, each, module)
        layers, reason = _layers(session, each, engine, module), cannot_run(session.recipe, module)
        written = each.job.written.get(name, Written(()))
        plan = module.plan(engine)
        sites, findings = (
            examine(name, each.file(name).path, plan, each.quantized) if plan else ((), ())
        )
        verdicts = audit(each.quantized, (*layers, *sites), written.promises, written.made)
        found = Measured(engine, Audited(layers, plan, verdicts, findings), reason)
        if reason is None:
            outputs = _outputs(session, each, engine, module)
            reference = outputs if each.job.name == FP32 else results[FP32, name].outputs
            values = _values(session, each, engine, module, outputs, reference)
            found = replace(found, outputs=outputs, values=values)
        results[each.job.name, name] = found
    return results


def build_engine(session: Session, built: Built, module: Backend, again: bool = False) -> Engine:
    """The backend's engine of a variant, kept by the ONNX file's content; or a second one, `again`,
    made without the timings of the first."""
    onnx, options = built.file(module.name).path, options_of(session, built, module, again)
    folder = session.run.cache / f"engine-{onnx.stem}-{module.name}{'-again' if again else ''}"
    session.run.used.add(folder)
    try:
        return module.build(onnx, folder, options)
    except BuildFailed as err:
        raise explain(built, module, options, session.run.cache, err) from err
    except EngineError as err:
        raise EngineError(f"variant {built.job.name}: {err}") from err


def _layers(
    session: Session, built: Built, engine: Engine, module: Backend
) -> tuple[LayerPrecision, ...]:
    """What ran in what; kept, since OpenVINO compiles the model to tell."""
    file = built.file(module.name).path.name
    key = content_key(
        file, module.name, engine.version, _built_for(session, built, module), _runner(module)
    )
    found = session.run.made_json("ran", key, lambda: [asdict(x) for x in module.layers(engine)])
    return tuple(LayerPrecision(**layer) for layer in found)


def _runner(module: Backend) -> str:
    """The code that opens an engine; its library's version is the engine's."""
    return made_by(type(module).__module__)


def _built_for(session: Session, built: Built, module: Backend) -> dict[str, Any]:
    """What two engines of one file can differ in."""
    said = asdict(options_of(session, built, module))
    return {key: said[key] for key in said if key not in ("seconds", "memory_mb")}


def _outputs(
    session: Session, built: Built, engine: Engine, module: Backend
) -> dict[str, np.ndarray]:
    def run_all(path: Path) -> None:
        with module.open(engine) as runner:
            batches = [runner.run(batch) for batch in session.evaluation]
        outputs = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
        metrics.check_finite(outputs, f"{built.job.name} on {engine.backend}: output")
        np.savez(path, **outputs)

    key = content_key(
        built.file(module.name).path.name, module.name, engine.version, session.evaluation.key(),
        _built_for(session, built, module), _runner(module),
    )  # fmt: skip
    with np.load(session.run.made("outputs", key, ".npz", run_all)) as arrays:
        return dict(arrays)


def _values(
    session: Session,
    built: Built,
    engine: Engine,
    module: Backend,
    outputs: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
) -> dict[str, metrics.Score]:
    labels = session.evaluation.labels()
    values = {}
    for name in session.recipe.metrics:
        if built.job.name == FP32 and metrics.METRICS[name].needs_reference:
            continue
        with located(session.loaded, "data", "evaluation"):
            values[name] = metrics.METRICS[name].measure(outputs, reference, labels)
    if session.recipe.evaluate:
        with located(session.loaded, "evaluate"), module.open(engine) as runner:
            values |= user_metrics(session.recipe.evaluate, runner.run, session.evaluation)
    return values


def user_metrics(target: Target, predict: Callable, data: Batches) -> dict[str, metrics.Score]:
    """What the user's `evaluate` says: metric -> value, and its per-sample values where given.

    It returns {metric: value, "per_sample": {metric: values}, "lower_is_better": [metric]}, the
    last two where there is something to say.
    """
    fn = resolve(target)
    try:
        said = fn(predict, data)
    except UserError:
        raise
    except (Exception, SystemExit) as err:
        raise blame(target, "evaluating", err, ModelError) from err
    if not isinstance(said, dict):
        raise ModelError(f"{target}: it must return a dict of metrics, not a {type(said).__name__}")
    per_sample = said.get("per_sample", {})
    lower = said.get("lower_is_better", ())
    names = [name for name in said if name not in ("per_sample", "lower_is_better")]
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
            values[name] = metrics.Score(float(said[name]), samples, name not in lower)
        except (TypeError, ValueError):
            raise ModelError(
                f"{target}: metric {name!r} is not a number: {said[name]!r:.40}"
            ) from None
        if math.isnan(values[name].value) or (samples is not None and np.isnan(samples).any()):
            raise ModelError(f"{target}: metric {name!r} is NaN")
        if samples is not None and samples.shape != (data.samples,):
            raise ModelError(
                f"{target}: per_sample {name!r} has shape {list(samples.shape)}, "
                f"not [{data.samples}]"
            )
    return values
