"""ONNX Runtime with graph optimizations off: the numerical reference, never a latency figure.

The engine is the ONNX file itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from granplugin.backends.base import (
    Backend,
    BuildFailed,
    Engine,
    Feeds,
    Input,
    LayerPrecision,
    Options,
    Runner,
)
from granplugin.errors import EngineError
from granplugin.store.companions import whole_bytes
from granplugin.translate import translated

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_DTYPES = {
    f"tensor({word})": np.dtype(word)
    for word in (
        "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool",
    )
} | {"tensor(float)": np.dtype(np.float32), "tensor(double)": np.dtype(np.float64)}  # fmt: skip


class OnnxRuntime(Backend):
    """ONNX Runtime's CPU provider."""

    def build(self, onnx: Path, out: Path, options: Options | None = None) -> Engine:
        """Checks that the file loads; nothing is written to `out`."""
        start = perf_counter()
        self._session(onnx, None, BuildFailed)
        return Engine(self.name, onnx, whole_bytes(onnx), perf_counter() - start, self.version())

    @contextmanager
    def open(
        self, engine: Engine, threads: int | None = None, batch: int | None = None
    ) -> Iterator[_Runner]:
        """`batch` makes no difference here."""
        session = self._session(engine.path, threads)
        yield _Runner(engine, tuple(map(_input, session.get_inputs())), session)

    def layers(self, engine: Engine) -> tuple[LayerPrecision, ...]:
        """Empty: each node runs as the graph says it, Q/DQ by Q/DQ."""
        return ()

    def _session(
        self, onnx: Path, threads: int | None, error: type[EngineError] = EngineError
    ) -> InferenceSession:
        self.library()
        from granplugin.graph import reference

        with translated(f"{self.name} refused {onnx.name}", reference.ERRORS, error):
            return reference.open_session(onnx, threads)


@dataclass(frozen=True)
class _Runner(Runner):
    session: InferenceSession

    def _infer(self, feeds: Feeds) -> dict[str, np.ndarray]:
        from granplugin.graph import reference

        names = [output.name for output in self.session.get_outputs()]
        with translated(self._said, reference.ERRORS):
            return dict(zip(names, self.session.run(names, feeds), strict=True))


def _input(node: Any) -> Input:
    sizes = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    return Input(frozenset({node.name}), _DTYPES.get(node.type), sizes)
