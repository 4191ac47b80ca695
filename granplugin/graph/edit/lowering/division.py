"""Dividing a tensor by its scales but for a power of two, so that its Q/DQ has one scale.

With s = d u and u a power of two, Q with the scale u stores round(x / d / u), which is what Q with
the scales s stores, since a division by u changes no digit; DQ with the scale u gives the stored
number times u, which is DQ's q * s without its factor d.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from granplugin.errors import ModelError
from granplugin.graph.edit.additions import Additions
from granplugin.graph.edit.contract import seam
from granplugin.graph.edit.nodes import site_of
from granplugin.graph.methods import FLOOR, broadcast, reduced_axes, unit_of
from granplugin.planning.rows import QuantizedRow
from granplugin.quant.formats import FORMATS
from granplugin.quant.granularity import PerTensor


def undivided(row: QuantizedRow, cells: np.ndarray | None) -> tuple[QuantizedRow, np.ndarray]:
    """The per_tensor row that is written behind the division, and its amax."""
    fmt = FORMATS[row.format]
    amax = np.full((1,) * len(row.shape), fmt.largest * unit_of(cells, fmt), np.float32)
    return dataclasses.replace(row, granularity=PerTensor()), amax


def divided(
    additions: Additions, marker: ir.Node, row: QuantizedRow, scale: ir.Value
) -> str | None:
    """None where the marker reads a quotient by `scale`, else a sentence: what the edits behind a
    division require."""
    div = marker.inputs[0].producer()
    if div is None or div.op_type != "Div" or div.inputs[1] is not scale:
        return f"what {row.site} marks is not divided by its scales"
    return None


def _fits(
    self: Divisions, marker: ir.Node, row: QuantizedRow, cells: np.ndarray | None
) -> str | None:
    if site_of(marker) != row.observed:
        return f"{row.site} is not observed at {marker.name}"
    if cells is not None and cells.shape != row.grid:
        return f"{row.site} has scales of shape {cells.shape}, not {row.grid}"
    return None


def _ensures(
    result: ir.Value,
    self: Divisions,
    marker: ir.Node,
    row: QuantizedRow,
    cells: np.ndarray | None,
) -> str | None:
    return divided(self.additions, marker, row, result)


class Divisions:
    """Divides in front of markers, a tensor by the same scales once: layers that read one tensor
    alike (q, k, v) then share its Q/DQ."""

    def __init__(self, additions: Additions) -> None:
        self.additions = additions
        self.done: dict[tuple[object, ...], tuple[ir.Value, ir.Value]] = {}

    @seam(_fits, _ensures)
    def divide(self, marker: ir.Node, row: QuantizedRow, cells: np.ndarray | None) -> ir.Value:
        """Let the marker read x / d; returns d, which broadcasts against x.

        `cells` are the row's scales; None where they are computed at run time, as the oracle does:
        max(|x|) / largest, at least FLOOR. Requires a marker of the row's own site and a scale for
        each block. Ensures that the marker reads the quotient by what is returned. Raises
        ModelError for a scale that is 0 in float32.
        """
        x, unit = marker.inputs[0], unit_of(cells, FORMATS[row.format])
        given = None if cells is None else broadcast(cells, row) / np.float32(unit)
        exact = (row.format, reduced_axes(row)) if given is None else (given.shape, given.tobytes())
        key = (x, *exact)
        if key not in self.done:
            if given is None:
                scale = self._at_run_time(marker, row, unit)
            elif (given > 0).all():
                scale = self.additions.number(f"{row.site}/divisor", given, x)
            else:
                raise ModelError(f"{row.site}: a scale is too small for float32; raise its amax")
            divided = self.additions.node(row.site, "Div", [x, scale], before=marker)
            divided.type, divided.shape = x.type, x.shape
            self.done[key] = (divided, scale)
        divided, scale = self.done[key]
        marker.replace_input_with(0, divided)
        return scale

    def _at_run_time(self, marker: ir.Node, row: QuantizedRow, unit: float) -> ir.Value:
        x = marker.inputs[0]

        def node(op_type: str, *inputs: ir.Value) -> ir.Value:
            return self.additions.node(row.site, op_type, inputs, before=marker)

        axes = self.additions.constant(f"{row.site}/axes", np.array(reduced_axes(row), np.int64))
        top = FORMATS[row.format].largest * unit
        largest = self.additions.number(f"{row.site}/largest", top, x)
        floor = self.additions.number(f"{row.site}/floor", float(FLOOR) / unit, x)
        return node("Max", node("Div", node("ReduceMax", node("Abs", x), axes), largest), floor)
