"""How long variants take on engines, in turns; on a GPU also as CUDA graphs, and layer by layer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from granplugin.backends.base import Backend, DeviceRunner, Engine, ResidentCall
from granplugin.backends.card import CARD
from granplugin.backends.gpu import clocks
from granplugin.engines import ENGINES
from granplugin.measures.timing import build_spread, measure_interleaved, ratio
from granplugin.progress import stage, track
from granplugin.results.values import Built, Measured, Timing
from granplugin.runs.build_options import cannot_run, latency_batches, options_of
from granplugin.runs.measure import build_engine
from granplugin.runs.session import Session
from granplugin.store.keys import content_key, file_key

log = logging.getLogger(__name__)

Call = Callable[[], object]

DEVICE_CALLS = 10
"""Calls between two CUDA events: one alone may be shorter than what its launch varies by."""


def measure_latency(
    session: Session,
    built: Sequence[Built],
    results: Mapping[tuple[str, str], Measured],
    engines: Mapping[str, Backend],
) -> dict[tuple[str, str, int], Timing]:
    """(variant, engine, batch size) -> latency, all variants of an engine interleaved; those of
    one file are timed once."""
    timings: dict[tuple[str, str, int], Timing] = {}
    for name, module in engines.items():
        if not ENGINES[name].measures_latency or cannot_run(session.recipe, module):
            continue
        own = {variant: each.engine for (variant, on), each in results.items() if on == name}
        timed = {engine.path: variant for variant, engine in reversed(own.items())}
        same = {variant: timed[engine.path] for variant, engine in own.items()}
        own = {variant: own[variant] for variant in own if same[variant] == variant}
        again = {}
        if ENGINES[name].builds_vary:
            twice = [each for each in built if each.job.name in own]
            names = [each.job.name for each in twice]
            building = track(twice, f"building again on {name}", names=names)
            again = {each.job.name: _second(session, each, module) for each in building}
        for batch in latency_batches(session.recipe, name):
            feeds = _feeds(session, batch)
            timing = stage(f"timing on {name}, batch {batch}", drawn=False)
            log.info("measuring latency of %d variants on %s, batch %d", len(own), name, batch)
            with timing, ExitStack() as stack:
                runs, second = (_opened(stack, module, of, feeds) for of in (own, again))
                found = _timings(session, runs, second)
            timings |= {(variant, name, batch): found[once] for variant, once in same.items()}
    return timings


def _opened(
    stack: ExitStack, module: Backend, engines: Mapping[str, Engine], feeds: dict[str, np.ndarray]
) -> dict[str, Call]:
    """Variant -> its engine's call for these feeds, open until the stack is closed."""
    batch = len(next(iter(feeds.values())))
    runners = {
        variant: stack.enter_context(module.open(engine, batch=batch))
        for variant, engine in engines.items()
    }
    return {variant: runner.repeated(feeds) for variant, runner in runners.items()}


def _second(session: Session, built: Built, module: Backend) -> Engine:
    """A second build of a variant, without the timings of the first."""
    options = options_of(session.recipe, session.input_shapes, built, module, again=True)
    return build_engine(built, module, options, session.run.kept, again=True)


def _timings(
    session: Session, runs: Mapping[str, Call], second: Mapping[str, Call]
) -> dict[str, Timing]:
    """Variant -> timing, all in turns: each engine, as a CUDA graph, and the second build."""
    spec = session.recipe.latency
    timed = {name: run for name, run in runs.items() if isinstance(run, ResidentCall)}
    graphs = {name: graph for name, run in timed.items() if (graph := run.captured())}
    before = clocks() if timed else None
    found = measure_interleaved(
        {
            **{("first", name): run for name, run in runs.items()},
            **{("graph", name): run for name, run in graphs.items()},
            **{("second", name): run for name, run in second.items()},
        },
        warmup=3,
        rounds=spec.rounds,
        inner=DEVICE_CALLS if timed else 1,
        seconds=spec.seconds,
    )
    told = tuple(filter(None, [before, clocks() if timed else None]))
    spread = build_spread([ratio(found["second", name], found["first", name]) for name in second])
    return {
        name: Timing(found["first", name], found.get(("graph", name)), spread, told)
        for name in runs
    }


def profile(
    session: Session,
    results: Mapping[tuple[str, str], Measured],
    engines: Mapping[str, Backend],
) -> dict[tuple[str, str], Path]:
    """(variant, engine) -> a folder with layers.json and profile.json, where the engine can time
    its layers: in a run of its own, which is no latency of the whole."""
    found = {}
    for (variant, name), result in results.items():
        if result.cannot_run is not None or ENGINES[name].device != "gpu":
            continue

        def write(folder: Path, name: str = name, engine: Engine = result.engine) -> None:
            folder.mkdir()
            with engines[name].open(engine) as runner:
                assert isinstance(runner, DeviceRunner), f"{name} runs on a GPU, says its entry"
                runner.profile(_feeds(session, session.recipe.data.batch_size), folder)

        key = content_key(file_key(result.engine.path / CARD))
        found[variant, name] = session.run.kept.made("profile", key, "", write)
    return found


def _feeds(session: Session, batch: int) -> dict[str, np.ndarray]:
    """The first `batch` samples of the evaluation data, starting over where a batch has fewer."""
    first = next(iter(session.evaluation))
    return {
        name: np.ascontiguousarray(np.take(array, np.arange(batch) % len(array), axis=0))
        for name, array in first.items()
    }
