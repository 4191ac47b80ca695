"""A written graph, read back: is it what the plan says, do ONNX Runtime and the oracle agree?"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx

from granplugin.errors import Unhonoured
from granplugin.graph import reference
from granplugin.graph.edit.lowering.methods import How, methods
from granplugin.graph.read.file_graph import FileGraph, Pair, open_file, pairs_of, residual_adds
from granplugin.graph.read.graph import PRECISIONS, scope_of
from granplugin.graph.read.verify_lowered import (
    check_baked,
    check_behind,
    check_division,
    run_time_scales,
    simulated,
    unit,
    written_weight,
)
from granplugin.planning.plan import Row
from granplugin.quant.formats import FORMATS, Format, dequantize, quantize, scale_of
from granplugin.quant.granularity import Shape, expand

FakeQuantize = Callable[[np.ndarray, Row, np.ndarray], np.ndarray]

_VALUES_AT_ONCE = 2**25
"""Float values fetched from ONNX Runtime in one go: 128 MB."""
_MODELOPTS_ZERO = 2**-24
"""modelopt makes zeros of what has a range of at most this."""


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
    plan = _Plan(rows, amax, how)
    unclaimed = {pair.name: pair for pair in graph.pairs}
    readers: dict[str, set[str | None]] = defaultdict(set)

    def claim(pair: Pair, reader: str | None) -> None:
        unclaimed.pop(pair.name, None)
        readers[pair.name].add(reader)

    for row in plan.rows:
        method, cells = plan.methods.get(row.site), plan.scale(row)
        if method == "simulated" and row.role == "weight":
            check_baked(graph, row, cells, weights[row.layer])
        elif method == "simulated":
            for place in simulated(graph, row, cells):
                if place.pair is not None:
                    claim(place.pair, row.site)
                    _compare(place.pair, *_divided(row, cells))
        elif method is not None:
            for pair in pairs_of(graph, row):
                claim(pair, row.layer)
                _compare(pair, *_divided(row, cells))
                check_division(graph, pair, row, cells)
                if method == "row_scale":
                    check_behind(graph, pair, row, cells)
        else:
            for pair in pairs_of(graph, row):
                for reader in _readers(graph, row):
                    claim(pair, reader)
                if row.role == "weight":
                    written, own_amax, weight = plan.weight(row, weights)
                    _compare(pair, written, scale_of(own_amax, FORMATS[row.format]))
                    _compare_stored(pair, written, own_amax, weight)
                else:
                    _compare(pair, row, cells)
    for pair in unclaimed.values():
        raise Unhonoured(f"{pair.name}: quantized, and no row of the plan says so")
    for pair in graph.pairs:
        # Anything may read an output behind its Q/DQ, but an input only the layers with a row, and
        # a skip input the adds that one is about.
        allowed = readers[pair.name]
        for node in graph.readers(pair.result):
            if None not in allowed and allowed.isdisjoint((scope_of(node), node.name)):
                raise Unhonoured(f"{node.name}: reads {pair.result}, and no row says so")


def _readers(graph: FileGraph, row: Row) -> list[str | None]:
    """The layer, or the nodes, that may read what the row quantizes; None for any."""
    if row.role == "skip":
        return [add.name for add, _ in residual_adds(graph, row.layer)]
    return [row.layer if row.role != "output" else None]


def agreement(
    path: Path,
    rows: Sequence[Row],
    amax: Mapping[str, np.ndarray],
    feeds: Mapping[str, np.ndarray],
    fake_quantize: FakeQuantize | None = None,
    how: Mapping[str, How] = MappingProxyType({}),
    weights: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Agreement:
    """Run ONNX Runtime without optimizations and compare each site with the oracle and modelopt.

    On what each QuantizeLinear was given, the oracle must make what DequantizeLinear gave, bit for
    bit; so must the oracle for stored weights. Where a tensor is divided by its scales in front of
    the QuantizeLinear, the stored numbers are compared; where it is simulated, the floats.
    `fake_quantize(x, row, amax)` is modelopt's: it may differ at inputs and outputs by one step,
    where x lies between two steps within float32 rounding; a dynamic row has no amax to give it,
    and modelopt takes a range of at most 2^-24 for zero. `how` is as for insert; `weights`, as for
    read_back, are those of lowered layers. Raises Unhonoured, naming the site, where that does not
    hold.
    """
    graph = open_file(path)
    plan = _Plan(rows, amax, how)
    found = [place for row in plan.rows for place in _places(graph, plan, row)]
    values = differs = worst = 0
    for chunk in _chunks(found, max(len(array) for array in feeds.values())):
        fetched = _fetch(graph, chunk, feeds)
        for place in chunk:
            row, result = place.row, fetched[place.result]
            fmt = FORMATS[row.format]
            given = place.stored
            if given is None:
                given = fetched[place.source].astype(np.float32, copy=False)
            scale = plan.scale(row)
            if place.stored is not None:
                row, own_amax, _ = plan.weight(row, weights)
                scale = scale_of(own_amax, fmt)
            scale, block = run_time_scales(row, given) if scale is None else _broadcast(row, scale)
            stored = given if place.stored is not None else quantize(given, scale, block, fmt)
            left = np.full_like(scale, unit(row, plan.scale(row))) if place.divided else scale
            expected = dequantize(stored, left, block).astype(result.dtype, copy=False)
            values += result.size
            same = np.array_equal if place.simulated else _same_bits  # but for the sign of zeros
            if not same(expected, result):
                raise Unhonoured(f"{row.site}: ONNX Runtime and the numpy oracle differ")
            if fake_quantize is not None and place.stored is None:
                theirs = fake_quantize(given, row, plan.amax.get(row.site))
                steps = _steps(row, given, stored, theirs, scale, block)
                differs += np.count_nonzero(steps)
                worst = max(worst, int(steps.max(initial=0)))
    return Agreement(len({place.row.site for place in found}), values, 0, int(differs), worst)


class _Plan:
    """The rows that are in the file, and what is to be there for each."""

    def __init__(
        self, rows: Sequence[Row], amax: Mapping[str, np.ndarray], how: Mapping[str, How]
    ) -> None:
        dynamic = {row.site for row in rows if row.dynamic}
        self.amax = {
            site: value for site, value in amax.items() if value is not None and site not in dynamic
        }
        self.rows = [
            row for row in rows if row.quantized and (row.dynamic or row.site in self.amax)
        ]
        self.methods = methods(self.rows, how)
        self.inputs = {row.layer: row for row in self.rows if row.role == "input"}

    def scale(self, row: Row) -> np.ndarray | None:
        """The row's scales; None where they are computed at run time."""
        amax = self.amax.get(row.site)
        return None if amax is None else scale_of(amax, FORMATS[row.format])

    def weight(
        self, row: Row, weights: Mapping[str, np.ndarray]
    ) -> tuple[Row, np.ndarray, np.ndarray | None]:
        """The row, amax and floats of a weight as they are to be in the file."""
        amax, weight = self.amax[row.site], weights.get(row.layer)
        source = self.inputs.get(row.layer)
        method = None if source is None else self.methods.get(source.site)
        if method not in ("fold", "rescale"):
            return row, amax, weight
        return written_weight(method, row, amax, weight, source, self.scale(source))


