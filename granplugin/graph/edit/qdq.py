"""Markers + rows + amax -> a Q/DQ graph: a pure function, the same bytes for the same input."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from granplugin.graph.edit.additions import Additions
from granplugin.graph.edit.contract import Seen, contract, misfit
from granplugin.graph.edit.fold import FOLDED, fold_batch_norms, weight_at
from granplugin.graph.edit.lowering import lower
from granplugin.graph.edit.nodes import (
    DOMAIN,
    bypass,
    markers,
    only_user,
    replace,
    scope_of,
    site_of,
)
from granplugin.graph.edit.pads import merge_pads
from granplugin.graph.mapped import let_go
from granplugin.graph.methods import How
from granplugin.planning.rows import QuantizedRow, Row
from granplugin.quant.formats import FORMATS, Format, quantize_in_parts, scale_of
from granplugin.quant.granularity import expand
from granplugin.quant.site import Shape


def insert(
    model: ir.Model,
    rows: Sequence[Row],
    amax: Mapping[str, np.ndarray],
    how: Mapping[str, How] = MappingProxyType({}),
) -> ir.Model:
    """A copy of the marked float model with Q/DQ where a row says so, and no markers.

    `amax` is by row.site, float32, one value per block (row.grid), all positive; a site without
    one stays float, unless its row is dynamic. Weights are stored as integers with a
    DequantizeLinear; inputs and outputs get QuantizeLinear and DequantizeLinear, one pair per
    tensor and scale. Zero points are 0, a lone scale is 0-D. Batch norms are folded where rows say
    so. `how` asks, by row.site, for rows to be lowered or simulated (see graph.lowering). Raises
    ModelError.
    """
    model = model.clone()
    graph = model.graph
    fold_batch_norms(graph, rows)
    ranged = {site for site, value in amax.items() if value is not None}
    wanted = [row for row in rows if row.quantized and (row.dynamic or row.site in ranged)]
    merge_pads(graph, {row.observed: row for row in wanted})
    additions = Additions(graph)
    write_pairs(additions, *lower(additions, wanted, amax, how))
    model.functions.clear()
    model.opset_imports.pop(DOMAIN, None)
    passes.RemoveUnusedNodesPass()(model)
    _in_order(graph)
    return model


def _in_order(graph: ir.Graph) -> None:
    """Constants in the order in which nodes read them, those of folding under the names they have
    where torch has folded: which of the two was done does not show."""
    read = dict.fromkeys(
        value for node in graph.all_nodes() for value in node.inputs if value is not None
    )
    held = [value for value in read if value.is_initializer() and value.graph is graph]
    held += [value for value in graph.initializers.values() if value not in read]
    names = {str(value.name) for value in held}
    graph.initializers.clear()
    for value in held:
        name = str(value.name).removesuffix(FOLDED)
        if name not in names:
            value.name = name
        graph.initializers.add(value)


def _requires(
    before: Seen, additions: Additions, rows: Sequence[QuantizedRow], amax: Mapping[str, np.ndarray]
) -> str | None:
    here = [row for row in rows if row.observed in before.sites]
    dynamic = next((row.site for row in here if row.dynamic), None)
    return f"{dynamic} is dynamic" if dynamic else misfit(here, amax)


def _ensures(
    before: Seen,
    after: Seen,
    result: None,
    additions: Additions,
    rows: Sequence[QuantizedRow],
    amax: Mapping[str, np.ndarray],
) -> str | None:
    if left := next(iter(after.sites), None):
        return f"{left} has a marker still"
    scopes = {row.site for row in rows}
    for node in after.nodes.get("QuantizeLinear", ()):
        if scope_of(node) in scopes:
            reader = only_user(node.outputs[0])
            if reader is None or reader.op_type != "DequantizeLinear":
                return f"{node.name} is not followed by one DequantizeLinear"
    return None


@contract(_requires, _ensures)
def write_pairs(
    additions: Additions, rows: Sequence[QuantizedRow], amax: Mapping[str, np.ndarray]
) -> None:
    """Q/DQ, in place, in the markers' place: that of the row observed there, or nothing.

    Requires that each row with a marker is not dynamic and has an amax for each of its blocks.
    Ensures that no marker is left, and that each QuantizeLinear is read by one DequantizeLinear.
    """
    by_site = {row.observed: row for row in rows}
    writer = _Writer(additions)
    for marker in markers(additions.graph):
        row = by_site.get(site_of(marker))
        if row is None:
            bypass(marker)
        else:
            writer.quantize(marker, row, amax[row.site])


def _layout(
    row: QuantizedRow, scale: np.ndarray
) -> tuple[np.ndarray, dict[str, int], Shape | None]:
    """How ONNX says a grid of scales: (scale, attributes, shape of the tensor without its batch).

    One scale is 0-D; scales along one axis are 1-D with `axis`. Others are, for a weight, blocks
    along the axis where they are longest (`block_size`), repeated along the rest. ONNX Runtime
    refuses those for a dynamic batch, so another tensor is reshaped to the third value, the axes
    from the first to the last along which scales differ being one, axis 1.
    """
    varying = [axis for axis, cells in enumerate(row.grid) if cells > 1]
    if not varying:
        return scale.reshape(()), {}, None
    first, last = varying[0], varying[-1]
    if row.operand == "weight" and first < last:
        axis = max(range(len(row.block)), key=lambda i: (row.block[i], i))
        repeats = tuple(1 if i == axis else part for i, part in enumerate(row.block))
        return expand(scale, repeats), {"axis": axis, "block_size": row.block[axis]}, None
    inside = range(first, last + 1)
    repeats = tuple(part if axis in inside else 1 for axis, part in enumerate(row.block))
    scale = expand(scale, repeats).reshape(-1)
    if first == last:
        return scale, {"axis": first}, None
    return scale, {"axis": 1}, (len(scale), math.prod(row.shape[last + 1 :]))


class _Writer:
    """Writes Q/DQ into a graph; remembers which tensors have which pair already."""

    def __init__(self, additions: Additions) -> None:
        self.additions = additions
        self.done: dict[tuple[object, ...], ir.Value] = {}
        self.zeros: dict[tuple[str, Shape], ir.Value] = {}

    def quantize(self, marker: ir.Node, row: QuantizedRow, amax: np.ndarray) -> None:
        """Put the row's Q/DQ in the marker's place."""
        x, fmt = marker.inputs[0], FORMATS[row.format]
        cells = scale_of(amax, fmt)
        scale, attributes, flat = _layout(row, cells)
        key = (row.format, scale.shape, scale.tobytes(), *attributes.items(), flat)
        if (x, key) not in self.done:
            make = functools.partial(self.additions.node, row.site, before=marker)
            constants = [
                self.additions.constant(f"{row.site}/scale", scale),
                self._zero(fmt, scale.shape),
            ]
            if row.operand == "weight":
                y = self._stored(row, weight_at(marker), cells)
            else:
                y = make("Reshape", [x, self._shape(row, flat)]) if flat else x
                y = make("QuantizeLinear", [y, *constants], attributes)
            y = make("DequantizeLinear", [y, *constants], attributes)
            if flat:
                y = make("Reshape", [y, self._shape(row, row.shape[1:])])
            y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), x.shape
            self.done[x, key] = y
            self.done[y, key] = y  # quantizing again with the same scale changes nothing
        replace(marker.outputs[0], self.done[x, key])
        marker.graph.remove(marker, safe=True)

    def _stored(self, row: QuantizedRow, weight: np.ndarray, cells: np.ndarray) -> ir.Value:
        fmt = FORMATS[row.format]

        def make() -> np.ndarray:
            made = quantize_in_parts(weight, cells, row.block, fmt)
            let_go(weight)
            return made

        return self.additions.made(f"{row.site}/{row.format}", weight.shape, fmt.dtype, make)

    def _shape(self, row: QuantizedRow, shape: Shape) -> ir.Value:
        return self.additions.constant(f"{row.site}/shape", np.array([-1, *shape], np.int64))

    def _zero(self, fmt: Format, shape: Shape) -> ir.Value:
        if (fmt.name, shape) not in self.zeros:
            name = f"zero_point/{fmt.name}" + "".join(f"_{length}" for length in shape)
            self.zeros[fmt.name, shape] = self.additions.constant(name, np.zeros(shape, fmt.dtype))
        return self.zeros[fmt.name, shape]
