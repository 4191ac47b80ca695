"""OpenVINO on the CPU: real INT8 kernels, accuracy and latency where there is no NVIDIA GPU.

The engine is a folder: the model as OpenVINO IR (model.xml, model.bin), which is compiled when it
is opened, and its card. OpenVINO's compiled blobs open 0.1-0.3 s sooner, but cannot be given a
static batch and are loaded without a check of their content.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from granplugin.backends import base
from granplugin.backends.base import (
    Backend,
    BuildFailed,
    Engine,
    Feeds,
    Input,
    LayerPrecision,
    Runner,
    Shape,
)
from granplugin.backends.card import card_of, kept
from granplugin.errors import ModelError
from granplugin.graph.read.graph import ReadGraph, layer_of, read
from granplugin.translate import errors_of, load_library, translated

if TYPE_CHECKING:
    from openvino import CompiledModel, InferRequest, Model

_FILES = ("model.xml", "model.bin")
_KERNELS = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}
# What it adds to the name of a node it has split, of a bias or a multiplication by scales.
_SUFFIXES = ("/DequantizationMultiply", "/WithoutBiases")
# The words of runtimePrecision: what is multiplied, and in which float.
_PRECISIONS = {
    "u8": ("int8", ""), "i8": ("int8", ""),
    "f32": ("float", "fp32"), "bf16": ("float", "bf16"), "f16": ("float", "fp16"),
}  # fmt: skip


@dataclass(frozen=True)
class Options(base.Options):
    """What OpenVINO is built for: any sizes that the file leaves open, or those from the least to the
    largest of an input's (min, opt, max) `shapes`."""

    shapes: Mapping[str, tuple[Shape, Shape, Shape]] = field(default_factory=dict)


class OpenVino(Backend):
    """OpenVINO's CPU plugin."""

    options = Options

    def build(self, onnx: Path, out: Path, options: base.Options | None = None) -> Engine:
        """Converts and, to know what it runs in what, compiles; `bytes` are those of the IR."""
        shapes = options.shapes if isinstance(options, Options) else {}
        made_of: dict[str, Any] = {"library": self.name, "version": self.version()}
        if shapes:
            made_of["shapes"] = {name: [list(each) for each in of] for name, of in shapes.items()}

        def make(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
            start = perf_counter()
            ov = self.library()
            said = f"{self.name} refused {onnx.name}"
            with translated(said, (*_errors(), ModelError), BuildFailed):
                graph = read(onnx)
                model = ov.Core().read_model(onnx)
                if shapes:
                    model.reshape(_bounds(ov, shapes))
                ov.save_model(model, folder / "model.xml", compress_to_fp16=False)
                known = _known_as(graph)
                layers = _ran(_compile(ov, model.clone(), None, 1), known)
                static = True
                if _low(layers) < _most(graph):
                    anyhow = _ran(_compile(ov, model, None, None), known)
                    static = _low(layers) >= _low(anyhow)
                    layers = layers if static else anyhow
            told = {
                "build_seconds": perf_counter() - start,
                "outputs": list(graph.outputs),
                "static": static,
                "layers": [astuple(layer) for layer in layers],
            }
            return told, _FILES

        card = kept(out, onnx, made_of, make)
        size = sum((out / file).stat().st_size for file in _FILES)
        return Engine(self.name, out, size, card["build_seconds"], card["version"])

    @contextmanager
    def open(
        self, engine: Engine, threads: int | None = None, batch: int | None = None
    ) -> Iterator[_Runner]:
        """One compiled model, with a dynamic batch or with a static one of size `batch`. The static
        one took 0.7-0.8 of the time for a MobileNetV2 on 32x32 images, 0.9-1.1 for nets at 224. Of
        a file that is not in the form that it needs (graph.edit.apart_zeros) it may run fewer
        products in INT8 than the dynamic one: such stay dynamic.
        """
        card, ov = card_of(engine), self.library()
        outputs = tuple(card["outputs"])
        with translated(f"{self.name} refused {engine.path.name}", _errors()):
            model = ov.Core().read_model(engine.path / "model.xml")
            compiled = _compile(ov, model, threads, batch if card["static"] else None)
            inputs = tuple(map(_input, compiled.inputs))
            request = compiled.create_infer_request()
        yield _Runner(engine, inputs, request, outputs)

    def layers(self, engine: Engine) -> tuple[LayerPrecision, ...]:
        """As its runtime model told when it was built, at batch 1 where its batch is static."""
        return tuple(LayerPrecision(*layer) for layer in card_of(engine)["layers"])


@dataclass(frozen=True)
class _Runner(Runner):
    request: InferRequest
    outputs: tuple[str, ...]

    def _infer(self, feeds: Feeds) -> dict[str, np.ndarray]:
        with translated(self._said, _errors()):
            results = self.request.infer(feeds, share_inputs=True)
            return {output: results[output] for output in self.outputs}


def _bounds(ov: Any, shapes: Mapping[str, tuple[Shape, Shape, Shape]]) -> dict[str, Any]:
    """Input -> each axis from its least to its largest size."""
    return {
        name: ov.PartialShape([ov.Dimension(*sizes) for sizes in zip(low, high, strict=True)])
        for name, (low, _, high) in shapes.items()
    }


def _input(port: Any) -> Input:
    """With a cast behind it, it has that one's name too."""
    shape = port.get_partial_shape()
    sizes = (
        None
        if shape.rank.is_dynamic
        else tuple(-1 if each.is_dynamic else each.get_length() for each in shape)
    )
    return Input(frozenset(port.get_names()), port.get_element_type().to_dtype(), sizes)


@cache
def _errors() -> tuple[type[Exception], ...]:
    """Its frontends' share no base with those of the rest."""
    return errors_of(load_library("openvino.frontend"), load_library("openvino.exceptions"))


def _compile(ov: Any, model: Model, threads: int | None, batch: int | None) -> CompiledModel:
    if batch is not None:
        shapes = {}
        for port in model.inputs:
            shapes[port] = port.get_partial_shape()
            if len(shapes[port]) and shapes[port][0].is_dynamic:
                shapes[port][0] = batch
        model.reshape(shapes)
    properties: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        # It would round the float inputs of layers whose weights alone are quantized, at run time.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "LOG_LEVEL": "LOG_NONE",
    }
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = threads
    return ov.Core().compile_model(model, "CPU", properties)


