"""What TensorRT and TensorRT-RTX share: one code path, since their Python APIs are the same.

The engine is a folder: model.engine, its plan as the library wrote it, the build's log, and
engine.json, which says what it was made of and for. TensorRT-RTX builds without a GPU, and then
the plan is all there is to learn from; running takes one, and a torch with CUDA.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from onnx import load as load_onnx

from granplugin.backends import nvidia_build
from granplugin.backends.base import Engine, LayerPrecision, one_line
from granplugin.backends.engine_plan import EnginePlan, read_inspector_json, read_layers_text
from granplugin.backends.kernels import layer_precisions
from granplugin.backends.nvidia_build import Options
from granplugin.errors import EngineError

_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_DEVICE = "cuda"
_LIMITS = ("seconds", "memory_mb")


def version(distributions: tuple[str, ...]) -> str:
    """That of the first of these that is installed."""
    for name in distributions:
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    raise metadata.PackageNotFoundError(distributions[0])


def can_run(library: str) -> str | None:
    """Why an engine of this library cannot run on this machine, or None."""
    try:
        ctypes.CDLL("nvcuda.dll" if hasattr(ctypes, "WinDLL") else "libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver on this machine"
    import torch

    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is built without CUDA; install one that has it"
    if not torch.cuda.is_available():
        return "the NVIDIA driver finds no GPU that torch can use; nvidia-smi may say why"
    if library == "tensorrt_rtx":
        target = "SM{}{}".format(*torch.cuda.get_device_capability())
        targets = import_module(library).ComputeCapability.__members__
        if target not in targets:
            return f"{torch.cuda.get_device_name()} is {target.lower()}, which it has no target for"
    return None


def build(library: str, version: str, onnx: Path, out: Path, options: Options | None) -> Engine:
    """Build in a process of its own, or return what is in `out` if it was built of the same ONNX by
    the same version for the same options (on the same GPU, where that matters) and is intact.
    Raises EngineError as `run_build`, and for an option or a file the library does not take; what
    is in `out` then stays.
    """
    # What only tells of itself is built for one size, so that it tells how large its tensors are.
    options = options or Options(min_batch=None if can_run(library) else 1)
    what_for = {key: value for key, value in asdict(options).items() if key not in _LIMITS}
    made_of = {
        "form": 2,
        "library": library,
        "version": version,
        "gpu": _gpu() if library == "tensorrt" else None,
        "onnx_sha256": _sha256(onnx),
        "options": json.loads(json.dumps(what_for)),  # tuples become lists, as in the file
    }
    card = _intact_card(out)
    if card is None or {key: card.get(key) for key in made_of} != made_of:
        _check(library, options)
        nodes = weighted_nodes(library, onnx)
        out.parent.mkdir(parents=True, exist_ok=True)
        outer = Path(mkdtemp(dir=out.parent, prefix=".making-"))
        scratch = outer / out.name
        scratch.mkdir()
        try:
            told = nvidia_build.run_build(library, onnx, scratch, options)
            files = [nvidia_build.ENGINE, _plan_file(scratch)]
            hashes = {file: _sha256(scratch / file) for file in files}
            card = made_of | told | {"layers": nodes, "files_sha256": hashes}
            (scratch / "engine.json").write_text(json.dumps(card, indent=1), encoding="utf-8")
            if out.exists():
                shutil.rmtree(out)
            scratch.rename(out)
        finally:
            shutil.rmtree(outer, ignore_errors=True)
    size = (out / nvidia_build.ENGINE).stat().st_size
    return Engine(library, out, size, card["build_seconds"], card["version"])


def plan(engine: Engine) -> EnginePlan:
    """What the engine does. Raises EngineError where its files are not as they were built."""
    _card(engine)
    return _read_plan(engine)


def _read_plan(engine: Engine) -> EnginePlan:
    file = _plan_file(engine.path)
    text = (engine.path / file).read_text(encoding="utf-8")
    return read_layers_text(text) if file.endswith(".txt") else read_inspector_json(text)


def layers(engine: Engine) -> tuple[LayerPrecision, ...]:
    """A layer is int8 (or fp8) where every kernel that multiplies for it reads its input and its
    weight in that type; unknown where the plan has no such kernel, or does not tell.
    """
    listed = _card(engine)["layers"]
    return layer_precisions(engine.backend, listed, _read_plan(engine))


@contextmanager
def open(engine: Engine) -> Iterator[_Runner]:
    """A runner on the first GPU. Raises EngineError where there is none, and where the engine is
    not as it was built, or of another version or GPU.
    """
    _card(engine)
    if reason := can_run(engine.backend):
        raise EngineError(f"{engine.backend} cannot run here: {reason}")
    import torch

    trt = import_module(engine.backend)
    logger = _errors_of(trt)
    runtime = trt.Runtime(logger)
    loaded = runtime.deserialize_cuda_engine((engine.path / nvidia_build.ENGINE).read_bytes())
    context = loaded and loaded.create_execution_context()
    if context is None:
        told = logger.told[-1] if logger.told else "it gave no reason"
        raise EngineError(
            f"{engine.backend} cannot open {engine.path.name}: {one_line(ValueError(told))}"
        )
    # The default stream would make TensorRT synchronize more often.
    yield _Runner(engine, trt, logger, loaded, context, torch.cuda.Stream())


@dataclass(frozen=True)
class _Runner:
    engine: Engine
    trt: Any
    logger: Any
    loaded: Any
    context: Any
    stream: Any

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        import torch

        inputs, outputs = self._io()
        if feeds.keys() != set(inputs):
            raise self._refused(f"its inputs are {sorted(inputs)}, not {sorted(feeds)}")
        with torch.cuda.stream(self.stream):
            held = {}
            for name, array in feeds.items():
                wanted = self.trt.nptype(self.loaded.get_tensor_dtype(name))
                if array.dtype != wanted:
                    raise self._refused(f"input {name!r} is {array.dtype}, not {wanted.__name__}")
                held[name] = torch.from_numpy(np.ascontiguousarray(array)).to(_DEVICE)
                if not self.context.set_input_shape(name, array.shape):
                    # A graph without dynamic sizes has no profile.
                    profile = self.loaded.get_tensor_profile_shape(name, 0)
                    largest = [self.loaded.get_tensor_shape(name), *profile][-1]
                    raise self._refused(
                        f"input {name!r} has shape {list(array.shape)}; it was built for up to "
                        f"{list(largest)}"
                    )
            if missing := self.context.infer_shapes():
                raise self._refused(f"it needs more inputs: {missing}")
            for name in outputs:
                dtype = np.dtype(self.trt.nptype(self.loaded.get_tensor_dtype(name)))
                kind = torch.from_numpy(np.empty(0, dtype)).dtype
                shape = tuple(self.context.get_tensor_shape(name))
                held[name] = torch.empty(shape, dtype=kind, device=_DEVICE)
            for name, tensor in held.items():
                self.context.set_tensor_address(name, tensor.data_ptr())
            done = self.context.execute_async_v3(self.stream.cuda_stream)
            self.stream.synchronize()
        if not done:
            raise self._refused(self.logger.told[-1] if self.logger.told else "it gave no reason")
        return {name: held[name].cpu().numpy() for name in outputs}

    def _io(self) -> tuple[list[str], list[str]]:
        names = [self.loaded.get_tensor_name(index) for index in range(self.loaded.num_io_tensors)]
        mode = self.trt.TensorIOMode.INPUT
        inputs = [name for name in names if self.loaded.get_tensor_mode(name) == mode]
        return inputs, [name for name in names if name not in inputs]

    def _refused(self, reason: str) -> EngineError:
        where = f"{self.engine.backend} cannot run {self.engine.path.name}"
        return EngineError(f"{where}: {one_line(ValueError(reason))}")


def _errors_of(trt: Any) -> Any:
    class Logger(trt.ILogger):
        """Keeps errors; nothing is printed."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.told: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.told.append(message)

    return Logger()


