"""An Einsum that is a matrix product in some layout, as a MatMul between nodes that lay its factors
out: engines quantize what a MatMul multiplies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from granplugin.graph.read.graph import ReadGraph


def as_products(graph: ReadGraph) -> None:
    """Rewrites, in the graph's model, each Einsum of two factors that is one MatMul, under its own
    name. Factors that data reach have one axis of rows or columns and one that is summed, and any
    number that both keep; a weight's axes may be several of each, and it is the second factor, of as
    many matrices as both keep."""
    nodes: list[onnx.NodeProto] = []
    for node in graph.model.graph.node:
        made = _product(graph, node) if node.op_type == "Einsum" else None
        nodes += [node] if made is None else made.nodes
        if made is not None:
            graph.model.graph.initializer.extend(made.constants)
    del graph.model.graph.node[:]
    graph.model.graph.node.extend(nodes)


@dataclass(slots=True, eq=False)
class _Made:
    """The nodes in place of one, and the constants that they read."""

    name: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, op_type: str, reads: Sequence[str], name: str, **attributes: object) -> str:
        out = f"{self.name}/{name}"
        self.nodes.append(helper.make_node(op_type, reads, [out], name=out, **attributes))
        return out

    def laid(self, tensor: str, axes: str, order: str, name: str) -> str:
        """The tensor of these axes, with its axes in this order."""
        if axes == order:
            return tensor
        return self.node("Transpose", [tensor], name, perm=[axes.index(each) for each in order])

    def shaped(self, tensor: str, shape: Sequence[int], name: str) -> str:
        """Reshaped; a length of 0 is kept."""
        held = f"{self.name}/{name}_shape"
        self.constants.append(numpy_helper.from_array(np.array(shape, np.int64), held))
        return self.node("Reshape", [tensor, held], name)


def _product(graph: ReadGraph, node: onnx.NodeProto) -> _Made | None:
    found = _axes(node)
    if found is None:
        return None
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
        return None
    made = _Made(node.name)
    if len(weighted) == 1:
        parts = both, rows, summed, columns
        ends = list(_of_weight(graph, made, (first, second), (left, right), parts))
    elif len(rows) == len(columns) == len(summed) == 1:
        given = made.laid(first, left, both + rows + summed, "rows")
        other = made.laid(second, right, both + summed + columns, "columns")
        ends = [made.node("MatMul", [given, other], "product")]
    else:
        return None
    if not ends:
        return None
    made.laid(ends[0], both + rows + columns, out, "result")
    made.nodes[-1].output[0] = node.output[0]
    product = next(each for each in made.nodes if each.op_type == "MatMul")
    product.name = node.name
    return made


def _of_weight(
    graph: ReadGraph,
    made: _Made,
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
    given = made.laid(factors[0], axes[0], both + rows + summed, "rows")
    weight = made.laid(factors[1], axes[1], both + summed + columns, "columns")
    kept = [0] * len(both + rows)
    if len(summed) > 1:
        given = made.shaped(given, [*kept, -1], "joined")
    if len(summed + columns) > 2 or (both and len(rows) > 1):
        ahead = [length[each] for each in both] + [1] * (len(rows) - 1) * bool(both)
        wanted = [math.prod(length[each] for each in part) for part in (summed, columns)]
        weight = made.shaped(weight, [*ahead, *wanted], "matrix")
    result = made.node("MatMul", [given, weight], "product")
    if len(columns) > 1:
        result = made.shaped(result, [*kept, *(length[each] for each in columns)], "apart")
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
