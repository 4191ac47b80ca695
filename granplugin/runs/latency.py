"""How long variants take on engines, in turns; on a GPU also as CUDA graphs, and layer by layer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from granplugin.backends import calls
from granplugin.backends.base import Backend, DeviceRunner, Engine, ResidentCall, Runner
from granplugin.backends.card import CARD
from granplugin.backends.gpu import clocks
from granplugin.engines import ENGINES
from granplugin.errors import EngineError, LackError
from granplugin.measures.timing import build_spread, measure_interleaved, ratio
from granplugin.progress import stage, track
from granplugin.results.values import Built, Measured, Timing
from granplugin.runs.build_options import cannot_run, latency_batches, options_of
from granplugin.runs.failed_build import in_words_of
from granplugin.runs.measure import build_engine
from granplugin.runs.session import Session
from granplugin.store.keys import content_key, file_key
from granplugin.store.maker import made_by

log = logging.getLogger(__name__)

Call = Callable[[], object]
Untimed = dict[tuple[str, str], str]
"""(variant, engine) -> why a latency of it is missing."""

DEVICE_CALLS = 10
"""Calls between two CUDA events: one alone may be shorter than what its launch varies by."""


def measure_latency(
    session: Session,
    built: Sequence[Built],
    results: Mapping[tuple[str, str], Measured],
    engines: Mapping[str, Backend],
) -> tuple[dict[tuple[str, str, int], Timing], Untimed]:
    """(variant, engine, batch size) -> latency, all variants of an engine interleaved; those of
    one file are timed once. And what could not be timed, though it ran."""
    timings: dict[tuple[str, str, int], Timing] = {}
    untimed: Untimed = {}
    files = {each.job.name: each for each in built}
    for name, module in engines.items():
        if not ENGINES[name].measures_latency or cannot_run(session.recipe, module):
            continue
        own = {v: each.engine for (v, on), each in results.items() if on == name and each.ran}
        timed = {engine.path: variant for variant, engine in reversed(own.items())}
        same = {variant: timed[engine.path] for variant, engine in own.items()}
        own = {variant: own[variant] for variant in own if same[variant] == variant}
        told = partial(_told, files, name, untimed)
        again = {}
        if ENGINES[name].builds_vary:
            for variant in track(list(own), f"building again on {name}", names=list(own)):
                with told(variant):
                    again[variant] = _second(session, files[variant], module)
        for batch in latency_batches(session.recipe, name):
            feeds = _feeds(session, batch)
            timing = stage(f"timing on {name}, batch {batch}", drawn=False)
            log.info("measuring latency of %d variants on %s, batch %d", len(own), name, batch)
            with timing, ExitStack() as stack:
                runs, second = (_opened(stack, module, of, feeds, told) for of in (own, again))
                second = {variant: second[variant] for variant in second if variant in runs}
                try:
                    with calls.timing(name, [own[v] for v in runs], batch):
                        found = _timings(session, runs, second) if runs else {}
                except LackError:
                    raise
                except EngineError as err:
                    log.warning("%s", err)
                    untimed |= {(variant, name): str(err) for variant in runs}
                    found = {}
            timings |= {(v, name, batch): found[once] for v, once in same.items() if once in found}
        untimed |= {
            (v, name): untimed[once, name] for v, once in same.items() if (once, name) in untimed
        }
    return timings, untimed


@contextmanager
def _told(
    files: Mapping[str, Built], engine: str, untimed: Untimed, variant: str
) -> Iterator[None]:
    """Where the engine fails, the reason is kept, and the others are timed."""
    try:
        yield
    except LackError:
        raise
    except EngineError as err:
        reason = in_words_of(files[variant], engine, err)
        log.warning("%s", reason)
        untimed[variant, engine] = reason.removeprefix(f"variant {variant}: ")


def _opened(
    stack: ExitStack,
    module: Backend,
    engines: Mapping[str, Engine],
    feeds: dict[str, np.ndarray],
    told: Callable[[str], AbstractContextManager[None]],
) -> dict[str, Call]:
    """Variant -> its engine's call for these feeds, open until the stack is closed; of those that
    can be called."""
    batch = len(next(iter(feeds.values())))
    found: dict[str, Call] = {}
    for variant, engine in engines.items():
        with told(variant):
            runner = stack.enter_context(calls.opened(module, engine, batch))
            call = calls.called(engine, partial(_first, runner, feeds), batch)
            found[variant] = call
    return found


def _first(runner: Runner, feeds: dict[str, np.ndarray]) -> Call:
    """The runner's call for these feeds, which was made once."""
    call = runner.repeated(feeds)
    call()
    return call


def _second(session: Session, built: Built, module: Backend) -> Engine:
    """A second build of a variant, without the timings of the first."""
    options = options_of(session.recipe, session.input_sizes, built, module, again=True)
    return build_engine(built, module, options, session.run.kept, again=True)


def _timings(
    session: Session, runs: Mapping[str, Call], second: Mapping[str, Call]
) -> dict[str, Timing]:
    """Variant -> timing, all in turns: each engine, as a CUDA graph, and the second build."""
    spec = session.recipe.latency
    timed = {name: run for name, run in runs.items() if isinstance(run, ResidentCall)}
    graphs = {name: graph for name, run in timed.items() if (graph := run.captured())}
    before = clocks() if timed else None
    timings = measure_interleaved(
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
    of_builds = build_spread(
        [ratio(timings["second", name], timings["first", name]) for name in second]
    )
    return {
        name: Timing(timings["first", name], timings.get(("graph", name)), of_builds, told)
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
        if not result.ran or ENGINES[name].device != "gpu":
            continue

        def write(folder: Path, name: str = name, engine: Engine = result.engine) -> None:
            folder.mkdir()
            feeds = _feeds(session, session.recipe.data.batch_size)
            with calls.opened(engines[name], engine) as runner:
                assert isinstance(runner, DeviceRunner), f"{name} runs on a GPU, says its entry"
                calls.called(engine, partial(runner.profile, feeds, folder))

        timed = made_by(type(engines[name]).__module__, calls.__name__)
        key = content_key(file_key(result.engine.path / CARD), timed)
        try:
            found[variant, name] = session.run.kept.made("profile", key, "", write)
        except LackError:
            raise
        except EngineError as err:
            log.warning("variant %s: %s has no profile of its layers: %s", variant, name, err)
    return found


def _feeds(session: Session, batch: int) -> dict[str, np.ndarray]:
    """The first `batch` samples of the evaluation data, starting over where a batch has fewer."""
    first = next(iter(session.evaluation))
    return {
        name: np.ascontiguousarray(np.take(array, np.arange(batch) % len(array), axis=0))
        for name, array in first.items()
    }
