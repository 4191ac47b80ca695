"""In what an engine computes with an operand of a file, by its plan."""

from __future__ import annotations

import math

from granplugin.backends.base import LayerPrecision
from granplugin.backends.nvidia.kernels import Kernels
from granplugin.graph.read.quantized_graph import QuantizedOperand


def ran_of(operand: QuantizedOperand, kernels: Kernels) -> LayerPrecision:
    """In what the engine has this operand, under its site's name."""
    site = operand.row.site
    if operand.row.format == "uint8":
        return LayerPrecision(
            site, "wrong", "", "uint8 is read as int8: what lies above 127 scales "
            "saturates",
        )  # fmt: skip
    if operand.product:
        return kernels.product(site, operand.node)
    if operand.quantize == operand.dequantize:  # the graph gives the numbers themselves
        return kernels.written(site, operand.dequantize)
    if operand.constant and not operand.moves:
        return LayerPrecision(site, operand.row.format, "", "folded: a constant, rounded before")
    pairs = [(q and q.name, dq.name) for q, dq in ((p.pair.q, p.pair.dq) for p in operand.pairs)]
    node = operand.dequantize if operand.row.operand == "output" else operand.node
    return kernels.operand(site, node, pairs, operand.moves)


def time_ms_of(kernels: Kernels, node: str) -> float | None:
    """What the kernels of a node take in a profile, None without one."""
    times = [kernel.time_ms for kernel in kernels.multiplying(node)]
    known = [time for time in times if time is not None]
    return math.fsum(known) if known else None
