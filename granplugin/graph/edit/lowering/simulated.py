"""Any granularity in float arithmetic: for accuracy alone, an engine computes it in float.

A weight becomes the oracle's dequantized floats. An input or output goes through Div - Round - Clip
- Mul with the scales spread over the tensor, which is the definition of Q/DQ: ONNX's Round is
half-to-even (zero keeps its sign, that is all). ONNX has no such arithmetic for FP8: there, and
where scales are computed at run time, it is Div - Q/DQ with one scale, a power of two - Mul, and
the Mul keeps an engine from fusing the Q/DQ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from granplugin.graph.edit.additions import Additions
from granplugin.graph.edit.contract import misfit, seam
from granplugin.graph.edit.fold import weight_at
from granplugin.graph.edit.lowering.division import divided
from granplugin.graph.edit.nodes import only_user, replace, site_of
from granplugin.graph.methods import broadcast
from granplugin.planning.rows import QuantizedRow
from granplugin.quant.formats import FORMATS, fake_quantize, scale_of


def _fits(
    additions: Additions, of_site: Sequence[ir.Node], row: QuantizedRow, amax: np.ndarray
) -> str | None:
    other = next((node for node in of_site if site_of(node) != row.observed), None)
    if row.dynamic or other is not None:
        return f"{row.site} is {'dynamic' if other is None else f'not observed at {other.name}'}"
    return misfit([row], {row.site: amax})


def _gone(
    result: None,
    additions: Additions,
    of_site: Sequence[ir.Node],
    row: QuantizedRow,
    amax: np.ndarray,
) -> str | None:
    left = any(marker.graph is not None for marker in of_site)
    return f"{row.site} has a marker still" if left else None


@seam(_fits, _gone)
def simulate(
    additions: Additions, of_site: Sequence[ir.Node], row: QuantizedRow, amax: np.ndarray
) -> None:
    """Put a weight's fake-quantized floats, or an integer format's arithmetic, in the place of the
    site's markers.

    Requires markers of the row's own site, and an amax for each of its blocks. Ensures that the
    markers are gone.
    """
    fmt = FORMATS[row.format]
    cells = scale_of(amax, fmt)
    for marker in of_site:
        if row.operand == "weight":
            baked = fake_quantize(weight_at(marker), cells, row.block, fmt)
            y = additions.constant(f"{row.site}/baked", baked)
        else:
            x = y = marker.inputs[0]
            scale = additions.number(f"{row.site}/scale", broadcast(cells, row), x)
            bounds = [
                additions.number(f"{row.site}/smallest", fmt.smallest, x),
                additions.number(f"{row.site}/largest", fmt.largest, x),
            ]
            for op_type, more in (
                ("Div", [scale]),
                ("Round", []),
                ("Clip", bounds),
                ("Mul", [scale]),
            ):
                y = additions.node(row.site, op_type, [y, *more], before=marker)
                y.type, y.shape = x.type, x.shape
        replace(marker.outputs[0], y)
        marker.graph.remove(marker, safe=True)


def _multiplied(
    result: None, additions: Additions, marker: ir.Node, row: QuantizedRow, scale: ir.Value
) -> str | None:
    mul = only_user(marker.outputs[0])
    if mul is None or mul.op_type != "Mul" or mul.inputs[1] is not scale:
        return f"what {row.site} marks is read without its scales"
    return None


@seam(divided, _multiplied)
def multiply_back(
    additions: Additions, marker: ir.Node, row: QuantizedRow, scale: ir.Value
) -> None:
    """Multiply a divided tensor by its scales again, behind its marker.

    Requires that the marker reads the quotient by `scale`. Ensures that only the multiplication by
    `scale` reads the marker.
    """
    divided = marker.outputs[0]
    y = additions.node(row.site, "Mul", [divided, scale], after=marker)
    y.type, y.shape = marker.inputs[0].type, marker.inputs[0].shape
    replace(divided, y)
    y.producer().replace_input_with(0, divided)
    divided.name = divided.name or f"{row.site}/divided"  # the graph's output has it now
