"""A written graph, read back: is it what the plan says, row by row?"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx

from granplugin.errors import Unhonoured
from granplugin.graph.mapped import let_go
from granplugin.graph.methods import How
from granplugin.graph.read.file_graph import (
    FileGraph,
    Pair,
    not_quantized,
    open_file,
    pairs_of,
    residual_adds,
)
from granplugin.graph.read.graph import PRECISIONS, scope_of
from granplugin.graph.read.intended import Intended
from granplugin.graph.read.verify_lowered import (
    check_baked,
    check_behind,
    check_division,
    simulated,
    unit,
)
from granplugin.planning.rows import QuantizedRow, Row
from granplugin.quant.formats import FORMATS, quantize_in_parts, scale_of
from granplugin.quant.granularity import PerTensor


def read_back(
    path: Path,
    rows: Sequence[Row],
    amax: Mapping[str, np.ndarray],
    weights: Mapping[str, np.ndarray],
    how: Mapping[str, How] = MappingProxyType({}),
    precision: str = "fp32",
    keep: Collection[str] = (),
) -> None:
    """Compare a file with the plan, row by row. Raises Unhonoured with the first difference.

    The file passes onnx's full check; each quantized row with an amax has its Q/DQ (a weight its
    integers, which are the oracle's, and DQ) with the right scales, axis, block and type, zero
    points 0, where its layer reads or writes the tensor; and nothing else is quantized.
    `weights` are the float weights by layer, batch norms folded, as from weights_of. Rows that
    `how` lowers or simulates, as for insert, have what this promises instead. All but the nodes
    `keep` multiplies in `precision`.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise Unhonoured(f"{Path(path).name} is not valid ONNX: {error}") from error
    graph = open_file(path)
    _check_precision(graph, precision, keep)
    plan = Intended(rows, amax, how)
    readers: dict[str, set[str | None]] = defaultdict(set)
    for row in plan.rows:
        for pair, reader in _held_to(graph, plan, row, weights):
            readers[pair.name].add(reader)
    _check_readers(graph, readers)


def _held_to(
    graph: FileGraph, plan: Intended, row: QuantizedRow, weights: Mapping[str, np.ndarray]
) -> Iterator[tuple[Pair, str | None]]:
    """The pairs of a row, each as the plan has it and with what may read it because of the row:
    a layer, a site, a node, or None for any. Raises Unhonoured at the first that differs."""
    method, cells = plan.methods.get(row.site), plan.scale(row)
    if method == "simulated" and row.operand == "weight":
        check_baked(graph, row, plan.static(row), weights[row.layer])
    elif method == "simulated":
        for place in simulated(graph, row, cells):
            if place.pair is not None:
                _compare(place.pair, *_divided(row, cells))
                yield place.pair, row.site
    elif method is not None:
        for pair in pairs_of(graph, row):
            _compare(pair, *_divided(row, cells))
            check_division(graph, pair, row, cells)
            if method == "row_scale":
                check_behind(graph, pair, row, cells)
            yield pair, row.layer
    else:
        for pair in pairs_of(graph, row):
            if row.operand == "weight":
                written, own_amax, weight = plan.weight(row, weights)
                _compare(pair, written, scale_of(own_amax, FORMATS[row.format]))
                floats = weights[row.layer] if weight is None else weight
                _compare_stored(pair, written, own_amax, floats)
            else:
                _compare(pair, row, plan.static(row))
            for reader in _readers(graph, row):
                yield pair, reader


def _check_readers(graph: FileGraph, readers: Mapping[str, Collection[str | None]]) -> None:
    """Is nothing else quantized, and read by nothing else? `readers` are those of each pair that
    the plan has."""
    for pair in graph.pairs:
        if pair.name not in readers:
            raise Unhonoured(f"{pair.name}: quantized, and no row of the plan says so")
    for pair in graph.pairs:
        # Anything may read an output behind its Q/DQ, but an input only the layers with a row, and
        # a skip input the adds that one is about.
        allowed = readers[pair.name]
        for node in graph.rounded_for(pair.result):
            known = node.name in graph.pooled or not {scope_of(node), node.name}.isdisjoint(allowed)
            if None not in allowed and not known:
                raise Unhonoured(f"{node.name}: reads {pair.result}, and no row says so")


def _readers(graph: FileGraph, row: QuantizedRow) -> list[str | None]:
    """The layer, or the nodes, that may read what the row quantizes; None for any."""
    if row.operand == "skip":
        return [add.name for add, _ in residual_adds(graph, row.layer)]
    return [row.layer if row.operand != "output" else None]


