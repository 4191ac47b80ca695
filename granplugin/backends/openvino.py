"""OpenVINO on the CPU: real INT8 kernels, accuracy and latency where there is no NVIDIA GPU.

The engine is a folder: the model as OpenVINO IR (model.xml, model.bin), which is compiled when it
is opened, and engine.json with what it was made of. OpenVINO's compiled blobs open 0.1-0.3 s
sooner, but cannot be given a static batch and are loaded without a check of their content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from granplugin.backends.base import Engine, LayerPrecision, Options, missing, one_line
from granplugin.errors import EngineError, ModelError
from granplugin.graph.read.graph import ReadGraph, read

if TYPE_CHECKING:
    from openvino import CompiledModel, InferRequest, Model

name = "openvino"
EXTRA = "openvino"

_FILES = ("model.xml", "model.bin")
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_KERNELS = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}
# What it adds to the name of a node it has split, of a bias or a multiplication by scales.
_SUFFIXES = ("/DequantizationMultiply", "/WithoutBiases")
# The words of runtimePrecision; a kernel is named by the type of its input.
_PRECISIONS = {"u8": "int8", "i8": "int8", "f32": "float"}


def unavailable() -> str | None:
    return missing("openvino", EXTRA)


def version() -> str:
    return metadata.version("openvino")


def can_run() -> None:
    """It runs wherever it is installed."""


def plan(engine: Engine) -> None:
    """It tells of its layers, not of what they move."""


def build(onnx: Path, out: Path, options: Options = Options()) -> Engine:
    """Converts and, to know that it can be, compiles; `bytes` are those of the IR."""
    made_of = {"version": version(), "onnx_sha256": _sha256(onnx)}
    card = _intact_card(out)
    if card is None or {key: card[key] for key in made_of} != made_of:
        start = perf_counter()
        import openvino as ov

        try:
            graph = read(onnx)
            model = ov.Core().read_model(onnx)
            _compile(model, None, None)
            out.mkdir(parents=True, exist_ok=True)
            # The card is removed first and written last: files without it are no engine.
            (out / "engine.json").unlink(missing_ok=True)
            ov.save_model(model, out / "model.xml", compress_to_fp16=False)
        except (ModelError, RuntimeError) as err:
            raise EngineError(f"openvino refused {onnx.name}: {one_line(err)}") from err
        card = made_of | {
            "build_seconds": perf_counter() - start,
            "files_sha256": {file: _sha256(out / file) for file in _FILES},
            "outputs": list(graph.outputs),
            "layers": _known_as(graph),
        }
        (out / "engine.json").write_text(json.dumps(card, indent=1), encoding="utf-8")
    size = sum((out / file).stat().st_size for file in _FILES)
    return Engine(name, out, size, card["build_seconds"], card["version"])


@contextmanager
def open(engine: Engine, threads: int | None = None, batch: int | None = None) -> Iterator[_Runner]:
    """One compiled model, with a dynamic batch or with a static one of size `batch`. The static
    one took 0.7-0.8 of the time for a MobileNetV2 on 32x32 images, 0.9-1.1 for nets at 224.
    """
    card, compiled = _open(engine, threads, batch)
    inputs = tuple(frozenset(port.get_names()) for port in compiled.inputs)
    yield _Runner(engine.path, compiled.create_infer_request(), inputs, tuple(card["outputs"]))


def layers(engine: Engine) -> tuple[LayerPrecision, ...]:
    """From OpenVINO's runtime model at batch 1.

    A kernel lists the nodes that were fused into it. A convolution with a batch norm behind it is
    there under the batch norm's name only, and a linear layer under its bias's or the graph
    output's, so a layer is also known by what directly follows it.
    """
    card, compiled = _open(engine, None, 1)
    kernels = {}
    for op in compiled.get_runtime_model().get_ops():
        info = {key: value.astype(str) for key, value in op.get_rt_info().items()}
        if info["layerType"] in _KERNELS:
            precision = _PRECISIONS.get(info["runtimePrecision"], "unknown")
            for node in info["originalLayersNames"].split(","):
                for suffix in _SUFFIXES:
                    node = node.removesuffix(suffix)
                kernels[node] = (precision, info["primitiveType"])
    return tuple(
        LayerPrecision(
            layer, *next((kernels[node] for node in nodes if node in kernels), ("unknown", ""))
        )
        for layer, nodes in card["layers"]
    )


@dataclass(frozen=True)
class _Runner:
    path: Path
    request: InferRequest
    inputs: tuple[frozenset[str], ...]
    """The names of each: with a cast behind it, it has that one's too."""
    outputs: tuple[str, ...]

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        # OpenVINO would take what is left in an input from the last call.
        if len(feeds) != len(self.inputs) or any(map(feeds.keys().isdisjoint, self.inputs)):
            names = sorted(min(names) for names in self.inputs)
            raise EngineError(
                f"openvino cannot run {self.path.name}: its inputs are {names}, not {sorted(feeds)}"
            )
        try:
            results = self.request.infer(feeds, share_inputs=True)
        except RuntimeError as err:
            raise EngineError(f"openvino cannot run {self.path.name}: {one_line(err)}") from err
        return {output: results[output] for output in self.outputs}


def _open(
    engine: Engine, threads: int | None, batch: int | None
) -> tuple[dict[str, Any], CompiledModel]:
    import openvino as ov

    card = _intact_card(engine.path)
    if card is None:
        raise EngineError(
            f"{engine.path}: the engine's files are not as they were built; delete the folder "
            "and build it again"
        )
    try:
        model = ov.Core().read_model(engine.path / "model.xml")
        return card, _compile(model, threads, batch)
    except RuntimeError as err:
        raise EngineError(f"openvino refused {engine.path.name}: {one_line(err)}") from err


def _compile(model: Model, threads: int | None, batch: int | None) -> CompiledModel:
    import openvino as ov

    if batch is not None:
        shapes = {}
        for port in model.inputs:
            shapes[port] = port.get_partial_shape()
            if len(shapes[port]) and shapes[port][0].is_dynamic:
                shapes[port][0] = batch
        model.reshape(shapes)
    properties = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "LOG_LEVEL": "LOG_NONE",
    }
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = threads
    return ov.Core().compile_model(model, "CPU", properties)


def _intact_card(folder: Path) -> dict[str, Any] | None:
    """engine.json, where the files are those it was written for."""
    try:
        card = json.loads((folder / "engine.json").read_text(encoding="utf-8"))
        intact = {file: _sha256(folder / file) for file in _FILES} == card["files_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return card if intact else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _known_as(graph: ReadGraph) -> list[tuple[str, list[str]]]:
    """Each weighted node's module path, and the names OpenVINO may keep for its kernel: its own,
    and those of a batch norm, bias or renaming that alone reads its output."""
    found = []
    for product in graph.products:
        if product.weight is None:
            continue
        chain = [product.node]
        while (
            len(behind := graph.readers(chain[-1].output[0])) == 1
            and behind[0].op_type in ("BatchNormalization", "Add", "Identity")
            and graph.constant.issuperset(set(behind[0].input) - {chain[-1].output[0]})
        ):
            chain.append(behind[0])
        names = [name for link in chain for name in (link.name, link.output[0])]
        found.append((product.node.name.partition("/")[0], names))
    return found
