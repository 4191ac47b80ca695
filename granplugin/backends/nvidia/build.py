"""Building an engine with TensorRT or TensorRT-RTX in a process of its own.

The compiler can crash (SIGSEGV is known), abort, hang or take all memory. `python -m` of this
module builds what the request, its one argument, says: model.engine, the plan (layers.txt or
layers.json), log.txt, and last of all build.json, which says how it went.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from time import monotonic, perf_counter, sleep
from types import ModuleType
from typing import Any

from granplugin.backends import base
from granplugin.backends.base import BuildFailed, Shape
from granplugin.backends.nvidia.libraries import LIBRARIES, Library
from granplugin.crashes import LACKING, die_with_parent
from granplugin.errors import EngineError, LackError
from granplugin.machine import lacking
from granplugin.translate import one_line

ENGINE = "model.engine"
LAYERS = ("layers.txt", "layers.json")
"""The plan as the library writes it: TensorRT-RTX's message, or the engine inspector's JSON."""


@dataclass(frozen=True)
class Options(base.Options):
    """What TensorRT and TensorRT-RTX are built for.

    `shapes` gives an input's (min, opt, max) shapes; any other input with a dynamic batch is built
    for `min_batch` to `batch` samples. Without `min_batch` that is for 1 to `batch` samples where
    the engine can run, and for `batch` alone where it cannot. `targets` are compute capabilities;
    without them it builds for all it can. `timing_cache` is a file.
    """

    shapes: Mapping[str, tuple[Shape, Shape, Shape]] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    optimization_level: int | None = None
    workspace_mb: int | None = None
    timing_cache: str | None = None


class _Refused(EngineError):
    """The library's own reason, on one line; `node` is what it is about, where it says."""

    def __init__(self, reason: str, node: str = "") -> None:
        super().__init__(reason)
        self.node = node


def run_build(library: str, onnx: Path, folder: Path, options: Options) -> dict[str, Any]:
    """Build `onnx` in `folder`, which exists, and say what it took: `build_seconds` (parsing and
    building) and `peak_mb` (resident memory of the process, None where the system does not say).

    Raises BuildFailed, on one line, for a graph that the library refuses, a crash, and a build over
    its limits; it has the process's exit as its cause. LackError for what the machine lacks.
    """
    request = {
        "library": library,
        "onnx": str(onnx.resolve()),
        "folder": str(folder.resolve()),
        **asdict(options),
        "parent": os.getpid(),
    }
    command = [sys.executable, "-P", "-m", __name__, json.dumps(request)]
    # The same modules as here, and none of the current folder.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with TemporaryFile() as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )
        try:
            over = _wait(process, options)
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        printed = output.read().decode(errors="replace").strip().splitlines()
    report = folder / "build.json"
    ended = not over and process.returncode >= 0 and report.exists()
    told = json.loads(report.read_bytes()) if ended else {}
    report.unlink(missing_ok=True)
    if "build_seconds" in told:
        return told
    cause = subprocess.CalledProcessError(process.returncode, command)
    start = f"{library} could not build {onnx.name}"
    if lack := _lack(process.returncode, told, over, printed, options):
        raise LackError(f"{start}: {lack}") from cause
    if "refused" in told:
        problem = f"{library} refused {onnx.name}: {told['refused']}"
    else:
        problem = f"{start}: {over.said if over else _ending(process.returncode, printed)}"
    raise BuildFailed(problem, told.get("nodes", ())) from cause


def _lack(
    code: int,
    told: Mapping[str, Any],
    over: _Over | None,
    printed: Sequence[str],
    options: Options,
) -> str | None:
    """What the machine lacked for a build that failed; None where that is not what it failed for."""
    last = printed[-1] if printed else ""
    if over is not None:
        # Whoever sets a limit asks for what is in the graph that goes over it.
        return over.said if over.memory and options.memory_mb is None else None
    if code == LACKING:
        return last
    if code == -signal.SIGKILL:
        return "its process was killed, most likely for want of memory"
    return lacking(RuntimeError(told.get("refused", last)))


@dataclass(frozen=True)
class _Over:
    """A limit that a build goes over: that of memory, or of time."""

    memory: bool
    said: str


