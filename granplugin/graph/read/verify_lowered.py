"""Lowered and simulated sites of a written graph, read back.

What each method of graph.lowering promises is looked for in the file, node by node: the division by
the plan's scales but for a power of two, which is the Q/DQ's scale, and the same again behind the
product or inside the weight.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import onnx

from granplugin.calibration.statistics import find_amax
from granplugin.errors import Unhonoured
from granplugin.graph.methods import FLOOR, Method
from granplugin.graph.read.file_graph import (
    FileGraph,
    Pair,
    not_quantized,
    tensors_of,
)
from granplugin.graph.read.graph import scope_of
from granplugin.planning.rows import QuantizedRow
from granplugin.quant.formats import FORMATS, dequantize, fake_quantize, quantize, scale_of
from granplugin.quant.granularity import PerBlock, expand, reduce_blocks
from granplugin.quant.layers import ONNX_PRODUCTS, PRODUCTS
from granplugin.quant.site import Shape


def check_division(
    graph: FileGraph, pair: Pair, row: QuantizedRow, cells: np.ndarray | None
) -> str:
    """The tensor that is divided in front of the pair, which alone reads the quotient.

    The divisor is the grid `cells` but for its power of two, or without it the scale computed at
    run time. Raises Unhonoured.
    """
    div = _node(graph, pair.source, "Div", row)
    if len(graph.readers(pair.source)) != 1 or pair.source in graph.outputs:
        raise Unhonoured(f"{row.site}: {div.name} is read by others than its QuantizeLinear")
    if cells is None:
        _check_run_time(graph, row, *div.input)
    else:
        _check_constant(graph, row, div.input[1], cells / unit(row, cells))
    return str(div.input[0])


def check_behind(graph: FileGraph, pair: Pair, row: QuantizedRow, cells: np.ndarray | None) -> None:
    """Is each of the layer's products of the pair's tensor, without a bias, multiplied by the
    divisor? Raises Unhonoured."""
    divisor = graph.producer[pair.source].input[1]
    for node in graph.readers(pair.result):
        if scope_of(node) != row.layer:
            continue  # a layer that reads the same tensor alike, with a row of its own
        readers = graph.readers(node.output[0])
        bias = len(node.input) > 2 and node.input[2]
        multiplied = [n.op_type for n in readers] == ["Mul"] and node.output[0] not in graph.outputs
        if node.op_type not in ONNX_PRODUCTS or bias or not multiplied:
            raise Unhonoured(f"{row.site}: {node.name} is not multiplied by its scales")
        (factor,) = [name for name in readers[0].input if name != node.output[0]]
        if cells is not None:
            _check_constant(graph, row, factor, cells / unit(row, cells), low=True)
        elif factor != divisor:
            raise Unhonoured(f"{row.site}: {readers[0].name} multiplies by something else")


def run_time_scales(row: QuantizedRow, x: np.ndarray) -> tuple[np.ndarray, Shape]:
    """The scales that x has at run time, and the block of x each is for."""
    cut = [count > 1 for count in row.grid]
    block = (1, *(1 if c else n for c, n in zip(cut[1:], x.shape[1:], strict=True)))
    scale = scale_of(reduce_blocks(np.abs(x), block), FORMATS[row.format])
    return np.maximum(scale, FLOOR), block


def written_weight(
    method: Method,
    row: QuantizedRow,
    amax: np.ndarray,
    weight: np.ndarray,
    source: QuantizedRow,
    cells: np.ndarray,
) -> tuple[QuantizedRow, np.ndarray, np.ndarray]:
    """A weight's row, amax and floats as they are to be in the file when the scales `cells` of the
    layer's input, the row `source`, have gone into it by this method."""
    cells = cells / unit(source, cells)
    by_channel = np.moveaxis(expand(cells, source.block), _channels(source), 0)
    by_channel = by_channel.reshape(len(by_channel), -1)[:, 0]
    first, second = np.indices(weight.shape[:2])
    if PRODUCTS[source.type].operation == "transposed":
        channel = first
    else:
        per_group = weight.shape[0] * weight.shape[1] // len(by_channel)
        channel = first // per_group * weight.shape[1] + second
    factor = by_channel[channel].reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))
    if method == "rescale":
        rescaled = find_amax(row, weight=weight * factor)
        if rescaled is None:
            raise Unhonoured(f"{row.site}: is 0 where it is multiplied by its input's scales")
        return row, rescaled, weight * factor
    fmt = FORMATS[row.format]
    stored = quantize(weight, scale_of(amax, fmt), row.block, fmt)
    amax = expand(amax, (row.block[0], *[1] * (weight.ndim - 1))) * factor
    row = dataclasses.replace(row, granularity=PerBlock(shape=(1, *row.block[1:])))
    return row, amax, dequantize(stored, scale_of(amax, fmt), row.block)


@dataclass(frozen=True)
class Simulated:
    """A tensor before and after the arithmetic, and the Q/DQ that is part of it where
    the format has no arithmetic of its own."""

    source: str
    result: str
    pair: Pair | None


def check_baked(graph: FileGraph, row: QuantizedRow, cells: np.ndarray, weight: np.ndarray) -> None:
    """Are the weight's floats in the file the oracle's, dequantized? Raises Unhonoured."""
    expected = fake_quantize(weight, cells, row.block, FORMATS[row.format])
    names = tensors_of(graph, row)
    stored = [graph.array(name) for name in names if name in graph.stored]
    if (
        not names
        or len(stored) < len(names)
        or not all(_same(x, rounded(expected, x.dtype)) for x in stored)
    ):
        raise Unhonoured(f"{row.site}: is not the plan's weight, dequantized, in the file")


