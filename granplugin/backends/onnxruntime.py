"""ONNX Runtime with graph optimizations off: the numerical reference, never a latency figure.

With optimizations on it rounds biases to INT32 (WeightBiasQuantization) and is no reference. The
engine is the ONNX file itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from granplugin.backends.base import Engine, LayerPrecision, Options, missing, one_line
from granplugin.errors import EngineError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

name = "onnxruntime"
EXTRA = None


def unavailable() -> str | None:
    return missing("onnxruntime", EXTRA)


def version() -> str:
    return metadata.version("onnxruntime")


def can_run() -> None:
    """It runs wherever it is installed."""


def plan(engine: Engine) -> None:
    """It tells of its layers, not of what they move."""


def build(onnx: Path, out: Path, options: Options = Options()) -> Engine:
    """Checks that the file loads; nothing is written to `out`."""
    start = perf_counter()
    _session(onnx, None)
    return Engine(name, onnx, onnx.stat().st_size, perf_counter() - start, version())


@contextmanager
def open(engine: Engine, threads: int | None = None, batch: int | None = None) -> Iterator[_Runner]:
    """`batch` makes no difference here."""
    yield _Runner(engine.path, _session(engine.path, threads))


def layers(engine: Engine) -> tuple[LayerPrecision, ...]:
    """Empty: each node runs as the graph says it, Q/DQ by Q/DQ."""
    return ()


@dataclass(frozen=True)
class _Runner:
    path: Path
    session: InferenceSession

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [output.name for output in self.session.get_outputs()]
        try:
            return dict(zip(names, self.session.run(names, feeds), strict=True))
        except _errors() as err:
            raise EngineError(f"onnxruntime cannot run {self.path.name}: {one_line(err)}") from err


def _session(onnx: Path, threads: int | None) -> InferenceSession:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # what it would print comes with the exception too
    options.intra_op_num_threads = threads or 0
    try:
        return ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    except _errors() as err:
        raise EngineError(f"onnxruntime refused {onnx.name}: {one_line(err)}") from err


def _errors() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    # They share no base; a ValueError is a missing input.
    return (
        state.EPFail,
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoModel,
        state.NoSuchFile,
        state.NotImplemented,
        state.RuntimeException,
        ValueError,
    )