@dataclass(frozen=True)
class _Place:
    """A row's tensor before (or a weight's stored numbers) and after it is quantized; before
    arithmetic in float32, as cast for it: ONNX Runtime's cast may skip the rounding to float16 in
    front of it.

    `divided`: what comes after still lacks its scales; `simulated`: it was made by arithmetic.
    """

    row: Row
    source: str
    result: str
    stored: np.ndarray | None = None
    divided: bool = False
    simulated: bool = False


def _places(graph: FileGraph, plan: _Plan, row: Row) -> list[_Place]:
    def raised(name: str) -> str:
        return graph.raised.get(name, name)

    method = plan.methods.get(row.site)
    if method == "simulated":
        if row.role == "weight":
            return []  # float, and compared when the file was read back
        places = simulated(graph, row, plan.scale(row))
        return [_Place(row, raised(place.source), place.result, simulated=True) for place in places]
    pairs = pairs_of(graph, row)
    if method is None:
        # QuantizeLinear takes any precision; a Reshape in front of it is float32.
        return [
            _Place(row, raised(pair.source) if pair.flat else pair.source, pair.result, pair.stored)
            for pair in pairs
        ]
    sources = [check_division(graph, pair, row, plan.scale(row)) for pair in pairs]
    return [
        _Place(row, raised(source), pair.result, divided=True)
        for source, pair in zip(sources, pairs, strict=True)
    ]


