"""A written graph, read back: is it what the plan says, and do ONNX Runtime and the oracle agree?

Nothing here comes from the code that writes: the file is read with onnx and numpy alone. Where a
site is in it follows from the nodes' names, which begin with their module, and from the data flow.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from granplugin.errors import Unhonoured
from granplugin.formats import FORMATS, Format, dequantize, quantize, scale_of
from granplugin.granularity import Shape, expand
from granplugin.plan import Row

FakeQuantize = Callable[[np.ndarray, Row, np.ndarray], np.ndarray]

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_MATRIX_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_VALUES_AT_ONCE = 2**25
"""Float values fetched from ONNX Runtime in one go: 128 MB."""


@dataclass(frozen=True)
class Agreement:
    """How three computations of Q/DQ compare on ONNX Runtime's own tensors.

    `sites` and `values` were compared. `oracle_differs` is how many of the values ONNX Runtime
    computed differ from the numpy oracle's in any bit, `modelopt_differs` how many differ from
    modelopt's by a step of the format or more, `modelopt_worst_steps` by how many at most.
    """

    sites: int
    values: int
    oracle_differs: int
    modelopt_differs: int
    modelopt_worst_steps: int


def read_back(
    path: Path,
    rows: Sequence[Row],
    amax: Mapping[str, np.ndarray],
    weights: Mapping[str, np.ndarray],
) -> None:
    """Compare a file with the plan, row by row. Raises Unhonoured with the first difference.

    The file passes onnx's full check; each quantized row with an amax has its Q/DQ (a weight its
    integers, which are the oracle's, and DQ) with the right scales, axis, block and type, zero
    points 0, where its layer reads or writes the tensor; and nothing else is quantized.
    `weights` are the float weights by layer, batch norms folded, as from weights_of.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise Unhonoured(f"{Path(path).name} is not valid ONNX: {error}") from error
    graph = _Graph(onnx.load(path).graph)
    unclaimed = {pair.name: pair for pair in graph.pairs}
    readers: dict[str, set[str | None]] = defaultdict(set)
    for row in rows:
        if not row.quantized or amax.get(row.site) is None:
            continue
        for pair in _pairs_of(graph, row):
            unclaimed.pop(pair.name, None)
            readers[pair.name].add(row.layer if row.role != "output" else None)
            _compare(pair, row, scale_of(amax[row.site], FORMATS[row.format]))
            if row.role == "weight":
                _compare_stored(pair, row, amax[row.site], weights[row.layer])
    for pair in unclaimed.values():
        raise Unhonoured(f"{pair.name}: quantized, and no row of the plan says so")
    for pair in graph.pairs:
        # Anything may read an output behind its Q/DQ, but an input only the layers with a row.
        allowed = readers[pair.name]
        for node in graph.readers[pair.result]:
            if None not in allowed and _scope(node) not in allowed:
                raise Unhonoured(f"{node.name}: reads {pair.result}, and no row says so")


def agreement(
    path: Path,
    rows: Sequence[Row],
    amax: Mapping[str, np.ndarray],
    feeds: Mapping[str, np.ndarray],
    fake_quantize: FakeQuantize | None = None,
) -> Agreement:
    """Run ONNX Runtime without optimizations and compare each site with the oracle and modelopt.

    On what each QuantizeLinear was given, the oracle must make what DequantizeLinear gave, bit for
    bit; so must the oracle for stored weights. `fake_quantize(x, row, amax)` is modelopt's: it
    may differ at inputs and outputs by one step, where x lies between two steps within float32
    rounding. Raises Unhonoured, naming the site, where that does not hold.
    """
    model = onnx.load(path)
    graph = _Graph(model.graph)
    found = [
        (row, pair)
        for row in rows
        if row.quantized and amax.get(row.site) is not None
        for pair in _pairs_of(graph, row)
    ]
    values = differs = worst = 0
    for chunk in _chunks(found, max(len(array) for array in feeds.values())):
        fetched = _fetch(model, graph, [pair for _, pair in chunk], feeds)
        for row, pair in chunk:
            fmt, result = FORMATS[row.format], fetched[pair.result]
            scale, block = _broadcast(row, scale_of(amax[row.site], fmt))
            given = pair.stored if row.role == "weight" else fetched[pair.source]
            stored = given if row.role == "weight" else quantize(given, scale, block, fmt)
            values += result.size
            if not _same_bits(dequantize(stored, scale, block), result):
                raise Unhonoured(f"{row.site}: ONNX Runtime and the numpy oracle differ")
            if fake_quantize is not None and row.role != "weight":
                theirs = fake_quantize(given, row, amax[row.site])
                steps = _steps(row, given, stored, theirs, scale, block)
                differs += np.count_nonzero(steps)
                worst = max(worst, int(steps.max(initial=0)))
    return Agreement(len({row.site for row, _ in found}), values, 0, int(differs), worst)


