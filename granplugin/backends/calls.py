"""Building, opening and running engines, where a crash of a library is one engine's failure: each
call is marked for the process that outlives it (crashes).

Each raises EngineError, too, where the library crashed in the same call before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from granplugin.backends.base import Backend, Engine, Feeds, Options, Runner
from granplugin.crashes import Call, calling

T = TypeVar("T")


def build(module: Backend, onnx: Path, out: Path, options: Options | None = None) -> Engine:
    """As Backend.build."""
    with calling(Call(module.name, "building", str(onnx.absolute()))):
        return module.build(onnx, out, options)


@contextmanager
def opened(module: Backend, engine: Engine, batch: int | None = None) -> Iterator[Runner]:
    """As Backend.open; what is done with the runner is not marked."""
    opening = module.open(engine, batch=batch)
    with calling(_of(engine, "opening", batch)):
        runner = opening.__enter__()
    with _closing(opening):
        yield runner


@contextmanager
def _closing(opening: AbstractContextManager[Runner]) -> Iterator[None]:
    try:
        yield
    except BaseException as err:
        if not opening.__exit__(type(err), err, err.__traceback__):
            raise
    else:
        opening.__exit__(None, None, None)


def run(runner: Runner, feeds: Feeds) -> dict[str, np.ndarray]:
    """As Runner.run."""
    return called(runner.engine, lambda: runner.run(feeds))


def called(engine: Engine, call: Callable[[], T], batch: int | None = None) -> T:
    """What a call of an engine that is open returns."""
    with calling(_of(engine, "running", batch)):
        return call()


def timing(engine: str, engines: Sequence[Engine], batch: int) -> AbstractContextManager[None]:
    """Around calls of several engines in turns, none of which crashed alone."""
    names = ", ".join(sorted(each.path.name for each in engines))
    return calling(Call(engine, "running in turns", asked=f"batch {batch}: {names}"))


def _of(engine: Engine, act: str, batch: int | None) -> Call:
    asked = "" if batch is None else f"batch {batch}"
    return Call(engine.backend, act, str(engine.path.absolute()), asked)
