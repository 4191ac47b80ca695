"""Products of a file as the layers that they are: a weight that is the first factor becomes the
second, one of several matrices a MatMul for each, a Gemm of two activations a MatMul.

A torch model's calls are taken so too (granplugin.network.experts), with the same weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from granplugin.graph.read.graph import ReadGraph
from granplugin.network.onnx_rewriting import InPlace, rewrite


def as_layers(graph: ReadGraph) -> None:
    """Rewrites such nodes in the graph's model, each under its own name."""
    rewrite(graph, _rewritten)


def _turned(made: InPlace, tensor: str, rank: int) -> str:
    """The tensor with its last two axes exchanged."""
    return made.node("Transpose", [tensor], perm=[*range(rank - 2), rank - 1, rank - 2])


def _rewritten(graph: ReadGraph, node: onnx.NodeProto, made: InPlace) -> bool:
    """Whether it is another form now."""
    if node.op_type == "Gemm":
        return _gemm(graph, node, made)
    if node.op_type != "MatMul":
        return False
    first, second = node.input
    shapes = graph.shape(first), graph.shape(second)
    constant = [name in graph.constant for name in node.input]
    if constant[0] == constant[1] or None in shapes:
        return False
    rows, weights = shapes if constant[1] else shapes[::-1]
    if rows is None or weights is None or None in weights or min(len(rows), len(weights)) < 2:
        return False
    held = tuple(length or 0 for length in weights)
    if not _fit(rows, held) or (constant[1] and len(held) == 2):
        return False
    if constant[1]:
        _each(made, first, list(rows), second, list(held))
        return True
    rank = len(rows)
    turned = _turned(made, first, len(held))
    given = _turned(made, second, rank)
    lengths = [*rows[:-2], rows[-1], rows[-2]]
    result = _each(made, given, lengths, turned, [*held[:-2], held[-1], held[-2]])
    _turned(made, result, max(rank, len(held)))
    return True


def _fit(rows: Sequence[int | None], weights: Sequence[int]) -> bool:
    """Whether each matrix of the weights has rows of its own, or all have the same."""
    lengths = zip(reversed(rows[:-2]), reversed(weights[:-2]), strict=False)
    return all(count == 1 or length in (1, count) for length, count in lengths)


def _each(
    made: InPlace, rows: str, lengths: list[int | None], weights: str, held: list[int]
) -> str:
    """The products of (..., rows, in) with each of the matrices in (..., in, out)."""
    rank = len(held)
    if rank == 2:
        return made.product(rows, weights)
    given, count = len(lengths) >= rank, held[0]
    at = len(lengths) - rank
    if count == 1:
        matrix = made.node("Gather", [weights, made.number(0, np.int64)], axis=0)
        result = _each(made, rows, lengths, matrix, held[1:])
        axis = made.number([0], np.int64)
        return result if given else made.node("Unsqueeze", [result, axis])
    parts = []
    for number in range(count):
        own, left = rows, lengths
        if given:
            chosen = made.number(number if lengths[at] != 1 else 0, np.int64)
            own = made.node("Gather", [rows, chosen], axis=at)
            left = [*lengths[:at], *lengths[at + 1 :]]
        matrix = made.node("Gather", [weights, made.number(number, np.int64)], axis=0)
        result = _each(made, own, left, matrix, held[1:])
        axis = made.number([max(at, 0)], np.int64)
        parts.append(made.node("Unsqueeze", [result, axis]))
    return made.node("Concat", parts, axis=max(at, 0))


def _gemm(graph: ReadGraph, node: onnx.NodeProto, made: InPlace) -> bool:
    """alpha A B + beta C of two activations, or of one that is transposed."""
    said = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    first, second = node.input[:2]
    weighted = second in graph.constant
    if first in graph.constant or (weighted and not said.get("transA", 0)):
        return False
    kind = graph.element_type(first)
    if kind != onnx.TensorProto.FLOAT:
        return False
    factors = [
        made.node("Transpose", [name], perm=[1, 0]) if said.get(turned, 0) else name
        for name, turned in ((first, "transA"), (second, "transB"))
    ]
    result = made.product(*factors)
    if said.get("alpha", 1.0) != 1:
        result = made.node("Mul", [result, made.number(said["alpha"], np.float32)])
    if len(node.input) > 2 and node.input[2]:
        added = node.input[2]
        if said.get("beta", 1.0) != 1:
            added = made.node("Mul", [added, made.number(said["beta"], np.float32)])
        made.node("Add", [result, added])
    return True