def simulated(graph: FileGraph, row: QuantizedRow, cells: np.ndarray | None) -> list[Simulated]:
    """Where the arithmetic is that simulates an input or output. Raises Unhonoured."""
    found = [_arithmetic(graph, row, cells, name) for name in tensors_of(graph, row)]
    if not found:
        raise not_quantized(row)
    return found


def _arithmetic(
    graph: FileGraph, row: QuantizedRow, cells: np.ndarray | None, name: str
) -> Simulated:
    fmt = FORMATS[row.format]
    nodes: list[onnx.NodeProto] = []
    for _ in range(4):
        behind, before = graph.readers(name)[:1], graph.producer.get(name)
        node = next(iter(behind), None) if row.operand == "output" else before
        if node is None:
            raise not_quantized(row)
        nodes.append(node)
        name = nodes[-1].output[0] if row.operand == "output" else nodes[-1].input[0]
    div, first, second, mul = nodes if row.operand == "output" else nodes[::-1]
    plain = fmt.integer and not row.dynamic
    middle = ("Round", "Clip") if plain else ("QuantizeLinear", "DequantizeLinear")
    if (div.op_type, first.op_type, second.op_type, mul.op_type) != ("Div", *middle, "Mul"):
        raise not_quantized(row)
    inside = [node.output[0] for node in (div, first, second)]
    if any(len(graph.readers(name)) != 1 or name in graph.outputs for name in inside):
        raise Unhonoured(f"{row.site}: {div.name} is read by others too")
    if plain and [float(graph.array(n)) for n in second.input[1:]] != [
        fmt.smallest,
        fmt.largest,
    ]:
        raise Unhonoured(f"{row.site}: is not clipped to {row.format} in the file")
    if cells is None:
        _check_run_time(graph, row, *div.input)
        if mul.input[1] != div.input[1]:
            raise Unhonoured(f"{row.site}: {mul.name} multiplies by something else")
    else:
        left = cells if fmt.integer else cells / unit(row, cells)
        _check_constant(graph, row, div.input[1], left)
        _check_constant(graph, row, mul.input[1], left)
    foreign = [n for n in graph.readers(mul.output[0]) if scope_of(n) != row.layer]
    if row.operand == "input" and foreign:
        raise Unhonoured(f"{foreign[0].name}: reads {mul.output[0]}, and no row says so")
    return Simulated(div.input[0], mul.output[0], graph.by_result.get(second.output[0]))


def _check_constant(
    graph: FileGraph, row: QuantizedRow, name: str, cells: np.ndarray, low: bool = False
) -> None:
    """Does the constant, broadcast over the tensor, give each value the scale of its block? It is
    float32, or may be of a `low` precision."""
    found = graph.array(name) if name in graph.stored else np.empty(0, np.float32)
    lengths = tuple(n if c > 1 else 1 for n, c in zip(row.shape, row.grid, strict=True))
    if found.shape != lengths or (found.dtype != np.float32 and not low):
        raise Unhonoured(f"{row.site}: {name} does not hold its scales in the file")
    expected = rounded(expand(cells, row.block), found.dtype)
    if not (np.broadcast_to(found, row.shape) == expected).all():
        raise Unhonoured(f"{row.site}: a scale in {name} is not amax / largest value in the file")


def unit(row: QuantizedRow, cells: np.ndarray | None) -> np.float32:
    """The power of two that is the scale behind a division: the highest of the largest scale, or
    for a scale of run time the lowest power of two of 1 / largest."""
    top = 1 / FORMATS[row.format].largest if cells is None else cells.max()
    exponent = np.floor(np.log2(np.float64(top))) + (cells is None)
    return np.float32(2.0**exponent)


def _check_run_time(graph: FileGraph, row: QuantizedRow, x: str, scale: str) -> None:
    """Is the scale max(max |x| / largest, FLOOR) but for its power of two, with the maximum over
    the row's blocks?"""
    part = unit(row, None)
    floored = _node(graph, scale, "Max", row)
    ratio = _node(graph, floored.input[0], "Div", row)
    largest = _node(graph, ratio.input[0], "ReduceMax", row)
    magnitude = _node(graph, largest.input[0], "Abs", row)
    numbers = {
        floored.input[1]: FLOOR / part,
        ratio.input[1]: FORMATS[row.format].largest * part,
        largest.input[1]: [i for i, c in enumerate(row.grid) if i > 0 and c == 1],
    }
    for name, expected in numbers.items():
        found = graph.array(name) if name in graph.stored else None
        if found is None or found.tolist() != np.asarray(expected).tolist():
            raise Unhonoured(f"{row.site}: {name} is not {expected} in the file")
    attributes = {attribute.name: attribute.i for attribute in largest.attribute}
    if magnitude.input[0] != x or not attributes.get("keepdims", 1):
        raise Unhonoured(f"{row.site}: {largest.name} is not the maximum of what is divided")


def _node(graph: FileGraph, name: str, op_type: str, row: QuantizedRow) -> onnx.NodeProto:
    node = graph.producer.get(name)
    if node is None or node.op_type != op_type:
        raise Unhonoured(f"{row.site}: {name} should come from {op_type} in the file")
    return node


def _channels(row: QuantizedRow) -> int:
    return PRODUCTS[row.type].channel_axis(len(row.shape))


def rounded(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Floats as they are stored in a lower precision; float16 has them within what it can hold."""
    if dtype != np.float16:
        return array.astype(dtype)
    least, most = np.float32(5.96e-8), np.finfo(np.float16).max
    size = np.where(array == 0, 0, np.clip(np.abs(array), least, most))
    low: np.ndarray = np.copysign(size, array).astype(np.float16)
    return low


def _same(left: np.ndarray, right: np.ndarray) -> bool:
    return left.shape == right.shape and left.tobytes() == right.tobytes()
