"""Which products of two activations are an attention's: scores, a softmax of them, and values.

(So does modelopt.onnx.quantization, find_mha_partitions: MatMul, Softmax, MatMul, with what computes
value by value between them.)
"""

from __future__ import annotations

from collections.abc import Mapping

from granplugin.network.flow import Flow, Kind
from granplugin.quant.layers import SCORES, VALUES

_SHARES: tuple[Kind, ...] = ("copy", "move", "choice", "other")
"""What leaves shares of attention what they are; what is added to them, as a mask, has none."""


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
            values = {takes[number] for number in flow.ahead(op.writes, _SHARES) if number in takes}
            if scores and values:
                found |= dict.fromkeys(scores, SCORES) | dict.fromkeys(values, VALUES)
    return found
