"""A written graph as ONNX Runtime runs it: do it, the oracle and modelopt agree, value by value?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from granplugin.errors import Unhonoured
from granplugin.graph.methods import How
from granplugin.graph.read.file_graph import FileGraph, open_file, pairs_of
from granplugin.graph.read.in_parts import in_parts
from granplugin.graph.read.intended import Intended
from granplugin.graph.read.verify_lowered import (
    check_division,
    run_time_scales,
    simulated,
    unit,
)
from granplugin.planning.rows import QuantizedRow, Row
from granplugin.quant.formats import FORMATS, Format, dequantize, quantize, scale_of
from granplugin.quant.granularity import expand
from granplugin.quant.site import Shape

FakeQuantize = Callable[[np.ndarray, QuantizedRow, np.ndarray | None], np.ndarray]

_VALUES_AT_ONCE = 2**25
"""Float values fetched from ONNX Runtime in one go: 128 MB."""
_MODELOPTS_ZERO = 2**-24
"""modelopt makes zeros of what has a range of at most this."""


@dataclass(frozen=True)
class Agreement:
    """How three computations of Q/DQ compare on ONNX Runtime's own tensors.

    `sites` and `values` were compared. `oracle_differs` is how many of the values ONNX Runtime
    computed differ from the numpy oracle's in any bit, `modelopt_differs` how many differ from
    modelopt's by a step of the format or more, `modelopt_worst_steps` by how many at most; None
    where it was not asked.
    """

    sites: int
    values: int
    oracle_differs: int
    modelopt_differs: int | None
    modelopt_worst_steps: int | None


def agreement(
    path: Path,
    rows: Sequence[Row],
    amax: Mapping[str, np.ndarray],
    feeds: Mapping[str, np.ndarray],
    fake_quantize: FakeQuantize | None = None,
    how: Mapping[str, How] = MappingProxyType({}),
    weights: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Agreement:
    """Run ONNX Runtime without optimizations, each node once, and compare each site with the oracle
    and modelopt.

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
    plan = Intended(rows, amax, how)
    found = [place for row in plan.rows for place in _places(graph, plan, row)]
    # Weights first: together they are computed without the network.
    found.sort(key=lambda place: (place.held is None, graph.at[graph.producer[place.result].name]))
    values = differs = worst = 0
    chunks = list(_chunks(found, max(len(array) for array in feeds.values())))
    parts = in_parts(graph, feeds, [_wanted(chunk) for chunk in chunks])
    for chunk, fetched in zip(chunks, parts, strict=True):
        for place in chunk:
            row, result = place.row, fetched[place.result]
            fmt = FORMATS[row.format]
            held = place.held is not None
            given = place.held() if place.held else None
            if given is None:
                given = fetched[place.source].astype(np.float32, copy=False)
            scale = plan.scale(row)
            if held:
                row, own_amax, _ = plan.weight(row, weights)
                scale = scale_of(own_amax, fmt)
            scale, block = run_time_scales(row, given) if scale is None else _broadcast(row, scale)
            stored = given if held else quantize(given, scale, block, fmt)
            left = np.full_like(scale, unit(row, plan.scale(row))) if place.divided else scale
            expected = dequantize(stored, left, block).astype(result.dtype, copy=False)
            values += result.size
            same = np.array_equal if place.simulated else _same_bits  # but for the sign of zeros
            if not same(expected, result):
                raise Unhonoured(f"{row.site}: ONNX Runtime and the numpy oracle differ")
            if fake_quantize is not None and not held:
                theirs = fake_quantize(given, row, plan.amax.get(row.site))
                steps = _steps(row, given, stored, theirs, scale, block)
                differs += int(np.count_nonzero(steps))
                worst = max(worst, int(steps.max(initial=0)))
    sites = len({place.row.site for place in found})
    if fake_quantize is None:
        return Agreement(sites, values, 0, None, None)
    return Agreement(sites, values, 0, int(differs), worst)


@dataclass(frozen=True)
class _Place:
    """A row's tensor before (or what reads a weight's stored numbers) and after it is quantized; before
    arithmetic in float32, as cast for it: ONNX Runtime's cast may skip the rounding to float16 in
    front of it.

    `divided`: what comes after still lacks its scales; `simulated`: it was made by arithmetic.
    """

    row: QuantizedRow
    source: str
    result: str
    held: Callable[[], np.ndarray] | None = None
    divided: bool = False
    simulated: bool = False


def _places(graph: FileGraph, plan: Intended, row: QuantizedRow) -> list[_Place]:
    def raised(name: str) -> str:
        return str(graph.raised.get(name, name))

    method = plan.methods.get(row.site)
    if method == "simulated":
        if row.operand == "weight":
            return []  # float, and compared when the file was read back
        places = simulated(graph, row, plan.scale(row))
        return [_Place(row, raised(place.source), place.result, simulated=True) for place in places]
    pairs = pairs_of(graph, row)
    if method is None:
        # QuantizeLinear takes any precision; a Reshape in front of it is float32.
        return [
            _Place(row, raised(pair.source) if pair.flat else pair.source, pair.result, pair.held)
            for pair in pairs
        ]
    sources = [check_division(graph, pair, row, plan.scale(row)) for pair in pairs]
    return [
        _Place(row, raised(source), pair.result, divided=True)
        for source, pair in zip(sources, pairs, strict=True)
    ]


def _chunks(places: Sequence[_Place], batch: int) -> Iterator[list[_Place]]:
    """Sites whose tensors fit in memory together."""
    chunk: list[_Place] = []
    held = 0
    for place in places:
        row = place.row
        size = 2 * math.prod(row.shape) * (1 if row.operand == "weight" else batch)
        if chunk and held + size > _VALUES_AT_ONCE:
            yield chunk
            chunk, held = [], 0
        chunk.append(place)
        held += size
    if chunk:
        yield chunk


def _wanted(places: Sequence[_Place]) -> set[str]:
    """The float tensors of these places."""
    given = {place.source for place in places if place.held is None}
    return given | {place.result for place in places}


def _broadcast(row: QuantizedRow, cells: np.ndarray) -> tuple[np.ndarray, Shape]:
    """Scales and block for tensors of any batch, and of any length along an axis with one block
    (a Pad moved behind the site makes it smaller than the row's shape)."""
    block = tuple(p if count > 1 else 1 for p, count in zip(row.block, row.grid, strict=True))
    return cells, block


def _same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.shape == right.shape and left.tobytes() == right.tobytes()


def _steps(
    row: QuantizedRow,
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
    steps: np.ndarray = np.abs(_ordinal(nearest, fmt) - _ordinal(stored, fmt))
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
