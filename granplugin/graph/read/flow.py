"""Quantized values on their way: from each DequantizeLinear, through what renames, reorders or moves
them, to the nodes that compute with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper

from granplugin.graph.read.graph import ReadGraph, closed, dequantizes, quantizes, reads
from granplugin.graph.read.layout import THROUGH, behind
from granplugin.graph.read.loading import reading
from granplugin.graph.read.pairs import Qdq, Scaled, scaled
from granplugin.quant.site import Shape

_MOVING = frozenset(
    [
        "DepthToSpace",
        "Dropout",
        "Expand",
        "Gather",
        "GatherElements",
        "GatherND",
        "GlobalMaxPool",
        "MaxPool",
        "ReduceMax",
        "ReduceMin",
        "ReverseSequence",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Tile",
    ]
)
"""What gives some of the values it reads, and no others."""


@dataclass(frozen=True)
class Carried:
    """What a tensor has of Q/DQ: the `pairs` that its values come from - several behind a
    concatenation -, and how the scales lie in it. `block` is None where the same values share no
    block any more, `scale` where it is computed at run time. `moved` are the nodes between that
    move values."""

    pairs: tuple[Scaled, ...]
    shape: Shape
    block: Shape | None
    scale: np.ndarray | None
    moved: tuple[onnx.NodeProto, ...] = ()

    @property
    def first(self) -> Scaled:
        return self.pairs[0]

    @property
    def format(self) -> str:
        return self.first.format


@dataclass(frozen=True)
class Reading:
    """A node that computes with a dequantized tensor, or that is the first that `moves` it; `index`
    is that of its input, and past the inputs of a node whose body reads the tensor."""

    node: onnx.NodeProto
    index: int
    name: str
    carried: Carried
    moves: bool


@dataclass(frozen=True)
class Flow:
    """Who reads which quantized values, in the graph's order; `outputs` are what the graph itself
    gives of them, by name - where it gives the numbers themselves, a QuantizeLinear is a pair of
    its own."""

    pairs: tuple[Scaled, ...]
    readings: tuple[Reading, ...]
    outputs: Mapping[str, Carried]


def follow(graph: ReadGraph, pairs: Sequence[Qdq]) -> Flow:
    """Every pair's values, followed. Raises ModelError for scales that are not computed."""
    by_node = {pair.dq.name: pair for pair in pairs}
    carried: dict[str, Carried] = {}
    given: list[Scaled] = []
    found: list[Reading] = []
    outputs: dict[str, Carried] = {}
    for node in graph.nodes:
        with reading(graph.path, node):
            if dequantizes(node):
                pair = scaled(graph, by_node[node.name])
                given.append(pair)
                shape, block = pair.shape or (), pair.block
                carried[pair.pair.result] = Carried((pair,), shape, block, pair.scale)
                continue
            inputs = {at: name for at, name in enumerate(node.input) if name in carried}
            if quantizes(node):
                if node.output[0] in graph.outputs:
                    pair = scaled(graph, Qdq(node, node, node.input[0]))
                    shape = pair.shape or ()
                    outputs[node.output[0]] = Carried((pair,), shape, pair.block, pair.scale)
                continue  # quantized anew
            inner = sorted((reads(node) - set(node.input)) & carried.keys())
            inputs |= {len(node.input) + at: name for at, name in enumerate(inner)}
            if not inputs:
                continue
            if node.op_type in THROUGH and 0 in inputs:
                seen = _seen(graph, inputs[0], carried[inputs[0]])
                shape, block = behind(graph, node, seen.shape, seen.block)
                carried[node.output[0]] = replace(seen, shape=shape, block=block)
                continue
            read = {at: _seen(graph, name, carried[name]) for at, name in inputs.items()}
            onward = _onward(graph, node, read)
            for at, each in read.items():
                if onward is None or not each.moved:
                    moves = onward is not None or node.op_type == "Concat"
                    found.append(Reading(node, at, inputs[at], each, moves))
            if onward is not None:
                for name in filter(None, node.output):
                    carried[name] = _laid(graph, name, onward)
    outputs |= {name: carried[name] for name in graph.outputs if name in carried}
    return Flow(tuple(given), tuple(found), outputs)


