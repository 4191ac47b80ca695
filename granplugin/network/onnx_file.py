"""An ONNX file that a network is read from: whole and float."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from granplugin.errors import ModelError
from granplugin.graph.read.graph import ReadGraph, dequantizes, quantizes, read_graph
from granplugin.graph.read.loading import read_model, reading, with_subgraphs
from granplugin.network.onnx_einsum import as_products
from granplugin.network.onnx_matrices import as_layers
from granplugin.network.onnx_shapes import infer_shapes
from granplugin.network.onnx_spelled import spelled_out
from granplugin.network.onnx_strip import Stripped
from granplugin.network.onnx_strip import strip as remove
from granplugin.quant.site import Shape
from granplugin.store.keys import content_key, file_key

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_INTEGER = re.compile(
    "(QLinear|QGemm|QAttention|QOrdered|QEmbed|QMoE|DynamicQuantizeMatMul|DynamicQuantizeLSTM"
    "|MatMulInteger|ConvInteger|MatMulNBits|MatMulBnb4|GatherBlockQuantized).*"
)
"""Operators that compute with integers, of ONNX and of ONNX Runtime."""


def shaped(
    model: onnx.ModelProto, path: Path, shapes: Mapping[str, Shape] = MappingProxyType({})
) -> ReadGraph:
    """The graph of a float file's model; what can be computed from constants alone is constant.

    `shapes` are those of inputs, or of other tensors, in a pass that is told about; the batch that a
    file leaves open is onnx_shapes.BATCH otherwise. Raises ModelError.
    """
    return read_graph(model, path, partial(infer_shapes, given=shapes))


@dataclass(frozen=True, slots=True, eq=False)
class FloatModel:
    """A file's float model; `stripped` is what was taken out for it."""

    model: onnx.ModelProto
    stripped: Stripped | None


def float_model(path: Path, strip: bool = False) -> FloatModel:
    """The file's model. Raises ModelError: no such file, not ONNX or damaged, weights in files that
    are not there, or quantized already and not to `strip`."""
    model = read_model(path)
    stripped = None
    with reading(path):
        _check_whole(model, path)
        _check_tensors(model, path)
        _write_out(model)
        if _is_quantized(model, path, strip):
            model, stripped = remove(read_graph(model, path))
        model = spelled_out(model, path)
        _say_types(model, path)
        if any(node.op_type == "Einsum" for node in model.graph.node):
            as_products(read_graph(model, path))
        if any(node.op_type in ("Gemm", "MatMul") for node in model.graph.node):
            as_layers(shaped(model, path))
        _take_biases(model, path)
    return FloatModel(model, stripped)


def content_of(graph: ReadGraph) -> str:
    """A hash of the file and of those its weights are in."""
    others = sorted(set(_external(graph.model, graph.path)))
    return content_key(*map(file_key, (graph.path, *others)))


def is_float(kind: int) -> bool:
    """Whether an element type of TensorProto is a float's."""
    return kind in _FLOATS


def _external(model: onnx.ModelProto, path: Path) -> Iterator[Path]:
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            for entry in tensor.external_data:
                if entry.key == "location":
                    yield path.parent / entry.value


def _check_whole(model: onnx.ModelProto, path: Path) -> None:
    missing = sorted({file.name for file in _external(model, path) if not file.is_file()})
    if missing:
        others = len(missing) - 1
        more = f" and {others} other file{'s' if others > 1 else ''}" if others else ""
        raise ModelError(
            f"{path}: its weights are in {missing[0]}{more}, which must be beside it, as the "
            "exporter wrote them"
        )


def _check_tensors(model: onnx.ModelProto, path: Path) -> None:
    """Raises ModelError for an input without axes, and an input or output that is a sequence, a map
    or an optional, or of a type that numpy has no numbers for."""
    stored = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        held = value.type.tensor_type
        if value.type.HasField("tensor_type") and not held.HasField("shape"):
            if value.name not in stored:
                raise ModelError(
                    f"{path}: its input {value.name!r} has no shape; export it with one, in which "
                    "lengths may be open"
                )
    for what, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            kind = value.type.WhichOneof("value")
            if kind in ("sequence_type", "map_type", "optional_type"):
                raise ModelError(
                    f"{path}: its {what} {value.name!r} is no tensor, but {_KINDS[kind]}, which "
                    f"nothing could be compared of; {_made_by(model, value.name)}"
                )
            of = value.type.tensor_type.elem_type
            if of and of not in _NUMBERS:
                raise ModelError(
                    f"{path}: its {what} {value.name!r} is of type "
                    f"{onnx.TensorProto.DataType.Name(of).lower()}, which ONNX Runtime does not "
                    "exchange as numbers; export it as float32 or as integers, or cut the file "
                    "before it (onnx.utils.extract_model)"
                )


_NUMBERS = frozenset(
    getattr(onnx.TensorProto, name)
    for name in "FLOAT FLOAT16 DOUBLE BOOL INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64".split()
)
_KINDS = {"sequence_type": "a sequence", "map_type": "a map", "optional_type": "an optional"}


