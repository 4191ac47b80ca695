"""Running an engine of TensorRT or TensorRT-RTX: outputs, latency on the GPU, time per layer.

Needs a GPU and a torch with CUDA, whose memory, streams, events and graphs are used.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from granplugin.backends.base import (
    DeviceRunner,
    Engine,
    Feeds,
    Input,
)
from granplugin.backends.nvidia.build import ENGINE
from granplugin.backends.nvidia.libraries import LIBRARIES
from granplugin.errors import EngineError
from granplugin.translate import errors_of, one_line, translated

log = logging.getLogger(__name__)

DEVICE = "cuda"
PROFILED_CALLS = 20


def open_runner(engine: Engine, trt: Any) -> Runner:
    """The engine on the first GPU. Raises EngineError where the library cannot open it."""
    import torch

    said = f"{engine.backend} cannot open {engine.path.name}"
    with translated(said, _errors(trt)):
        logger = _logger(trt)
        runtime = trt.Runtime(logger)
        loaded = runtime.deserialize_cuda_engine((engine.path / ENGINE).read_bytes())
        context = loaded and _context(trt, engine, loaded)
        if context is None:
            told = logger.told[-1] if logger.told else "it gave no reason"
            raise EngineError(f"{said}: {one_line(ValueError(told))}")
        # The default stream would make TensorRT synchronize more often.
        stream = torch.cuda.Stream()
        return Runner(engine, _inputs(trt, loaded), trt, logger, loaded, context, stream)


@cache
def _errors(trt: Any) -> tuple[type[Exception], ...]:
    """The libraries name no exception class; torch's, of the GPU, are RuntimeErrors. A TypeError is
    a type that NumPy does not have."""
    return (*errors_of(trt), TypeError)


def _inputs(trt: Any, loaded: Any) -> tuple[Input, ...]:
    names = [loaded.get_tensor_name(index) for index in range(loaded.num_io_tensors)]
    return tuple(
        Input(
            frozenset({name}),
            np.dtype(trt.nptype(loaded.get_tensor_dtype(name))),
            tuple(loaded.get_tensor_shape(name)),
        )
        for name in names
        if loaded.get_tensor_mode(name) == trt.TensorIOMode.INPUT
    )


def _context(trt: Any, engine: Engine, loaded: Any) -> Any:
    if not LIBRARIES[engine.backend].compiles_at_run_time:
        return loaded.create_execution_context()
    # By default it compiles kernels for dynamic shapes behind one's back while others run: a
    # latency would change under measurement, and nothing could be captured.
    runtime_config = loaded.create_runtime_config()
    runtime_config.dynamic_shapes_kernel_specialization_strategy = (
        trt.DynamicShapesKernelSpecializationStrategy.EAGER
    )
    return loaded.create_execution_context(runtime_config)


@dataclass(frozen=True)
class Runner(DeviceRunner):
    """An engine with its context, on a stream of its own."""

    trt: Any
    logger: Any
    loaded: Any
    context: Any
    stream: Any

    def _infer(self, feeds: Feeds) -> dict[str, np.ndarray]:
        with self.translated():
            held = self._bind(feeds)
            self._enqueue()
            self.stream.synchronize()
            return {
                name: tensor.cpu().numpy() for name, tensor in held.items() if name not in feeds
            }

    def repeated(self, feeds: Feeds) -> Resident:
        """The same call over and over, its data on the device."""
        self.check(feeds)
        with self.translated():
            resident = Resident(self, self._bind(feeds))
            resident()
        return resident

    def profile(self, feeds: Feeds, folder: Path) -> None:
        self.check(feeds)
        with self.translated():
            held = self._bind(feeds)
            self._enqueue()  # allocations and lazy loading
            self.stream.synchronize()
            profiler = _profiler_of(self.trt)
            self.context.profiler = profiler
            for _ in range(PROFILED_CALLS):
                self._enqueue()
                self.stream.synchronize()
            del held
            inspector = self.loaded.create_engine_inspector()
            inspector.execution_context = self.context  # shapes, where they are dynamic
            layers = inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)
        profile = profile_json(profiler.told, PROFILED_CALLS)
        (folder / "profile.json").write_text(json.dumps(profile, indent=1), encoding="utf-8")
        (folder / "layers.json").write_text(layers, encoding="utf-8")

    def translated(self) -> AbstractContextManager[None]:
        """Where the library or the GPU is called."""
        return translated(self._said, _errors(self.trt))

    def _bind(self, feeds: Feeds) -> dict[str, Any]:
        """Inputs and outputs on the device, which the context reads and writes from now on; they
        live as long as the caller holds them."""
        import torch

        with torch.cuda.stream(self.stream):
            held = {}
            for name, array in feeds.items():
                held[name] = torch.from_numpy(np.ascontiguousarray(array)).to(DEVICE)
                if not self.context.set_input_shape(name, array.shape):
                    # A graph without dynamic sizes has no profile.
                    profile = self.loaded.get_tensor_profile_shape(name, 0)
                    largest = [self.loaded.get_tensor_shape(name), *profile][-1]
                    raise self.refusal(
                        f"input {name!r} has shape {list(array.shape)}; it was built for up to "
                        f"{list(largest)}"
                    )
            if missing := self.context.infer_shapes():
                raise self.refusal(f"it needs more inputs: {missing}")
            for name in self._outputs():
                dtype = np.dtype(self.trt.nptype(self.loaded.get_tensor_dtype(name)))
                kind = torch.from_numpy(np.empty(0, dtype)).dtype
                shape = tuple(self.context.get_tensor_shape(name))
                held[name] = torch.empty(shape, dtype=kind, device=DEVICE)
            for name, tensor in held.items():
                self.context.set_tensor_address(name, tensor.data_ptr())
        self.stream.synchronize()
        return held

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(self.stream.cuda_stream):
            raise self.refusal(self.logger.told[-1] if self.logger.told else "it gave no reason")

    def _outputs(self) -> list[str]:
        names = [self.loaded.get_tensor_name(index) for index in range(self.loaded.num_io_tensors)]
        return [
            name
            for name in names
            if self.loaded.get_tensor_mode(name) == self.trt.TensorIOMode.OUTPUT
        ]


@dataclass(frozen=True)
class Resident:
    """A call with its data on the device, timed without any transfer (timing.Timed)."""

    runner: Runner
    held: Mapping[str, Any]
    graph: Any = None
    """A captured CUDA graph of the call, which is replayed in its place."""

    def __call__(self) -> None:
        with self.runner.translated():
            self._launch()
            self.runner.stream.synchronize()

    def timed(self, calls: int) -> float:
        """Mean ms of `calls` calls in a row, between two CUDA events."""
        import torch

        with self.runner.translated():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(self.runner.stream)
            for _ in range(calls):
                self._launch()
            end.record(self.runner.stream)
            end.synchronize()
            return start.elapsed_time(end) / calls

    def captured(self) -> Resident | None:
        """The same call as a CUDA graph: one launch for all kernels. None, and the log says why,
        where the engine does something that cannot be captured."""
        import torch

        runner = self.runner
        if LIBRARIES[runner.engine.backend].compiles_at_run_time:
            context = runner.context
            if not context.is_stream_capturable(runner.stream.cuda_stream):
                log.info("%s: no CUDA graph: it says it cannot be captured", runner.engine.path)
                return None
        self()  # shapes are settled and lazy work is done before a capture
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=runner.stream):
                runner._enqueue()
        except (RuntimeError, EngineError) as err:
            log.info("%s: no CUDA graph: %s", runner.engine.path, one_line(err))
            return None
        return Resident(runner, self.held, graph)

    def _launch(self) -> None:
        import torch

        if self.graph is None:
            self.runner._enqueue()
        else:
            with torch.cuda.stream(self.runner.stream):
                self.graph.replay()


def profile_json(told: Mapping[str, list[float]], calls: int) -> list[dict[str, Any]]:
    """Layer -> ms of each call, in the schema of trtexec's --exportProfile."""
    total = sum(map(sum, told.values())) or 1.0
    layers = [
        {
            "name": name,
            "timeMs": sum(times),
            "averageMs": sum(times) / calls,
            "medianMs": median(times),
            "percentage": 100 * sum(times) / total,
        }
        for name, times in told.items()
    ]
    return [{"count": calls}, *layers]


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        """Keeps errors; nothing is printed."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.told: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.told.append(message)

    return Logger()


def _profiler_of(trt: Any) -> Any:
    class Profiler(trt.IProfiler):
        """Keeps each layer's time of each call."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.told: dict[str, list[float]] = defaultdict(list)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.told[layer_name].append(ms)

    return Profiler()