def _wait(process: subprocess.Popen[bytes], options: Options) -> _Over | None:
    """Until the process ends, or the limit that it goes over."""
    end = monotonic() + options.seconds
    limit = options.memory_mb or 0.9 * _meminfo("/proc/meminfo", "MemAvailable")
    while process.poll() is None:
        if monotonic() > end:
            told = f"it took more than {options.seconds:g} s; raise build.seconds, or build less"
            return _Over(False, told)
        if limit and (used := _meminfo(f"/proc/{process.pid}/status", "VmRSS")) > limit:
            told = f"it took {used:.0f} MB of memory, and {limit:.0f} MB is the limit"
            return _Over(True, told)
        sleep(0.02)
    return None


def _meminfo(path: str, key: str) -> float:
    """MB; 0 where the system does not say."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:")), 0)


def _ending(code: int, printed: list[str]) -> str:
    last = f"; its last words: {printed[-1][:200]}" if printed else ""
    if code >= 0:
        return f"its process ended with code {code}{last}"
    return f"the compiler crashed ({signal.Signals(-code).name}){last}"


def answer(request: Mapping[str, Any]) -> bool:
    """Do what a request says, in this process, and leave build.json; False where it is refused."""
    if hasattr(signal, "alarm"):
        signal.alarm(math.ceil(request["seconds"]) + 1)  # should the parent not live to see it end
    trt = import_module(request["library"])
    try:
        result = _build(trt, request)
    except _Refused as err:
        result = {"refused": str(err), "nodes": [err.node] if err.node else []}
    (Path(request["folder"]) / "build.json").write_text(json.dumps(result), encoding="utf-8")
    return "refused" not in result


def _build(trt: ModuleType, request: Mapping[str, Any]) -> dict[str, Any]:
    folder = Path(request["folder"])
    start = perf_counter()
    library = LIBRARIES[request["library"]]
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt, library))
    parser = trt.OnnxParser(network, logger)
    try:
        parsed = parser.parse_from_file(request["onnx"])
        if not parsed:
            raise _parser_error(parser)
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        _set_options(trt, config, request)
        _set_shapes(builder, network, config, request)
        cache = None if request["timing_cache"] is None else _timing_cache(config, request)
        built = builder.build_serialized_network(network, config)
        if built is None:
            raise _named(logger.last_error(), network)
    finally:
        (folder / "log.txt").write_text("\n".join(logger.problems), encoding="utf-8")
    seconds = perf_counter() - start
    (folder / ENGINE).write_bytes(built)
    if cache is not None:
        cache = config.get_timing_cache()
        kept = Path(request["timing_cache"])
        temporary = kept.with_name(f".{kept.name}.{os.getpid()}")
        temporary.write_bytes(cache.serialize())
        os.replace(temporary, kept)
    if library.logs_plan:
        (folder / "layers.txt").write_text(logger.layers, encoding="utf-8")
    else:
        runtime = trt.Runtime(logger)
        loaded = runtime.deserialize_cuda_engine(built)
        if loaded is None:
            raise _Refused(logger.last_error())
        inspector = loaded.create_engine_inspector()
        information = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        (folder / "layers.json").write_text(information, encoding="utf-8")
    peak = _meminfo("/proc/self/status", "VmHWM")
    return {"build_seconds": seconds, "peak_mb": round(peak) or None}


def _network_flags(trt: ModuleType, library: Library) -> int:
    """Strongly typed, which some versions are only when told so, and the others always."""
    if int(trt.__version__.partition(".")[0]) >= library.typed_from:
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _set_options(trt: ModuleType, config: Any, request: Mapping[str, Any]) -> None:
    if request["targets"]:
        config.num_compute_capabilities = len(request["targets"])
        for index, target in enumerate(request["targets"]):
            capability = getattr(trt.ComputeCapability, target.upper())
            if not config.set_compute_capability(capability, index):
                raise _Refused(f"target {target} cannot be set")
    if request["optimization_level"] is not None:
        level = request["optimization_level"]
        config.builder_optimization_level = level
        if config.builder_optimization_level != level:
            raise _Refused(f"it has no optimization level {level}")
    if request["workspace_mb"] is not None:
        pool = trt.MemoryPoolType.WORKSPACE
        config.set_memory_pool_limit(pool, request["workspace_mb"] * 2**20)


def profile_shapes(
    inputs: Mapping[str, Shape], given: Mapping[str, Any], batch: int, min_batch: int | None
) -> dict[str, tuple[Shape, Shape, Shape]]:
    """Input -> (min, opt, max) shapes, of the inputs with a size that is -1 in the graph: as given,
    or else `min_batch` (None: `batch`) to `batch` samples. Raises EngineError where it cannot be
    built for them.
    """
    if stray := given.keys() - inputs.keys():
        raise _Refused(f"shapes are given for {min(stray)!r}, which is not one of its inputs")
    profile = {}
    for name, shape in inputs.items():
        if -1 not in shape:
            continue
        if name in given:
            low, opt, high = (tuple(each) for each in given[name])
        elif -1 in shape[1:]:
            raise _Refused(
                f"input {name!r} is dynamic in more than its batch, {list(shape)}; give its "
                "min, opt and max shapes"
            )
        else:
            opt = high = (batch, *shape[1:])
            low = (min_batch or batch, *shape[1:])
        ordered = len(low) == len(opt) == len(high) == len(shape) and all(
            0 < sizes[0] <= sizes[1] <= sizes[2] and of in (-1, sizes[1])
            for *sizes, of in zip(low, opt, high, shape, strict=True)
        )
        if not ordered:
            raise _Refused(
                f"input {name!r} is {list(shape)} in the graph; it cannot be built for min, "
                f"opt and max shapes {list(low)}, {list(opt)}, {list(high)}"
            )
        profile[name] = (low, opt, high)
    return profile


def _set_shapes(builder: Any, network: Any, config: Any, request: Mapping[str, Any]) -> None:
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    inputs = {tensor.name: tuple(tensor.shape) for tensor in tensors}
    shapes = profile_shapes(inputs, request["shapes"], request["batch"], request["min_batch"])
    if not shapes:
        return
    profile = builder.create_optimization_profile()
    for name, (low, opt, high) in shapes.items():
        profile.set_shape(name, low, opt, high)
    config.add_optimization_profile(profile)
    if all(low == opt == high for low, opt, high in shapes.values()):
        for tensor in tensors:
            if tensor.name in shapes:
                tensor.shape = shapes[tensor.name][1]


def _timing_cache(config: Any, request: Mapping[str, Any]) -> Any:
    path = Path(request["timing_cache"])
    kept = path.read_bytes() if path.exists() else b""
    # One of another version or GPU is refused; this build's takes its place.
    for blob in (kept, b""):
        cache = config.create_timing_cache(blob)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
    raise _Refused(f"it makes no timing cache for {path}")


def _parser_error(parser: Any) -> _Refused:
    error = parser.get_error(0)
    node = " ".join(filter(None, [error.node_name(), f"({error.node_operator()})"]))
    where = f"node {node}: " if error.node_operator() else ""
    # What it has no importer for, it takes for a plugin; some importers ask for one, or just fail.
    unknown = re.search("plugin not found|plugin registry|^false$", error.desc(), re.IGNORECASE)
    told = "it does not know this operator" if unknown else error.desc()
    return _Refused(one_line(ValueError(where + told)), error.node_name())


def _named(message: str, network: Any) -> _Refused:
    """An error of the builder, with the layer it is about where the message has its name: the
    parsers name layers after their ONNX nodes."""
    names = (network.get_layer(index).name for index in range(network.num_layers))
    named = max((name for name in names if name in message), key=len, default="")
    told = f"layer {named}: {message}" if named else message
    return _Refused(one_line(ValueError(told)), named)


def _logger(trt: Any) -> Any:
    severities = trt.ILogger.Severity

    class Logger(trt.ILogger):
        """Keeps what went wrong, and the one message that is the plan."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.layers = ""
            self.problems: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity == severities.VERBOSE:
                if message.startswith("Layers:\n"):
                    self.layers = message
            elif severity != severities.INFO:
                self.problems.append(f"{severity.name}: {message}")

        def last_error(self) -> str:
            errors = [line for line in self.problems if not line.startswith("WARNING")]
            return errors[-1].partition(": ")[2] if errors else "it gave no reason"

    return Logger()


def main(request: Mapping[str, Any]) -> int:
    """Answer a request; the exit code."""
    die_with_parent(request["parent"])
    try:
        return not answer(request)
    except (OSError, MemoryError) as err:
        if said := lacking(err):
            print(said, file=sys.stderr)
            return LACKING
        raise


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