def _seen(graph: ReadGraph, name: str, carried: Carried) -> Carried:
    if carried.block is not None:
        return carried
    source = carried.first.pair.source
    seen = graph.shape(name) or carried.shape or graph.shape(source) or (1,)
    return replace(carried, shape=tuple(n or 1 for n in seen))


def _onward(graph: ReadGraph, node: onnx.NodeProto, read: Mapping[int, Carried]) -> Carried | None:
    """What a node that moves values, or multiplies them all by one number, makes of what it reads;
    None for one that computes. Shape and block are those of before."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Concat":
        return _joined(node, read) if len(read) == len(node.input) else None
    if node.op_type in ("Mul", "Div", "Neg"):
        return _times(graph, node, read)
    if list(read) != [0] or not (
        node.op_type in _MOVING
        or (node.op_type in ("Resize", "Upsample", "Pad") and _keeps(graph, node))
    ):
        return None
    return replace(read[0], moved=(*read[0].moved, node))


def _keeps(graph: ReadGraph, node: onnx.NodeProto) -> bool:
    said = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    mode = said.get("mode", b"constant" if node.op_type == "Pad" else b"nearest")
    if node.op_type != "Pad":
        return bool(mode == b"nearest")
    # Zeros are values of any format, other constants need not be.
    held = graph.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    fill = said.get("value", 0.0) if held is None or not held.size else float(held.reshape(-1)[0])
    return bool(mode != b"constant" or fill == 0)


def _times(graph: ReadGraph, node: onnx.NodeProto, read: Mapping[int, Carried]) -> Carried | None:
    if len(read) != 1:
        return None
    ((at, seen),) = read.items()
    factor: np.ndarray | np.floating | None = None
    if node.op_type == "Neg":
        factor = np.float32(-1)
    elif len(node.input) == 2 and (at == 0 or node.op_type == "Mul"):
        factor = graph.value(node.input[1 - at])
    if factor is None or seen.scale is None or np.size(factor) != 1:
        return None
    number = abs(float(np.reshape(factor, -1)[0]))
    if not (0 < number < np.inf):
        return None
    scale = seen.scale * number if node.op_type != "Div" else seen.scale / number
    return replace(seen, scale=scale, moved=(*seen.moved, node))


def _joined(node: onnx.NodeProto, read: Mapping[int, Carried]) -> Carried | None:
    """Several tensors in one: with one scale, where all have the same."""
    parts = list(read.values())
    if len({part.format for part in parts}) > 1:
        return None
    pairs = tuple({pair.pair.dq.name: pair for part in parts for pair in part.pairs}.values())
    moved = {each.name: each for part in parts for each in part.moved} | {node.name: node}
    scales = [part.scale for part in parts if part.scale is not None]
    alike = len(scales) == len(parts) and all(
        scale.size == 1 and float(scale.reshape(-1)[0]) == float(scales[0].reshape(-1)[0])
        for scale in scales
    )
    scale = scales[0] if alike else None
    if not alike and len(scales) == len(parts):
        scale = np.concatenate([each.reshape(-1) for each in scales])
    block = parts[0].shape if alike else None
    return Carried(pairs, parts[0].shape, block, scale, tuple(moved.values()))


def _laid(graph: ReadGraph, name: str, carried: Carried) -> Carried:
    """How the scales lie in a tensor whose values were moved."""
    seen = graph.shape(name)
    if seen and seen[0] is None:
        seen = (1, *seen[1:])
    after, before, block = closed(seen), carried.shape, carried.block
    if carried.scale is not None and carried.scale.size == 1:
        if after is None:
            return replace(carried, shape=(), block=None)
        return replace(carried, shape=after, block=after)
    kept = block is not None and after is not None and len(after) == len(before)
    if kept and all(
        n == m for n, m, part in zip(after or (), before, block or (), strict=True) if part < m
    ):
        block = tuple(
            n if part == m else part
            for n, m, part in zip(after or (), before, block or (), strict=True)
        )
        return replace(carried, shape=after or (), block=block)
    return replace(carried, shape=after or before, block=None)
