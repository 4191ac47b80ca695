"""Everything a network multiplies, whether its products have sites or not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from granplugin.quant.layers import Layer


@dataclass(frozen=True, slots=True)
class Multiplication:
    """One product of a forward pass: a call of a function that multiplies tensors.

    `place` is the innermost module that calls it, "" the model itself, and `type` that module's
    class; `function` is torch's, as conv2d. Calls of one module again and again are one product.
    `macs` are its multiply-accumulates for one sample, all calls together; None where they are not
    known. `weights` are the stored tensors that it multiplies, with how many values each has.
    """

    place: str
    type: str
    function: str
    macs: int | None
    weights: tuple[tuple[str, int], ...]


def multiplication_to_json(multiplication: Multiplication) -> dict[str, Any]:
    """A JSON object."""
    return asdict(multiplication)


def multiplication_from_json(data: Mapping[str, Any]) -> Multiplication:
    """The inverse of multiplication_to_json."""
    weights = tuple((name, values) for name, values in data["weights"])
    return Multiplication(**{**data, "weights": weights})


def macs(layer: Layer) -> int | None:
    """Multiply-accumulates for one sample: each of the weight's values is used once for each
    position of the output (of the input for a transposed convolution), in each call."""
    weight = layer.shape("weight")
    if layer.kind is None or weight is None or layer.varying:
        return None
    shape = layer.shape("output" if layer.kind.operation == "convolution" else "input")
    if not shape:
        return None
    if layer.kind.operation == "linear":
        return layer.calls * math.prod(shape[1:-1]) * layer.size
    if len(shape) != len(weight):  # torch takes a convolution's input without a batch
        return None
    return layer.calls * math.prod(shape[2:]) * layer.size