def _ran(
    compiled: CompiledModel, listed: list[tuple[str, list[str]]]
) -> tuple[LayerPrecision, ...]:
    """What a compiled model runs weighted nodes in; `listed` as by _known_as.

    A kernel lists the nodes that were fused into it. A convolution with a batch norm behind it
    is there under the batch norm's name only, and a linear layer under its bias's or the graph
    output's, so a layer is also known by what directly follows it. Of a kernel with a name of
    OpenVINO's own, it is not known which layer's it is: such layers are told where there are as many
    of these kernels, all of one kind.
    """
    kernels: dict[str, tuple[str, ...]] = {}
    nameless: list[tuple[str, ...]] = []
    names = {name for _, nodes in listed for name in nodes}
    attentions: dict[str, tuple[str, ...]] = {}
    for op in compiled.get_runtime_model().get_ops():
        info = {key: value.astype(str) for key, value in op.get_rt_info().items()}
        reads = [each.get_element_type().to_string() for each in op.inputs()]
        found = kernels
        ran: tuple[str, ...] = ()
        if info["layerType"] in _KERNELS:
            told = info["runtimePrecision"]
            precision, arithmetic = _PRECISIONS.get(told, ("unknown", ""))
            # It names a kernel by the type of its weights too, where it multiplies them with
            # floats.
            floats = reads[0].startswith(("f", "bf"))
            detail = "weight-only" if precision == "int8" and floats else ""
            if detail:  # by our precision hint
                precision, arithmetic = "float", "fp32"
            ran = (precision, info["primitiveType"], detail, arithmetic)
        elif info["layerType"] == "Subgraph":
            # What it compiles itself: work value by value, and a whole attention, which reads its
            # masks as u8.
            precision, arithmetic = ("int8", "") if reads.count("i8") > 1 else ("float", "fp32")
            found, ran = attentions, (precision, info["primitiveType"], "", arithmetic)
        said = set()
        for node in info["originalLayersNames"].split(",") if ran else ():
            for suffix in _SUFFIXES:
                node = node.removesuffix(suffix)
            found[node] = ran
            said.add(node)
        if ran and found is kernels and said.isdisjoint(names):
            nameless.append(ran)
    # What stands behind a product may be work value by value, in float, of its own.
    low = {node: ran for node, ran in attentions.items() if ran[0] == "int8"}

    def of(nodes: list[str]) -> tuple[str, ...] | None:
        places = ((kernels, nodes), (attentions, nodes[:1]), (low, nodes))
        return next(
            (place[each] for place, given in places for each in given if each in place), None
        )

    known = [of(nodes) for _, nodes in listed]
    alike = len({ran[:1] + ran[2:] for ran in nameless}) == 1
    rest = nameless[0] if alike and len(nameless) == known.count(None) else ("unknown", "")
    return tuple(
        LayerPrecision(layer, *(ran or rest)) for (layer, _), ran in zip(listed, known, strict=True)
    )


def _low(layers: tuple[LayerPrecision, ...]) -> int:
    return sum(layer.precision == "int8" for layer in layers)


def _most(graph: ReadGraph) -> int:
    """No more products than this can run in 8 bits."""
    if any(node.op_type == "DequantizeLinear" for node in graph.nodes):
        return len(graph.products)
    return 0


def _known_as(graph: ReadGraph) -> list[tuple[str, list[str]]]:
    """Each product's layer, and the names OpenVINO may keep for its kernel: its own,
    and those of a batch norm, bias, factor or renaming that alone reads its output: it multiplies by
    its own scales and that factor at once, be it an attention's or a layer scale's."""
    found = []
    for product in graph.products:
        chain = [product.node]
        while (
            len(behind := graph.readers(chain[-1].output[0])) == 1
            and behind[0].op_type in ("BatchNormalization", "Add", "Mul", "Div", "Identity")
            and graph.constant.issuperset(set(behind[0].input) - {chain[-1].output[0]})
        ):
            chain.append(behind[0])
        names = [name for link in chain for name in (link.name, link.output[0])]
        found.append((layer_of(product.node), names))
    return found
