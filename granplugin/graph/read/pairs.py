"""Q/DQ pairs as any tool writes them: the format, the scales, and how they lie in the tensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from granplugin.errors import ModelError
from granplugin.graph.read.graph import ReadGraph, closed, dequantizes, quantizes
from granplugin.graph.read.layout import along
from granplugin.graph.read.loading import reading
from granplugin.quant.granularity import grid
from granplugin.quant.site import Shape

_FORMATS = {
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.INT16: "int16",
    TensorProto.UINT16: "uint16",
    TensorProto.INT32: "int32",
    TensorProto.INT4: "int4",
    TensorProto.UINT4: "uint4",
    TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.FLOAT8E5M2: "fp8_e5m2",
    TensorProto.FLOAT4E2M1: "nvfp4",
}
# TensorRT's own operators have the format in their name, and some a block size of their own.
_CUSTOM = {"TRT_FP8": "fp8", "TRT_INT4": "int4", "TRT_MXFP8": "mxfp8", "TRT_FP4": "nvfp4"}
BLOCKS = {"mxfp8": 32, "nvfp4": 16}


@dataclass(frozen=True)
class Qdq:
    """A DequantizeLinear and the QuantizeLinear in front of it, None where the file holds the
    numbers; `source` is the tensor before them, which is float or holds the numbers."""

    dq: onnx.NodeProto
    q: onnx.NodeProto | None
    source: str

    @property
    def result(self) -> str:
        return str(self.dq.output[0])


def qdq(graph: ReadGraph) -> list[Qdq]:
    """Every DequantizeLinear of a graph, in order."""
    found = []
    for dq in filter(dequantizes, graph.nodes):
        with reading(graph.path, dq):
            q = graph.producer.get(dq.input[0])
            q = q if quantizes(q) else None
            found.append(Qdq(dq, q, dq.input[0] if q is None else q.input[0]))
    return found


@dataclass(frozen=True)
class Scaled:
    """A pair with its `format` and `scale`, None where that is computed at run time. Values of one
    `block` share a scale in the quantized tensor, which has this shape; both are None where that
    cannot be told. `misfit` says how scales do not fit."""

    pair: Qdq
    format: str
    scale: np.ndarray | None
    shape: Shape | None
    block: Shape | None
    misfit: str | None


def scaled(graph: ReadGraph, pair: Qdq) -> Scaled:
    """The pair, its scales read. Raises ModelError for scales that are not computed."""
    said = {a.name: helper.get_attribute_value(a) for a in pair.dq.attribute}
    format = format_of(graph, pair)
    name = pair.dq.input[1]
    scale = graph.value(name)
    if name in graph.refused:
        raise ModelError(
            f"{graph.path}: cannot be read: the scale of node {pair.dq.name!r} is not computed: "
            f"{graph.refused[name]}"
        )
    if scale is not None and not scale.size:
        raise ModelError(f"{graph.path}: cannot be read: node {pair.dq.name!r} has no scale")
    seen = graph.shape(pair.source)
    # An open batch counts as one sample, and any other open size as unknown.
    if seen and seen[0] is None:
        seen = (1, *seen[1:])
    shape = closed(seen)
    size = said.get("block_size", 0) or BLOCKS.get(format, 0)
    block: Shape | None = None
    misfit = None
    if shape is not None and 0 in shape:
        # Nothing is scaled; no block can be cut of it.
        block = tuple(n or 1 for n in shape)
    elif scale is not None and scale.size == 1:
        block = shape
    elif shape is not None:
        axis = said.get("axis", -1 if format in BLOCKS else graph.qdq_axis)
        if "block_shape" in said:
            listed = zip(said["block_shape"], shape, strict=False)
            block = tuple(n if part == -1 else part for part, n in listed)
        elif not -len(shape) <= axis < len(shape):
            misfit = f"axis {axis} is none of the tensor's {len(shape)}"
        elif size:
            axis %= len(shape)
            block = tuple(size if i == axis else 1 for i in range(len(shape)))
            if shape[axis] % size:
                block, misfit = None, f"blocks of {size} do not divide axis {axis} of {list(shape)}"
            elif (
                scale is not None and scale.ndim == len(shape) and scale.shape != grid(shape, block)
            ):
                misfit = (
                    f"scales of shape {list(scale.shape)} do not fit blocks of {size} along axis "
                )
                misfit, block = f"{misfit}{axis} of {list(shape)}", None
        elif scale is not None:
            shape, block, misfit = along(shape, scale.shape, axis % len(shape))
    if (
        block is not None
        and shape is not None
        and (len(block) != len(shape) or min(block, default=1) < 1)
    ):
        raise ModelError(
            f"{graph.path}: cannot be read: node {pair.dq.name!r}: blocks of {list(block)} are "
            f"none of a tensor of shape {list(shape)}"
        )
    return Scaled(pair, format, scale, shape, block, misfit)


def format_of(graph: ReadGraph, pair: Qdq) -> str:
    """The format a pair rounds to, "unknown" where we have no word for it."""
    dq, q = pair.dq, pair.q
    for start, format in _CUSTOM.items():
        if dq.op_type.startswith(start) or (q is not None and q.op_type.startswith(start)):
            return format
    kinds = [graph.element_type(name) for name in dq.input[2:3]]
    kinds += [graph.element_type(dq.input[0])] if q is None else []
    kinds += [a.i for a in (q.attribute if q is not None else ()) if a.name == "output_dtype"]
    kinds += [graph.element_type(name) for name in (q.input[2:3] if q is not None else ())]
    # Without a zero point ONNX says uint8, and TensorRT int8.
    return next((_FORMATS.get(kind, "unknown") for kind in kinds if kind), "int8")
