"""What every backend module has: how an engine is built, opened and read back."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

from granplugin.backends.engine_plan import EnginePlan
from granplugin.errors import EngineError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Options:
    """What an engine is built for. A backend takes what it has; all but `batch` is NVIDIA's.

    `shapes` gives an input's (min, opt, max) shapes; any other input with a dynamic batch is built
    for `min_batch` to `batch` samples and tuned for `batch`. Without `min_batch` that is for 1 to
    `batch` samples where the engine can run, and for `batch` alone where it cannot: only where all
    sizes are fixed, min = opt = max, does the plan say how large every tensor is. `targets` are
    compute capabilities (sm75, sm80, sm86, sm89, sm120, sm121), TensorRT-RTX only; without them it
    builds for all it can. A build is ended after `seconds`, or above `memory_mb` of resident memory
    (None: 0.9 of what is free at its start). `plan` is the hash of the variant's decisions and
    ranges: an engine of another is not used.
    """

    batch: int = 32
    min_batch: int | None = None
    shapes: Mapping[str, tuple[Shape, Shape, Shape]] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    optimization_level: int | None = None
    workspace_mb: int | None = None
    timing_cache: str | None = None
    seconds: float = 600
    memory_mb: int | None = None
    plan: str | None = None


class BuildFailed(EngineError):
    """A build that failed; `nodes` are the names of the ONNX nodes that the library names."""

    def __init__(self, message: str, nodes: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.nodes = tuple(nodes)


@dataclass(frozen=True)
class Engine:
    """What `build` made: `path` is a file or a folder of `bytes` bytes; `version` its library's.
    Of one that was built elsewhere, bytes and seconds may not be known."""

    backend: str
    path: Path
    bytes: int | None
    build_seconds: float | None
    version: str


@dataclass(frozen=True)
class LayerPrecision:
    """What one call of a weighted layer ran in: `precision` is int8, fp8, float, wrong (it is known
    to be computed so) or unknown.

    `layer` is the module path; `kernel` is the library's own word for what computes it. `detail`
    says of float what is read in fewer bits (fused-dequant, weight-only), and why it is wrong.
    """

    layer: str
    precision: str
    kernel: str
    detail: str = ""


class Runner(Protocol):
    """An opened engine."""

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs for all inputs, by their names in the ONNX graph; axis 0 is the batch.

        Raises EngineError where the feeds are not the graph's inputs.
        """


class Backend(Protocol):
    """A module of this package; what is known of it before it is used is in engines.ENGINES."""

    name: str
    EXTRA: str | None

    def unavailable(self) -> str | None:
        """Why it cannot be used and what to install, or None; does not import the library."""

    def version(self) -> str:
        """The library's version; does not import it."""

    def can_run(self) -> str | None:
        """Why its engines can be built and audited here but not run, or None."""

    def build(self, onnx: Path, out: Path, options: Options = Options()) -> Engine:
        """The engine of the ONNX file, in the folder `out`, which is made if missing.

        An engine already there is returned if the same library made it of the same ONNX and its
        files are intact; anything else there is replaced. Raises EngineError where the library
        refuses the graph.
        """

    def open(
        self, engine: Engine, threads: int | None = None, batch: int | None = None
    ) -> AbstractContextManager[Runner]:
        """A runner on `threads` threads; without it, one per physical core.

        With `batch` it takes feeds of that batch size only, and may be faster for it. Raises
        EngineError where the engine's files are not as they were built.
        """

    def plan(self, engine: Engine) -> EnginePlan | None:
        """Its kernels and what they move, where the library tells."""

    def layers(self, engine: Engine) -> tuple[LayerPrecision, ...]:
        """Each call of a weighted layer, in the graph's order; empty where it cannot be read."""


def missing(package: str, extra: str | None) -> str | None:
    """A sentence if `package` cannot be imported; only looks for it."""
    if find_spec(package):
        return None
    wanted = f'"granplugin[{extra}]"' if extra else package
    return f"{package} is not installed; pip install {wanted}"


def one_line(err: Exception) -> str:
    """A library's message on one line of at most 300 characters."""
    lines = (line.strip() for line in str(err).splitlines())
    told = " ".join(line for line in lines if not line.startswith(("Exception from", "Check '")))
    return textwrap.shorten(told or str(err), 300, placeholder=" ...")
