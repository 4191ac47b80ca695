"""The cells that a table is printed and probed with: each op with each granularity it can have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from granplugin.capabilities.table import ACTIVATIONS, CONVS, LOOKUP, Cell
from granplugin.quant.site import Shape

CHANNELS = 64
SIZE = 16
"""The block size where a cell does not say another."""

ADDS = ("add", "add_shared")
"""Their `weight` is that of the convolution in front of the add."""

_CONV_X = (4, CHANNELS, 16, 16)
INPUTS: dict[str, Shape] = {
    "conv": _CONV_X,
    "depthwise": _CONV_X,
    "grouped": _CONV_X,
    "transposed": _CONV_X,
    "maxpool": _CONV_X,
    "passive": _CONV_X,
    "add": _CONV_X,
    "add_shared": _CONV_X,
    "gemm": (4, CHANNELS),
    "matmul_2d": (4, CHANNELS),
    "linear": (4, 8, CHANNELS),
    "matmul": (4, 8, CHANNELS),
    "activations": (4, 8, CHANNELS),
    LOOKUP: (4, 8),
}
OTHER: Shape = (4, CHANNELS, CHANNELS)
"""The second activation of a product of two."""
WEIGHTS: dict[str, Shape] = {
    "conv": (CHANNELS, CHANNELS, 3, 3),
    "depthwise": (CHANNELS, 1, 3, 3),
    "grouped": (CHANNELS, CHANNELS // 2, 3, 3),
    "transposed": (CHANNELS, CHANNELS, 3, 3),
    "gemm": (CHANNELS, CHANNELS),
    "matmul_2d": (CHANNELS, CHANNELS),
    "linear": (CHANNELS, CHANNELS),
    "matmul": (CHANNELS, CHANNELS),
    LOOKUP: (CHANNELS, CHANNELS),
}
# The axis that each word of `Scales` is about, and with it the words that an op is tried with.
_CONV = {
    "per_channel": 0, "per_channel(in)": 1, "per_channel(kernel)": 2,
    "per_block(out)": 0, "per_block(in)": 1, "per_block(kernel)": 2,
}  # fmt: skip
_DEPTHWISE = {"per_channel": 0, "per_channel(kernel)": 2, "per_block(kernel)": 2}
_TRANSPOSED = {"per_channel": 1, "per_channel(in)": 0}
_OUT_IN = {
    "per_channel": 0,
    "per_channel(in)": 1,
    "per_block(out)": 0,
    "per_block(in)": 1,
}
_IN_OUT = {
    "per_channel": 1,
    "per_channel(in)": 0,
    "per_block(out)": 1,
    "per_block(in)": 0,
}
WEIGHT_AXES = {
    "conv": _CONV, "grouped": _CONV, "depthwise": _DEPTHWISE, "transposed": _TRANSPOSED,
    "gemm": _OUT_IN, "linear": _OUT_IN, "matmul": _IN_OUT, "matmul_2d": _IN_OUT, LOOKUP: _OUT_IN,
}  # fmt: skip
_IMAGE = {
    "per_batch": 0, "per_channel": 1, "per_position": 2, "per_block(in)": 1, "per_block(space)": 3,
    "reshaped": 1,
}  # fmt: skip
DYNAMIC = {"per_tensor(dynamic)": "per_batch", "per_token(dynamic)": "per_row"}
"""What is computed at run time -> the constant scales that it is written like."""
_ROW = {"per_batch": 0, "per_channel": 1, "per_block(in)": 1}
_ROWS = {
    "per_batch": 0,
    "per_token": 1,
    "per_channel": 2,
    "per_row": 2,
    "per_block(in)": 2,
    "reshaped": 1,
}
INPUT_AXES = {2: _ROW, 3: _ROWS, 4: _IMAGE}


def cells(ops: Sequence[str], graphs: Sequence[str] = ("fp32", "fp16")) -> tuple[Cell, ...]:
    """Every cell that there is a network of, in a fixed order: each granularity of a weight beside
    a per_tensor input, each of an input beside a per_channel weight, either alone, and outputs."""
    return tuple(
        cell
        for graph in graphs
        for op in ops
        for fmt in ("int8", "fp8", "int4")
        for cell in _cells(op, fmt, graph)
    )


def _cells(op: str, fmt: str, graph: str) -> Iterator[Cell]:
    inputs = (
        "per_tensor",
        "per_tensor(1-D)",
        "per_element",
        *INPUT_AXES[len(INPUTS[op])],
    )
    if op in ADDS:
        for scales in inputs if fmt != "int4" else ():
            yield _cell(op, fmt, graph, weight="per_channel", input=scales)
        if fmt != "int4":
            yield _cell(op, fmt, graph, weight="per_tensor", input="per_tensor")
        return
    if op == ACTIVATIONS:
        for scales in (*inputs, *DYNAMIC, "float") if fmt != "int4" else ():
            yield replace(_cell(op, fmt, graph, input=scales, other="per_tensor"), weight="none")
            if scales not in ("per_tensor", *DYNAMIC):
                yield replace(
                    _cell(op, fmt, graph, input="per_tensor", other=scales), weight="none"
                )
        return
    if op == LOOKUP:
        for scales in ("per_tensor", "per_element", *WEIGHT_AXES[op]):
            yield _cell(op, fmt, graph, weight=scales)
        return
    if op not in WEIGHTS:
        for scales in inputs if fmt != "int4" else ():
            yield _cell(op, fmt, graph, input=scales)
        return
    weights = ("per_tensor", "per_element", *WEIGHT_AXES[op])
    if fmt != "int4":
        for scales in (*weights, *("per_tensor(1-D)",) * (op in CONVS)):
            yield _cell(op, fmt, graph, weight=scales, input="per_tensor")
        dynamic = [word for word in DYNAMIC if DYNAMIC[word] in inputs]
        for scales in (*inputs[1:], *dynamic):
            yield _cell(op, fmt, graph, weight="per_channel", input=scales)
        yield _cell(op, fmt, graph, input="per_tensor")
        for scales in inputs if op in _IMAGES else ():
            yield _cell(op, fmt, graph, output=scales)
    # INT4 is for weights, whose values are packed by two: of linear layers only.
    if fmt != "int4" or op in _LINEAR:
        for scales in ("per_tensor", "per_channel"):
            for stored in (True, False) if fmt != "int4" else (True,):
                yield replace(_cell(op, fmt, graph, weight=scales), stored=stored)
    for size in (SIZE, 2 * SIZE) if op in _LINEAR else ():
        yield _cell(op, fmt, graph, weight="per_block(in)", size=size)


_IMAGES = (*CONVS, "transposed")
_LINEAR = ("gemm", "linear", "matmul", "matmul_2d")


def _cell(
    op: str,
    fmt: str,
    graph: str,
    size: int = SIZE,
    weight: str = "float",
    input: str = "float",
    output: str = "float",
    other: str = "float",
) -> Cell:
    scales = (weight, input, output, other)
    if "per_block(kernel)" in scales:
        size = WEIGHTS[op][2]
    cut = any(word.startswith("per_block") for word in scales)
    return Cell(op, fmt, weight, input, output, size if cut else None, graph, other=other)
