"""Tensors of a file, as ONNX Runtime computes them, more than memory holds: part by part.

A part of the nodes is run on what the part before it left, so that no node is run twice for what is
looked at later; only what depends on nothing but constants is computed where it is read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from granplugin.graph import reference
from granplugin.graph.read.constants import is_random
from granplugin.graph.read.graph import ReadGraph, reads

HANDED_ON = frozenset(
    getattr(TensorProto, word)
    for word in (
        "FLOAT FLOAT16 DOUBLE BOOL INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64".split()
    )
)
"""Types of what a part leaves for the next: numpy and ONNX Runtime hand them on bit by bit. What is
of another is computed once more from what is."""


@dataclass(frozen=True)
class _Part:
    """Nodes, what they read of earlier parts, what they are run for, and what later parts still
    read of this and earlier ones."""

    nodes: Sequence[onnx.NodeProto]
    given: frozenset[str]
    outputs: Sequence[str]
    left: frozenset[str]


def in_parts(
    graph: ReadGraph, feeds: Mapping[str, np.ndarray], wanted: Sequence[Collection[str]]
) -> Iterator[dict[str, np.ndarray]]:
    """Of each of these sets of tensors in turn its arrays, by name, with `feeds` as the inputs.

    The sets may be in any order; in that of the nodes, the least is held. Raises EngineError where
    ONNX Runtime does not take the graph.
    """
    held: dict[str, np.ndarray] = {}
    for names, part in zip(wanted, _parts(graph, wanted), strict=True):
        if part.outputs:
            held |= _run(graph, part, feeds, held)
        yield {
            name: feeds[name]
            if name in feeds
            else graph.array(name)
            if name in graph.stored
            else held[name]
            for name in names
        }
        held = {name: array for name, array in held.items() if name in part.left}


def _parts(graph: ReadGraph, wanted: Sequence[Collection[str]]) -> list[_Part]:
    nodes = graph.model.graph.node
    at = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    constant = _constant(graph)
    starts, end = [], -1
    for names in wanted:
        starts.append(end)
        end = max([end, *(at[name] for name in names if name in at and name not in constant)])
    found: list[_Part] = []
    left: frozenset[str] = frozenset()
    # From the last, which says what the ones before it have to leave.
    for names, start in zip(reversed(wanted), reversed(starts), strict=True):
        given, chosen = set[str](), set[int]()
        asked = {name for name in left if at[name] > start} | (at.keys() & names)
        waiting = list(asked)
        while waiting:
            name = waiting.pop()
            index = at.get(name)
            if index is None or index in chosen:
                continue
            if index <= start and name not in constant and graph.element_type(name) in HANDED_ON:
                given.add(name)
                continue
            chosen.add(index)
            waiting += reads(nodes[index])
        outputs = sorted(asked - given)
        part = _Part([nodes[index] for index in sorted(chosen)], frozenset(given), outputs, left)
        found.append(part)
        left = frozenset(given | {name for name in left if at[name] <= start})
    return found[::-1]


def _constant(graph: ReadGraph) -> set[str]:
    """What depends on constants alone, casts of them included."""
    found = {*graph.stored, ""}
    for node in graph.model.graph.node:
        if not is_random(node) and found.issuperset(reads(node)):
            found.update(node.output)
    return found


def _run(
    graph: ReadGraph,
    part: _Part,
    feeds: Mapping[str, np.ndarray],
    held: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """What the part is run for."""
    whole = graph.model
    read = set(part.outputs).union(*map(reads, part.nodes))
    model = onnx.ModelProto(ir_version=whole.ir_version, opset_import=whole.opset_import)
    model.functions.extend(whole.functions)
    model.graph.name = whole.graph.name
    model.graph.node.extend(part.nodes)
    model.graph.input.extend(value for value in whole.graph.input if value.name in read)
    given = {value.name: feeds[value.name] for value in model.graph.input}
    for name in sorted(part.given & read):
        array = given[name] = held[name]
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        model.graph.input.append(helper.make_tensor_value_info(name, kind, [None] * array.ndim))
    model.graph.initializer.extend(each for each in whole.graph.initializer if each.name in read)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in part.outputs)
    results = reference.run(model, part.outputs, given, graph.path.parent)
    return dict(zip(part.outputs, results, strict=True))