def _check_precision(graph: FileGraph, precision: str, keep: Collection[str]) -> None:
    """Do products multiply in this type? (The full check has seen that types fit together.)"""
    asked = next(kind for kind, name in PRECISIONS.items() if name == precision)
    for product in graph.products:
        found = graph.element_type(product.node.output[0])
        if found not in (0, asked) and product.node.name not in keep:
            low, wanted = (onnx.TensorProto.DataType.Name(kind) for kind in (found, asked))
            raise Unhonoured(f"{product.node.name}: multiplies in {low}, not {wanted}")


def _divided(row: Row, cells: np.ndarray | None) -> tuple[Row, np.ndarray]:
    """What is to be behind a division: one scale for the tensor, a power of two."""
    scale = np.full((1,) * len(row.shape), unit(row, cells), np.float32)
    return dataclasses.replace(row, block=row.shape, dynamic=False), scale


def _compare(pair: Pair, row: Row, cells: np.ndarray) -> None:
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


def _compare_stored(pair: Pair, row: Row, amax: np.ndarray, weight: np.ndarray) -> None:
    fmt = FORMATS[row.format]
    expected = quantize(weight, scale_of(amax, fmt), row.block, fmt)
    if pair.stored.dtype != fmt.dtype or pair.stored.shape != expected.shape:
        raise Unhonoured(f"{row.site}: is {pair.stored.dtype} {pair.stored.shape} in the file")
    wrong = np.count_nonzero(pair.stored.astype(np.float32) != expected.astype(np.float32))
    if wrong:
        raise Unhonoured(f"{row.site}: {wrong} of {expected.size} stored values are wrong")


def _chunks(found: Sequence[_Place], batch: int) -> Iterator[list[_Place]]:
    """Sites whose tensors fit in memory together."""
    chunk, held = [], 0
    for place in found:
        row = place.row
        size = 2 * math.prod(row.shape) * (1 if row.role == "weight" else batch)
        if chunk and held + size > _VALUES_AT_ONCE:
            yield chunk
            chunk, held = [], 0
        chunk.append(place)
        held += size
    if chunk:
        yield chunk


def _fetch(
    graph: FileGraph, places: Sequence[_Place], feeds: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The places' float tensors, as ONNX Runtime computes them without optimizations."""
    wanted = {
        name
        for place in places
        for name in ([place.source] if place.stored is None else []) + [place.result]
    }
    known = {name: feeds[name] for name in wanted & feeds.keys()}
    known |= {name: graph.array(name) for name in wanted & graph.stored.keys()}
    computed = sorted(wanted - known.keys())
    exposing = onnx.ModelProto()
    exposing.CopyFrom(graph.model)
    own = {value.name for value in exposing.graph.output}
    for name in computed:
        if name not in own:
            exposing.graph.output.append(onnx.ValueInfoProto(name=name))
    results = reference.run(exposing, computed, feeds)
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
    if row.dynamic:
        steps[expand(scale, block) * np.float32(fmt.largest) <= _MODELOPTS_ZERO] = 0
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
