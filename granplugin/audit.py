"""The audit: requested granularity against what the engine does, row by row.

A build proves nothing: TensorRT-RTX parses and builds most of what it does not have, and runs it
in float. So every row gets a verdict from what the engine says of its own layers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from granplugin.backends.base import LayerPrecision
from granplugin.capabilities import Promise
from granplugin.layers import WEIGHTED
from granplugin.legality import LEFT_FLOAT
from granplugin.plan import Row

Kind = Literal["honoured", "degraded", "wrong", "unknown"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an engine made of one row.

    honoured: the layer's kernels multiply in the row's format (the kernel of a residual add reads
    its skip input in it); degraded: `detail` is fused-dequant
    (read in the format, multiplied in float) or float; wrong: built although it is known to be
    computed wrongly; unknown: the engine does not tell. `as_promised` is False where the engine
    was to have it natively and does not.
    """

    site: str
    where: str
    promise: str | None
    kind: Kind
    detail: str

    @property
    def as_promised(self) -> bool:
        return self.kind == "honoured" or (self.kind == "degraded" and self.promise != "native")


def audit(
    rows: Sequence[Row],
    layers: Sequence[LayerPrecision],
    promises: Mapping[str, Promise],
    made: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Verdict, ...]:
    """A verdict for every quantized row, from the engine's layers; none where it tells of none.
    `made` says what was made of a site for this engine (legality.Written)."""
    calls: dict[tuple[str, bool], list[LayerPrecision]] = defaultdict(list)
    for layer in layers:
        calls[layer.layer, layer.adds].append(layer)
    if not calls:
        return ()
    return tuple(
        _verdict(
            row,
            calls[row.layer, row.role == "skip"],
            promises.get(row.site),
            made.get(row.site, ""),
        )
        for row in rows
    )


def _verdict(
    row: Row, calls: Sequence[LayerPrecision], promise: Promise | None, made: str
) -> Verdict:
    def say(kind: Kind, detail: str) -> Verdict:
        return Verdict(row.site, row.where, promise.kind if promise else None, kind, detail)

    if made == LEFT_FLOAT:
        return say("degraded", made)
    if promise is not None and promise.kind == "refused":
        return say("wrong", promise.reason)
    if row.role == "output" or row.type not in WEIGHTED:
        return say("unknown", "engines do not say in what format they keep a tensor between layers")
    if row.role == "skip" and not calls:
        return say("unknown", "the engine does not say in what format the residual add reads it")
    if not calls or any(call.precision == "unknown" for call in calls):
        return say("unknown", "the engine's plan does not tell which kernel computes this layer")
    if all(call.precision != "float" for call in calls):
        return say("honoured", f"{made}; {calls[0].kernel}" if made else calls[0].kernel)
    if row.role == "skip":
        return say("degraded", "float")
    fused = any(call.kernel == "runtime_fusion" for call in calls)
    return say("degraded", "fused-dequant" if fused else "float")
