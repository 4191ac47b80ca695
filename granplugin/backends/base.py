"""What every backend has: how an engine is built, opened and read back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from granplugin.backends.engine_plan import EnginePlan
from granplugin.engines import EngineFacts
from granplugin.errors import EngineError
from granplugin.translate import load_library, one_line

# A compiler's process imports this module, and would take longer for numpy than for its library.
if TYPE_CHECKING:
    import numpy as np

Shape = tuple[int, ...]
Feeds: TypeAlias = "dict[str, np.ndarray]"


@dataclass(frozen=True)
class Options:
    """What an engine is built for; a backend that takes more has a class of its own, with a field
    for each key of its facts' `build`.

    `batch` is the samples it is tuned for, and `min_batch` the fewest it must take (None: what the
    backend finds best); one that takes any batch heeds neither. `plan` is the hash of the variant's decisions and
    ranges: an engine of another is not used. A build is ended after `seconds`, or above `memory_mb`
    of resident memory (None: 0.9 of what is free at its start), where it has a process of its own.
    """

    batch: int = 32
    min_batch: int | None = None
    plan: str | None = None
    seconds: float = 600
    memory_mb: int | None = None


ROUNDED = "rounded"
"""Detail of a float LayerPrecision: rounded in the kernel that computes with it, so that nothing of
it is stored, in 8 bits or in float."""


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
    `arithmetic` is what float is computed in, whatever the file says (fp32, bf16, fp16); empty
    where the engine does not tell.
    """

    layer: str
    precision: str
    kernel: str
    detail: str = ""
    arithmetic: str = ""


@dataclass(frozen=True)
class Input:
    """An input of an opened engine. `names` has its name in the ONNX graph, and any other it goes
    by; `shape` has -1 where it takes any size, and is None where not even the rank is known."""

    names: frozenset[str]
    dtype: np.dtype | None
    shape: Shape | None


@dataclass(frozen=True)
class Runner(ABC):
    """An opened engine: feeds are checked here, once for all backends, and computed in `_infer`."""

    engine: Engine
    inputs: tuple[Input, ...]

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """All outputs for all inputs, by their names in the ONNX graph; axis 0 is the batch.

        Raises EngineError where the feeds are not the graph's inputs, by name, type or shape.
        """
        self.check(feeds)
        return self._infer(feeds)

    @abstractmethod
    def _infer(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """As `run`, of feeds that were checked."""

    def repeated(self, feeds: Feeds) -> Callable[[], object]:
        """The same call over and over, to be timed: its feeds are checked once, here."""
        self.check(feeds)
        return partial(self._infer, feeds)

    def check(self, feeds: Feeds) -> None:
        """Raises EngineError where the feeds are not the graph's inputs."""
        inputs = self.inputs
        if len(feeds) != len(inputs) or any(
            map(feeds.keys().isdisjoint, (i.names for i in inputs))
        ):
            names = sorted(min(each.names) for each in inputs)
            raise self.refusal(f"its inputs are {names}, not {sorted(feeds)}")
        for name, array in feeds.items():
            wanted = next(each for each in inputs if name in each.names)
            if wanted.dtype is not None and array.dtype != wanted.dtype:
                raise self.refusal(f"input {name!r} is {array.dtype}, not {wanted.dtype}")
            if wanted.shape is not None and not _fits(array.shape, wanted.shape):
                sizes = ", ".join("any" if size < 0 else str(size) for size in wanted.shape)
                raise self.refusal(
                    f"input {name!r} has shape {list(array.shape)}, and it takes [{sizes}]"
                )

    def refusal(self, reason: str) -> EngineError:
        """The error that this engine cannot run, on one line."""
        return EngineError(f"{self._said}: {one_line(ValueError(reason))}")

    @property
    def _said(self) -> str:
        return f"{self.engine.backend} cannot run {self.engine.path.name}"


@runtime_checkable
class ResidentCall(Protocol):
    """A call with its data on the device, timed without any transfer (timing.Timed)."""

    def __call__(self) -> None: ...

    def timed(self, calls: int) -> float:
        """Mean ms of `calls` calls in a row."""

    def captured(self) -> ResidentCall | None:
        """The same with its launches captured, None where that cannot be."""


@dataclass(frozen=True)
class DeviceRunner(Runner):
    """An opened engine on a GPU (`device` of its facts)."""

    @abstractmethod
    def repeated(self, feeds: Feeds) -> ResidentCall:
        """The same call over and over, its data on the device."""

    @abstractmethod
    def profile(self, feeds: Feeds, folder: Path) -> None:
        """Write layers.json and profile.json, as trtexec's --exportLayerInfo and --exportProfile.

        What is measured so runs layer by layer: no latency of the whole can be read from it.
        """


class Backend(ABC):
    """One engine of ENGINES: `facts` is its entry, `options` the class of what `build` takes."""

    options: type[Options] = Options

    def __init__(self, facts: EngineFacts) -> None:
        self.facts = facts

    @property
    def name(self) -> str:
        return self.facts.name

    def unavailable(self) -> str | None:
        """Why it cannot be used and what to install, or None; does not import the library."""
        if find_spec(self.facts.package):
            return None
        extra = self.facts.extra
        wanted = f'"granplugin[{extra}]"' if extra else self.facts.package
        return f"{self.facts.package} is not installed; pip install {wanted}"

    def version(self) -> str:
        """The library's version; does not import it."""
        return _version(self.facts.distributions)

    def library(self) -> Any:
        """The library, imported. Raises EngineError where it is installed and does not load."""
        return load_library(self.facts.package)

    def can_run(self) -> str | None:
        """Why its engines can be built and audited here but not run, or None: it runs wherever it
        is installed."""
        return None

    @abstractmethod
    def build(self, onnx: Path, out: Path, options: Options | None = None) -> Engine:
        """The engine of the ONNX file, in the folder `out`, which is made if missing.

        An engine already there is returned if the same library made it of the same ONNX and its
        files are intact; anything else there is replaced. Raises EngineError where the library
        refuses the graph.
        """

    @abstractmethod
    def open(
        self, engine: Engine, threads: int | None = None, batch: int | None = None
    ) -> AbstractContextManager[Runner]:
        """A runner (DeviceRunner, where the facts' device is a GPU) on `threads` threads; without
        it, one per physical core.

        With `batch` it takes feeds of that batch size only, and may be faster for it. Raises
        EngineError where the engine's files are not as they were built.
        """

    def engine_plan(self, engine: Engine) -> EnginePlan | None:
        """Its kernels and what they move; None where the facts do not have `tells_plan`."""
        return None

    @abstractmethod
    def layers(self, engine: Engine) -> tuple[LayerPrecision, ...]:
        """Each call of a weighted layer, in the graph's order; empty where it cannot be read."""


def _fits(shape: Shape, wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(
        size == each or each < 0 for size, each in zip(shape, wanted, strict=True)
    )


@cache
def _version(distributions: tuple[str, ...]) -> str:
    """Of the first that is installed; it is asked for nine times in a run, and reads its whole page."""
    from importlib import metadata

    for distribution in distributions:
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(distribution)
    raise metadata.PackageNotFoundError(distributions[0])
