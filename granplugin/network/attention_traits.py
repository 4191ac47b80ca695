"""Which products of two activations are an attention's: scores, a softmax of them, and values.

(So does modelopt.onnx.quantization, find_mha_partitions: MatMul, Softmax, MatMul, with what computes
value by value between them.)
"""

from __future__ import annotations

from collections.abc import Mapping

from granplugin.network.flow import Flow
from granplugin.quant.layers import SCORES, VALUES


def find_attention(flow: Flow, products: Mapping[str, tuple[int, int, int]]) -> dict[str, str]:
    """Layer -> its trait, of those that are part of an attention; `products` has the values of each
    one's two factors and of its result. The shares may be either factor."""
    made = {result: name for name, (_, _, result) in products.items()}
    takes = {factor: name for name, factors in products.items() for factor in factors[:2]}
    found: dict[str, str] = {}
    for op in flow.ops if products else ():
        if op.kind == "softmax":
            scores = {
                made[number]
                for number in flow.made_of(op.reads, ("product", "softmax"))
                if number in made
            }
            values = {takes[number] for number in _ahead(flow, op.writes) if number in takes}
            if scores and values:
                found |= dict.fromkeys(scores, SCORES) | dict.fromkeys(values, VALUES)
    return found


def _ahead(flow: Flow, numbers: tuple[int, ...]) -> set[int]:
    """What is computed from these values, without adding to them: what is masked has no share."""
    found: set[int] = set()
    waiting = list(numbers)
    while waiting:
        number = waiting.pop()
        if number in found:
            continue
        found.add(number)
        for op in flow.consumers[number]:
            if op.kind in ("copy", "move", "choice", "other"):
                waiting += op.writes
    return found
