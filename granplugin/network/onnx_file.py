"""An ONNX file that a network is read from: whole, float, with 1 for the batch it leaves open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from granplugin.errors import ModelError
from granplugin.graph.read.graph import ReadGraph, dequantizes, quantizes, read_graph
from granplugin.graph.read.loading import read_model, reading, with_subgraphs
from granplugin.store.keys import content_key, file_key

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_INTEGER = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")


def read_float(path: Path) -> ReadGraph:
    """The graph of a file; what can be computed from constants alone is constant.

    Where the first axis of an input is open, it is the batch, and 1 in every shape. Raises
    ModelError: no such file, not ONNX or damaged, weights in files that are not there, or quantized
    already.
    """
    model = read_model(path)
    with reading(path):
        _check_whole(model, path)
        _check_float(model, path)
        _fix_batch(model.graph)
    return read_graph(model, path)


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


def _check_float(model: onnx.ModelProto, path: Path) -> None:
    counts = Counter(
        node.op_type
        for node in with_subgraphs(model.graph.node)
        if quantizes(node) or dequantizes(node) or node.op_type.endswith(_INTEGER)
    )
    if counts:
        found = ", ".join(f"{count} {op}" for op, count in sorted(counts.items()))
        raise ModelError(
            f"{path}: it is quantized already ({found}), and a recipe starts from a float model; "
            f"granplugin audit {path.name} tells what it quantizes"
        )


def _fix_batch(graph: onnx.GraphProto) -> None:
    stored = {tensor.name for tensor in graph.initializer}
    names = set()
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in stored and dims and dims[0].dim_value < 1:
            names.add(dims[0].dim_param)
            dims[0].dim_value = 1
    # Exporters note shapes with the batch's name in them.
    for value in (*graph.value_info, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param and dim.dim_param in names:
                dim.dim_value = 1
