"""Engines held to the reference: what each computed, against ONNX Runtime on the same file."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from granplugin import backends
from granplugin.backends import calls
from granplugin.backends.base import Backend, Engine
from granplugin.data.batches import length_of
from granplugin.engines import ENGINES, REFERENCE
from granplugin.errors import EngineError, LackError
from granplugin.measures.faithful import Faithful, faithful
from granplugin.measures.samples import joined
from granplugin.progress import track
from granplugin.results.values import FP32, Built, Measured, Results
from granplugin.runs.failed_build import in_words_of
from granplugin.runs.session import Session
from granplugin.store.arrays import save_arrays
from granplugin.store.keys import content_key, file_key
from granplugin.store.maker import made_by

log = logging.getLogger(__name__)

SAMPLES = 64
"""Evaluation samples that engines are compared on: those that come first."""


def held_to_reference(
    session: Session, built: Sequence[Built], results: Results
) -> dict[tuple[str, str], Measured]:
    """The results, each with how far it is from the reference where that runs its file."""
    by_name = {each.job.name: each for each in built}
    try:
        floats = float_outputs(session, built)
    except LackError:
        raise
    except EngineError as err:
        log.warning("no engine is compared: %s", in_words_of(by_name[FP32], REFERENCE, err))
        return dict(results)
    return {
        (variant, engine): replace(found, held=held(session, by_name[variant], found, floats))
        for (variant, engine), found in track(
            results.items(), "comparing with the reference", len(results)
        )
    }


def float_outputs(session: Session, built: Sequence[Built]) -> dict[str, np.ndarray]:
    """The float network's, by the reference. Raises EngineError where it refuses it."""
    return _reference(session, next(b.onnx.path for b in built if b.job.name == FP32))


def held(
    session: Session, built: Built, measured: Measured, floats: Mapping[str, np.ndarray]
) -> Faithful | None:
    """How far a variant's engine is from the reference on its file, None where that cannot be
    told; `floats` as float_outputs has them."""
    engine = measured.engine.backend
    low = built.job.precision if built.job.precision in ENGINES[engine].precisions else FP32
    floating = any(np.issubdtype(array.dtype, np.floating) for array in floats.values())
    runs = measured.outputs and floating and low in ENGINES[REFERENCE].precisions
    if engine == REFERENCE or not runs:
        return None
    try:
        reference = _reference(session, built.file(engine).comparable)
    except LackError:
        raise
    except EngineError as err:
        log.warning("%s; %s is not compared there", in_words_of(built, engine, err), engine)
        return None
    # Later samples may be longer: these are filled up further.
    theirs = {
        name: array[tuple(map(slice, floats[name].shape))]
        for name, array in measured.outputs.items()
    }
    return faithful(theirs, reference, floats)


def first_outputs(backend: Backend, engine: Engine, session: Session) -> dict[str, np.ndarray]:
    """An engine's outputs on the first SAMPLES samples."""
    batches: list[dict[str, np.ndarray]] = []
    samples = 0
    with calls.opened(backend, engine) as runner:
        for batch in session.evaluation:
            batches.append(calls.run(runner, batch))
            samples += length_of(batch)
            if samples >= SAMPLES:
                break
    return {name: array[:SAMPLES] for name, array in joined(batches, session.axes).items()}


def _reference(session: Session, onnx: Path) -> dict[str, np.ndarray]:
    """The reference's outputs of a file on the first SAMPLES samples; kept."""

    def run(path: Path) -> None:
        backend = backends.backend_of(REFERENCE)
        save_arrays(path, first_outputs(backend, calls.build(backend, onnx, onnx.parent), session))

    backend = type(backends.backend_of(REFERENCE)).__module__
    key = content_key(
        file_key(onnx), session.evaluation.key(), SAMPLES, session.axes,
        made_by(backend, calls.__name__, joined.__module__, libraries=("onnxruntime",)),
    )  # fmt: skip
    with np.load(session.run.kept.made("reference", key, ".npz", run)) as arrays:
        return dict(arrays)