@dataclass(frozen=True)
class _Pair:
    """One QuantizeLinear and DequantizeLinear, or a stored weight and its DequantizeLinear.

    `source` and `result` are the float tensors before and after it; `flat` is the shape of one
    sample between the Reshapes around it, and `sample` the shape after them, where it has them.
    """

    name: str
    source: str
    result: str
    stored: np.ndarray | None
    scale: np.ndarray
    zero: np.ndarray
    axis: int
    block_size: int
    flat: Shape | None
    sample: Shape | None


class _Graph:
    """What leads where in an ONNX graph, and its Q/DQ pairs."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.outputs = {value.name for value in graph.output}
        self.producer = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.readers[name].append(node)
        self.scopes: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            self.scopes[_scope(node)].append(node)
        self.pairs = [self._pair(node) for node in graph.node if node.op_type == _DQ]
        for node in graph.node:
            if node.op_type == _Q and [n.op_type for n in self.readers[node.output[0]]] != [_DQ]:
                raise Unhonoured(f"{node.name}: is not followed by one DequantizeLinear")
        self.by_result = {pair.result: pair for pair in self.pairs}
        self.by_source: dict[str, list[_Pair]] = defaultdict(list)
        for pair in self.pairs:
            self.by_source[pair.source].append(pair)

    def array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.constants[name])

    def _pair(self, dq: onnx.NodeProto) -> _Pair:
        q = self.producer.get(dq.input[0])
        if len(dq.input) != 3 or not all(name in self.constants for name in dq.input[1:]):
            raise Unhonoured(f"{dq.name}: its scale and zero point are not constants")
        if q is None and dq.input[0] not in self.constants:
            raise Unhonoured(f"{dq.name}: dequantizes an input of the model")
        if q is not None and (
            q.op_type != _Q or list(q.input[1:]) != list(dq.input[1:]) or _ints(q) != _ints(dq)
        ):
            raise Unhonoured(f"{dq.name}: does not undo {q.name}")
        source, result = (dq.input[0] if q is None else q.input[0]), dq.output[0]
        flat = sample = None
        before, after = self.producer.get(source), self.readers[result]
        # A Reshape on either side, to a constant shape with only the batch left open.
        around = [before, *after] if q is not None else []
        if [n and n.op_type for n in around] == ["Reshape"] * 2 and _scope(before) == _scope(q):
            (open1, *flat), (open2, *sample) = (self.array(n.input[1]).tolist() for n in around)
            if (open1, open2) != (-1, -1) or result in self.outputs:
                raise Unhonoured(f"{q.name}: the Reshapes around it are not each other's")
            source, result = before.input[0], after[0].output[0]
        attributes = _ints(dq)
        return _Pair(
            name=dq.name,
            source=source,
            result=result,
            stored=self.array(source) if q is None else None,
            scale=self.array(dq.input[1]),
            zero=self.array(dq.input[2]),
            axis=attributes.get("axis", 1),
            block_size=attributes.get("block_size", 0),
            flat=None if flat is None else tuple(flat),
            sample=None if sample is None else tuple(sample),
        )


def _scope(node: onnx.NodeProto) -> str:
    """The module a node is of."""
    return node.name.rpartition("/")[0]


def _ints(node: onnx.NodeProto) -> dict[str, int]:
    return {attribute.name: attribute.i for attribute in node.attribute}


def _pairs_of(graph: _Graph, row: Row) -> list[_Pair]:
    """The pairs through which the row's layer reads or writes this tensor: one for each call."""
    nodes = graph.scopes.get(row.layer, [])
    own = {name for node in nodes for name in node.output}
    if row.role == "weight":
        operands = [_origin(graph, n.input[1]) for n in nodes if n.op_type in _MATRIX_OPS]
        found = [graph.by_result.get(name) for name in operands]
        found = [pair if pair and pair.stored is not None else None for pair in found]
    elif row.role == "input":
        fixed = graph.constants.keys() | {p.result for p in graph.pairs if p.stored is not None}
        read = {n.input[0] for n in nodes if n.input} - own - fixed
        found = [graph.by_result.get(name) for name in sorted(read)]
    else:
        found = []
        for name in (name for node in nodes for name in node.output):
            outside = [n for n in graph.readers[name] if not own.intersection(n.output)]
            if outside or name in graph.outputs:
                pairs = graph.by_source[name]
                alone = len(pairs) == 1 and len(outside) == 1 and name not in graph.outputs
                found.append(pairs[0] if alone else None)
    if not found or None in found:
        raise Unhonoured(f"{row.site}: should be {row.format}, and is not quantized in the file")
    return list({pair.name: pair for pair in found}.values())


