"""Residual adds and concatenations: where a layer's result meets tensors it is not computed from.

A layer's skip input is the other operand of the first add that its result, and nothing else, leads
to: an engine fuses that add into the layer, and can keep the sum in 8 bits only where the skip
input is quantized too. Where both operands come from a layer, the one with more layers behind it
that the other does not have is the branch, and the other one the skip. (So does
modelopt.onnx.quantization, build_non_residual_input_map: the longest path to the common ancestor.)
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from granplugin.network.flow import Flow
from granplugin.partition import joined
from granplugin.quant.site import Shape


@dataclass(frozen=True)
class Skip:
    """The value that a layer's result is added to (the first, of several calls), its shape with 1
    on axis 0, and the position of that add among the operations."""

    value: int
    shape: Shape
    at: int


def find_skips(flow: Flow, outputs: Mapping[str, Sequence[int]], ends: set[int]) -> dict[str, Skip]:
    """Layer -> its skip input; `outputs` has, for each layer that runs, the value each of its calls
    put out, and `ends` are the model's own outputs.

    A layer whose result is read by anything else than its residual add has none, nor has one that is
    called twice and whose results are added to each other.
    """
    history = _history(flow, outputs)
    branches: dict[int, dict[str, tuple[int, int]]] = {}
    for layer, numbers in outputs.items():
        met = [add for number in numbers if (add := _meets(flow, number, ends))]
        # Where a layer's own results are added, neither is the skip of the other.
        if len(met) == len(numbers) == len({at for at, _, _ in met}):
            for at, branch, skip in met:
                branches.setdefault(at, {})[layer] = (branch, skip)
    found: dict[str, Skip] = {}
    refused = set()
    for at in sorted(branches):
        # min: of two branches of the same depth, the first operand's.
        layer = min(
            branches[at],
            key=lambda name: (
                -_beyond(history, *branches[at][name]),
                flow.ops[at].reads.index(branches[at][name][0]),
            ),
        )
        refused |= branches[at].keys() - {layer}
        shape = flow.ops[at].shape
        if shape is None:
            refused.add(layer)
        else:
            found.setdefault(layer, Skip(branches[at][layer][1], shape, at))
    return {layer: skip for layer, skip in found.items() if layer not in refused}


def find_concats(flow: Flow) -> dict[int, int]:
    """Value -> the number of the concatenation it is an input or the result of; concatenations
    that have one of these in common count as one."""
    joins = []
    for op in flow.ops:
        numbers = [number for number in (*op.reads, *op.writes) if flow.data[number]]
        if op.kind == "concat" and len(numbers) > 2:
            joins.append(numbers)
    one = joined(joins)
    named = {one[numbers[0]]: min(numbers) for numbers in joins}
    return {number: named[standing] for number, standing in one.items()}


def find_same(flow: Flow) -> dict[int, int]:
    """Value -> the one it is a copy of, by operations that do nothing in a forward pass: dropout,
    padding by nothing, copies. An engine's graph has none of them."""
    same: dict[int, int] = {}
    for op in flow.ops:
        if op.kind == "copy" and len(op.reads) == len(op.writes) == 1:
            same[op.writes[0]] = same.get(op.reads[0], op.reads[0])
    return same


def _meets(flow: Flow, output: int, ends: set[int]) -> tuple[int, int, int] | None:
    """(position of the add, its operand computed from `output` alone, the other operand)."""
    own, met = {output}, None
    waiting = [op.at for op in flow.consumers[output]]
    heapq.heapify(waiting)
    done = -1
    while waiting:
        at = heapq.heappop(waiting)
        if at == done:
            continue
        done, op = at, flow.ops[at]
        foreign = [number for number in op.reads if flow.data[number] and number not in own]
        if op.kind == "add" and not own.issuperset(op.reads[:2]):
            # A tensor that is no data, such as a position embedding, would be taken for the skip.
            left, right = op.reads[:2]
            if met or (left in foreign) == (right in foreign):
                return None
            # Where a part of the result is added to in place, a graph has the sum put back into it.
            if op.wider and not own.isdisjoint(op.reads[2:]):
                return None
            met = (at, left, right) if right in foreign else (at, right, left)
        elif foreign or op.kind == "product":
            return None
        else:
            own.update(op.writes)
            for number in op.writes:
                for reader in flow.consumers[number]:
                    heapq.heappush(waiting, reader.at)
    return None if own & ends else met


def _history(flow: Flow, outputs: Mapping[str, Sequence[int]]) -> list[int]:
    """For each value, the layer calls it is computed from: one bit each."""
    calls = [number for numbers in outputs.values() for number in numbers]
    bit = {number: 1 << position for position, number in enumerate(calls)}
    history = [0] * len(flow.data)
    for op in flow.ops:
        seen = 0
        for number in op.reads:
            seen |= history[number]
        for number in op.writes:
            history[number] = seen | bit.get(number, 0)
    return history


def _beyond(history: Sequence[int], branch: int, skip: int) -> int:
    """How many layer calls are behind `branch` and not behind `skip`."""
    return (history[branch] & ~history[skip]).bit_count()
