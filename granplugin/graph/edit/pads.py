"""Zero padding in front of a convolution, moved into it.

Zero quantizes to zero, so padding before Q/DQ is padding after it; engines fuse Q/DQ with a
convolution only where no Pad stands between them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from granplugin.graph.edit.contract import Seen, contract, gone
from granplugin.graph.edit.nodes import all_nodes, bypass, constant, is_marker, only_user, site_of
from granplugin.planning.rows import QuantizedRow


def _requires(before: Seen, graph: ir.Graph, rows: Mapping[str, QuantizedRow]) -> str | None:
    other = next((site for site, row in rows.items() if row.observed != site), None)
    return other and f"{other} is not where {rows[other].site} is observed"


def _ensures(
    before: Seen, after: Seen, result: None, graph: ir.Graph, rows: Mapping[str, QuantizedRow]
) -> str | None:
    if lost := gone(before, after):
        return f"{lost[0]} has lost a marker"
    for node in after.nodes.get("Pad", ()):
        pads = constant(node.inputs[1])
        if pads is not None and not pads.any():
            return f"{node.name} pads by nothing and is still there"
    return None


@contract(_requires, _ensures)
def merge_pads(graph: ir.Graph, rows: Mapping[str, QuantizedRow]) -> None:
    """Move zero Pads, in place, where it is exact; `rows` are the quantized ones by marker.

    Exact means: all between the Pad and the convolution are markers, nothing else reads the
    padded tensor, and no scale depends on a place in it. Requires that each row is under the marker
    where it is observed. Ensures that no Pad by nothing is left; all markers stay.
    """
    for node in list(all_nodes(graph)):
        if node.op_type == "Pad":
            pads = constant(node.inputs[1])
            if pads is not None and not pads.any():
                bypass(node)
        elif node.op_type == "Conv":
            pad = node.inputs[0].producer()
            while is_marker(pad) and only_user(pad.outputs[0]) and _movable(rows, pad):
                pad = pad.inputs[0].producer()
            if pad is not None and pad.op_type == "Pad" and only_user(pad.outputs[0]):
                _merge(pad, node)


def _movable(rows: Mapping[str, QuantizedRow], marker: ir.Node) -> bool:
    row = rows.get(site_of(marker))
    return row is None or row.scales == row.grid[1] or row.scales == 1


def _merge(pad: ir.Node, conv: ir.Node) -> None:
    pads = constant(pad.inputs[1])
    filled = len(pad.inputs) > 2 and pad.inputs[2] is not None
    fill = constant(pad.inputs[2]) if filled else np.zeros(())
    rank = len(conv.attributes["kernel_shape"].as_ints()) + 2
    if (
        pads is None
        or len(pads) != 2 * rank  # pads of some axes only
        or pads.min() < 0
        or pads.reshape(2, rank)[:, :2].any()
        or fill is None
        or fill != 0
        or pad.attributes["mode"].as_string() != "constant"
        or conv.attributes["auto_pad"].as_string() not in ("NOTSET", "VALID")
    ):
        return
    own = conv.attributes["pads"].as_ints()
    added = pads.reshape(2, rank)[:, 2:].ravel()
    merged = [int(a) + int(b) for a, b in zip(own, added, strict=True)]
    conv.attributes["pads"] = ir.AttrInt64s("pads", merged)
    bypass(pad)
