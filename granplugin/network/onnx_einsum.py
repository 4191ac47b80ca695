"""An Einsum that is a matrix product in some layout, as a MatMul between nodes that lay its factors
out: engines quantize what a MatMul multiplies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import onnx

from granplugin.graph.read.graph import ReadGraph
from granplugin.network.onnx_rewriting import InPlace, rewrite


def as_products(graph: ReadGraph) -> None:
    """Rewrites, in the graph's model, each Einsum of two factors that is one MatMul, under its own
    name. Factors that data reach have one axis of rows or columns and one that is summed, and any
    number that both keep; a weight's axes may be several of each, and it is the second factor, of as
    many matrices as both keep."""
    rewrite(graph, _product)


def _laid(made: InPlace, tensor: str, axes: str, order: str) -> str:
    """The tensor of these axes, with its axes in this order."""
    if axes == order:
        return tensor
    return made.node("Transpose", [tensor], perm=[axes.index(each) for each in order])


def _shaped(made: InPlace, tensor: str, shape: Sequence[int]) -> str:
    """Reshaped; a length of 0 is kept."""
    return made.node("Reshape", [tensor, made.number(shape, np.int64)])


def _product(graph: ReadGraph, node: onnx.NodeProto, made: InPlace) -> bool:
    """Whether it is another form now."""
    found = _axes(node) if node.op_type == "Einsum" else None
    if found is None:
        return False
    left, right, out = found
    first, second = node.input
    free = [each for each in out if (each in left) != (each in right)]
    weighted = graph.constant.intersection(node.input)
    if first in weighted or (not weighted and free and free[0] in right):
        first, second, left, right = second, first, right, left
    both = "".join(each for each in out if each in left and each in right)
    rows = "".join(each for each in out if each in left and each not in both)
    columns = "".join(each for each in out if each in right and each not in both)
    summed = "".join(each for each in left if each in right and each not in both)
    repeated = any(count > 1 for axes in (left, right, out) for count in Counter(axes).values())
    alone = (set(left) ^ set(right)) - set(out)
    if repeated or alone or not (rows and columns and summed) or len(weighted) > 1:
        return False
    if len(weighted) == 1:
        parts = both, rows, summed, columns
        ends = list(_of_weight(graph, made, (first, second), (left, right), parts))
    elif len(rows) == len(columns) == len(summed) == 1:
        given = _laid(made, first, left, both + rows + summed)
        other = _laid(made, second, right, both + summed + columns)
        ends = [made.product(given, other)]
    else:
        return False
    if not ends:
        return False
    _laid(made, ends[0], both + rows + columns, out)
    return True


def _of_weight(
    graph: ReadGraph,
    made: InPlace,
    factors: tuple[str, str],
    axes: tuple[str, str],
    parts: tuple[str, str, str, str],
) -> Iterator[str]:
    """What comes of a product with a weight, with its axes apart, which are `parts`: those that both
    keep, rows, what is summed, columns; nothing where the weight's shape is not known."""
    both, rows, summed, columns = parts
    held = graph.shape(factors[1])
    if held is None or None in held:
        return
    length = dict(zip(axes[1], (each or 0 for each in held), strict=True))
    given = _laid(made, factors[0], axes[0], both + rows + summed)
    weight = _laid(made, factors[1], axes[1], both + summed + columns)
    kept = [0] * len(both + rows)
    if len(summed) > 1:
        given = _shaped(made, given, [*kept, -1])
    if len(summed + columns) > 2 or (both and len(rows) > 1):
        ahead = [length[each] for each in both] + [1] * (len(rows) - 1) * bool(both)
        wanted = [math.prod(length[each] for each in part) for part in (summed, columns)]
        weight = _shaped(made, weight, [*ahead, *wanted])
    result = made.product(given, weight)
    if len(columns) > 1:
        result = _shaped(made, result, [*kept, *(length[each] for each in columns)])
    yield result


def _axes(node: onnx.NodeProto) -> tuple[str, str, str] | None:
    """The axes of the factors and of what comes of them; None where there are not two, or some are
    not written out."""
    equation = next((a.s.decode() for a in node.attribute if a.name == "equation"), "")
    terms, arrow, out = equation.replace(" ", "").partition("->")
    if len(node.input) != 2 or terms.count(",") != 1 or "." in equation:
        return None
    left, right = terms.split(",")
    once = (each for each, count in sorted(Counter(left + right).items()) if count == 1)
    return left, right, out if arrow else "".join(once)