def _check_precision(graph: FileGraph, precision: str, keep: Collection[str]) -> None:
    """Do products multiply in this type? (The full check has seen that types fit together, and what
    is not converted multiplies in what it did: in integers, in double.)"""
    if precision == "fp32":
        return
    asked = next(kind for kind, name in PRECISIONS.items() if name == precision)
    for product in graph.products:
        found = graph.element_type(product.node.output[0])
        if found in PRECISIONS.keys() - {asked} and product.node.name not in keep:
            low, wanted = (onnx.TensorProto.DataType.Name(kind) for kind in (found, asked))
            raise Unhonoured(f"{product.node.name}: multiplies in {low}, not {wanted}")


def _divided(row: QuantizedRow, cells: np.ndarray | None) -> tuple[QuantizedRow, np.ndarray]:
    """What is to be behind a division: one scale for the tensor, a power of two."""
    scale = np.full((1,) * len(row.shape), unit(row, cells), np.float32)
    return dataclasses.replace(row, granularity=PerTensor()), scale


def _compare(pair: Pair, row: QuantizedRow, cells: np.ndarray) -> None:
    """Do the pair's type, zero point, axis, block and scales say what the row says?"""
    fmt, scale = FORMATS[row.format], pair.scale

    def require(holds: object, what: str) -> None:
        if not holds:
            raise Unhonoured(f"{row.site}: {what} in the file")

    require(pair.zero.dtype == fmt.dtype, f"is {pair.zero.dtype}, not {row.format}")
    require(pair.zero.shape == scale.shape, "the zero point and the scale differ in shape")
    require(not pair.zero.astype(np.float32).any(), "a zero point is not 0")
    require(scale.dtype == np.float32, "the scale is not float32")
    require((scale > 0).all() and np.isfinite(scale).all(), "a scale is not positive")
    varying = [axis for axis, count in enumerate(cells.shape) if count > 1]
    if not varying:
        require(scale.shape == () and not pair.block_size, f"has scales of shape {scale.shape}")
        expected = cells.reshape(())
    elif len(varying) == 1 and pair.flat is None and not pair.block_size:
        # Its index along the axis says which scale a value has.
        axis = varying[0]
        require(pair.axis == axis, f"axis is {pair.axis}, not {axis}")
        expected = cells.reshape(-1)[np.arange(row.shape[axis]) // row.block[axis]]
    elif pair.flat is None and row.block == (
        *[1] * pair.axis,
        pair.block_size,
        *[1] * (len(row.block) - pair.axis - 1),
    ):
        # Blocks along one axis, as the row has them: spelt out, they take as much as the weight.
        expected = cells
    else:
        index = np.indices(row.shape, sparse=True)
        expected = cells[tuple(i // part for i, part in zip(index, row.block, strict=True))]
        if pair.flat is not None:
            require(pair.sample == row.shape[1:] and len(pair.flat) == 2, "is reshaped wrongly")
            require(pair.axis == 1 and not pair.block_size, "its axis is not 1")
            require(scale.shape == pair.flat[:1], f"has scales of shape {scale.shape}")
            place = np.arange(math.prod(row.shape)).reshape(row.shape)
            scale = scale[place // pair.flat[1] % pair.flat[0]]
        else:
            require(pair.block_size > 0, "the scales lie along one axis")
            blocks = -(-row.shape[pair.axis] // pair.block_size)
            wanted = (*row.shape[: pair.axis], blocks, *row.shape[pair.axis + 1 :])
            require(scale.shape == wanted, f"has scales of shape {scale.shape}")
            scale = np.take(scale, np.arange(row.shape[pair.axis]) // pair.block_size, pair.axis)
    require(scale.shape == expected.shape, f"has scales of shape {scale.shape}")
    require((scale == expected).all(), "a scale is not amax / largest value")


def _compare_stored(pair: Pair, row: QuantizedRow, amax: np.ndarray, weight: np.ndarray) -> None:
    fmt = FORMATS[row.format]
    expected = quantize_in_parts(weight, scale_of(amax, fmt), row.block, fmt)
    let_go(weight)
    if pair.held is None:
        raise not_quantized(row)
    stored = pair.held()
    if stored.dtype != fmt.dtype or stored.shape != expected.shape:
        raise Unhonoured(f"{row.site}: is {stored.dtype} {stored.shape} in the file")
    # Row by row: as floats, both take more memory than the weight.
    pairs = zip(np.atleast_1d(stored), np.atleast_1d(expected), strict=True)
    wrong = sum(
        np.count_nonzero(ours.astype(np.float32) != theirs.astype(np.float32))
        for ours, theirs in pairs
    )
    if wrong:
        raise Unhonoured(f"{row.site}: {wrong} of {expected.size} stored values are wrong")