def _origin(graph: _Graph, name: str) -> str:
    """A linear layer's weight is transposed on its way to MatMul."""
    node = graph.producer.get(name)
    return node.input[0] if node is not None and node.op_type == "Transpose" else name


def _compare(pair: _Pair, row: Row, cells: np.ndarray) -> None:
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


def _compare_stored(pair: _Pair, row: Row, amax: np.ndarray, weight: np.ndarray) -> None:
    fmt = FORMATS[row.format]
    expected = quantize(weight, scale_of(amax, fmt), row.block, fmt)
    if pair.stored.dtype != fmt.dtype or pair.stored.shape != expected.shape:
        raise Unhonoured(f"{row.site}: is {pair.stored.dtype} {pair.stored.shape} in the file")
    wrong = np.count_nonzero(pair.stored.astype(np.float32) != expected.astype(np.float32))
    if wrong:
        raise Unhonoured(f"{row.site}: {wrong} of {expected.size} stored values are wrong")


def _chunks(found: Sequence[tuple[Row, _Pair]], batch: int) -> Iterator[list[tuple[Row, _Pair]]]:
    """Sites whose tensors fit in memory together."""
    chunk, held = [], 0
    for row, pair in found:
        size = 2 * math.prod(row.shape) * (1 if row.role == "weight" else batch)
        if chunk and held + size > _VALUES_AT_ONCE:
            yield chunk
            chunk, held = [], 0
        chunk.append((row, pair))
        held += size
    if chunk:
        yield chunk


def _fetch(
    model: onnx.ModelProto,
    graph: _Graph,
    pairs: Sequence[_Pair],
    feeds: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """The pairs' float tensors, as ONNX Runtime computes them without optimizations."""
    wanted = {name for pair in pairs for name in (pair.source, pair.result)}
    known = {name: feeds[name] for name in wanted & feeds.keys()}
    known |= {name: graph.array(name) for name in wanted & graph.constants.keys()}
    computed = sorted(wanted - known.keys())
    exposing = onnx.ModelProto()
    exposing.CopyFrom(model)
    for name in computed:
        if name not in graph.outputs:
            exposing.graph.output.append(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        exposing.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    results = session.run(computed, dict(feeds))
    return known | dict(zip(computed, results, strict=True))


def _broadcast(row: Row, cells: np.ndarray) -> tuple[np.ndarray, Shape]:
    """Scales and block for tensors of any batch, and of any length along an axis with one block
    (a Pad moved behind the site makes it smaller than the row's shape)."""
    block = tuple(p if count > 1 else 1 for p, count in zip(row.block, row.grid, strict=True))
    return cells, block


def _same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.shape == right.shape and left.tobytes() == right.tobytes()


def _steps(
    row: Row,
    x: np.ndarray,
    stored: np.ndarray,
    theirs: np.ndarray,
    scale: np.ndarray,
    block: Shape,
) -> np.ndarray:
    """By how many steps of the format `theirs` differs from the stored numbers, value by value.

    Raises Unhonoured beyond one step, or where x is not halfway between the two.
    """
    fmt = FORMATS[row.format]
    nearest = quantize(theirs, scale, block, fmt)
    steps = np.abs(_ordinal(nearest, fmt) - _ordinal(stored, fmt))
    if steps.any():
        where = np.nonzero(steps)
        ratio = (x / expand(scale, block))[where].astype(np.float64)
        halfway = (nearest[where].astype(np.float64) + stored[where].astype(np.float64)) / 2
        # a division more or less in float32 moves the ratio by a few units in its last place
        if steps.max() > 1 or (np.abs(ratio - halfway) > 2**-21 * np.abs(halfway)).any():
            raise Unhonoured(f"{row.site}: modelopt rounds {len(where[0])} values differently")
    return steps


def _ordinal(stored: np.ndarray, fmt: Format) -> np.ndarray:
    """Numbers such that neighbours in the format differ by 1."""
    if fmt.integer:
        return stored.astype(np.int16)
    code = stored.view(np.int8).astype(np.int16)
    return np.where(code < 0, -(code & 0x7F), code)