def _made_by(model: onnx.ModelProto, name: str) -> str:
    """The way out where this is no tensor."""
    node = next((node for node in model.graph.node if name in node.output), None)
    if node is None:
        return "export it with tensors alone"
    if node.op_type == "ZipMap":
        return "export it without ZipMap (skl2onnx: options={'zipmap': False})"
    return (
        f"export what {node.op_type} ({node.name or name}) reads in its place, or cut the file in "
        "front of it (onnx.utils.extract_model)"
    )


def _write_out(model: onnx.ModelProto) -> None:
    """What few tools write, in the form that all read: sparse initializers become dense ones, and
    initializers need not be inputs, which old versions of the format ask for and nobody checks."""
    model.ir_version = max(model.ir_version, 4)
    for sparse in model.graph.sparse_initializer:
        values = numpy_helper.to_array(sparse.values)
        places = numpy_helper.to_array(sparse.indices)
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        if places.ndim == 1:
            dense.reshape(-1)[places] = values
        else:
            dense[tuple(places.T)] = values
        model.graph.initializer.append(numpy_helper.from_array(dense, sparse.values.name))
    model.graph.ClearField("sparse_initializer")


def _is_quantized(model: onnx.ModelProto, path: Path, strip: bool) -> bool:
    """Whether there is something to strip. Raises ModelError where that is not what is asked for."""
    nodes = list(with_subgraphs(model.graph.node))
    integer = Counter(node.op_type for node in nodes if _INTEGER.match(node.op_type))
    pairs = Counter(node.op_type for node in nodes if quantizes(node) or dequantizes(node))
    operators = ", ".join(f"{count} {op}" for op, count in sorted((integer + pairs).items()))
    if integer:
        raise ModelError(
            f"{path}: it is quantized already ({operators}), by nodes that compute with integers, and a "
            "recipe starts from a float model: start from the file that it was made of"
        )
    if pairs and not strip:
        raise ModelError(
            f"{path}: it is quantized already ({operators}), and a recipe starts from a float model; "
            f"granplugin audit {path.name} tells what it quantizes, and strip: true beside onnx: "
            "takes its Q/DQ out"
        )
    if strip and not pairs:
        raise ModelError(f"{path}: there is no Q/DQ in it to strip; leave out strip: true")
    return bool(pairs)


def _say_types(model: onnx.ModelProto, path: Path) -> None:
    """A CastLike takes a type from its second input and no values, so that a constant that is cast
    so is one all the same: it becomes a Cast."""
    if any(node.op_type == "CastLike" for node in model.graph.node):
        graph = read_graph(model, path)
        for node in model.graph.node:
            kind = graph.element_type(node.input[1]) if node.op_type == "CastLike" else 0
            if kind:
                node.op_type = "Cast"
                del node.input[1:]
                node.attribute.append(onnx.helper.make_attribute("to", kind))


def _take_biases(model: onnx.ModelProto, path: Path) -> None:
    """A constant that is added to a convolution, one number for each channel, becomes its bias: what
    is behind the Add is then behind the convolution, such as a batch norm that can be folded."""
    if not any(node.op_type.startswith("Conv") for node in model.graph.node):
        return
    graph = read_graph(model, path)
    taken = {*graph.stored, *graph.producer, *(value.name for value in model.graph.input)}
    gone: set[str] = set()
    for node in graph.nodes:
        if node.op_type in ("Conv", "ConvTranspose") and node.domain in ("", "ai.onnx"):
            add = _added(graph, node)
            bias = None if add is None else _bias(graph, node, add)
            if add is not None and bias is not None:
                name = f"{node.name}/bias"
                while name in taken:
                    name += "_"
                taken.add(name)
                model.graph.initializer.append(numpy_helper.from_array(bias, name))
                node.input[:] = [*node.input[:2], name]
                node.output[0] = add.output[0]
                gone.add(add.name)
    if gone:
        kept = [node for node in model.graph.node if node.name not in gone]
        del model.graph.node[:]
        model.graph.node.extend(kept)


def _added(graph: ReadGraph, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """The Add of a constant that is all that reads a node's output."""
    made = node.output[0]
    readers = graph.readers(made)
    if len(readers) != 1 or made in graph.outputs or readers[0].op_type != "Add":
        return None
    return readers[0] if graph.constant.intersection(readers[0].input) else None


def _bias(graph: ReadGraph, node: onnx.NodeProto, add: onnx.NodeProto) -> np.ndarray | None:
    """The convolution's bias with what is added, which is None where that is no bias."""
    weight = graph.shape(node.input[1])
    held = graph.value(next(name for name in add.input if name in graph.constant))
    own = graph.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if weight is None or held is None or (own is None and len(node.input) > 2 and node.input[2]):
        return None
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    channels = weight[0] if node.op_type == "Conv" else (weight[1] or 0) * groups
    shape = (1,) * (len(weight) - held.ndim) + held.shape
    if channels is None or len(shape) != len(weight) or shape[1] not in (1, channels):
        return None
    if any(length != 1 for axis, length in enumerate(shape) if axis != 1):
        return None
    added = np.broadcast_to(held.reshape(-1), (channels,)).copy()
    return added if own is None else added + own