def _check(library: str, options: Options) -> None:
    """Refuse options that this library does not have."""
    if library != "tensorrt_rtx":
        if options.targets:
            raise EngineError(f"{library} builds for the GPU it runs on; leave targets out")
        return
    if options.timing_cache is not None:
        # It "forces the AOT step to query your system for a GPU" (TensorRT-RTX release notes).
        raise EngineError(f"{library} builds without timing; leave timing_cache out")
    known = [name.lower() for name in import_module(library).ComputeCapability.__members__]
    for target in options.targets:
        if target not in known or not target.startswith("sm"):
            told = ", ".join(sorted(name for name in known if name.startswith("sm")))
            raise EngineError(f"{library} has no target {target!r}; it has {told}")


def weighted_nodes(library: str, onnx: Path) -> list[tuple[str, str, int]]:
    """(module path, node name, values of the weight) of each call of a weighted layer."""
    try:
        graph = load_onnx(onnx, load_external_data=False).graph
    except DecodeError as err:
        raise EngineError(f"{library} refused {onnx.name}: {one_line(err)}") from err
    constant = {tensor.name for tensor in graph.initializer} | {""}
    values = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if constant.issuperset(node.input):
            constant.update(node.output)
            # Q/DQ and Transpose in front of a weight leave as many values as there are.
            values |= {name: values.get(node.input[0], 0) for name in node.output if node.input}
        elif node.op_type in _WEIGHTED and node.input[1] in constant:
            found.append((node.name.partition("/")[0], node.name, values[node.input[1]]))
    return found


def _card(engine: Engine) -> dict[str, Any]:
    card = _intact_card(engine.path)
    if card is None:
        raise EngineError(
            f"{engine.path}: the engine's files are not as they were built; delete the folder "
            "and build it again"
        )
    return card


def _intact_card(folder: Path) -> dict[str, Any] | None:
    """engine.json, where the files are those it was written for."""
    try:
        card = json.loads((folder / "engine.json").read_text(encoding="utf-8"))
        hashes = card["files_sha256"]
        intact = bool(hashes) and hashes == {file: _sha256(folder / file) for file in hashes}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return card if intact else None


def _plan_file(folder: Path) -> str:
    """Raises EngineError where the library wrote no plan."""
    for file in nvidia_build.LAYERS:
        if (folder / file).is_file():
            return file
    raise EngineError(f"{folder}: the build left no plan of the engine")


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
