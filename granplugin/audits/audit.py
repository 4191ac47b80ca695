"""The audit: requested granularity against what the engine does, row by row.

A build proves nothing: TensorRT-RTX parses and builds most of what it does not have, and runs it
in float. So every row gets a verdict from what the engine says of its own layers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from granplugin.backends.base import ROUNDED, LayerPrecision
from granplugin.capabilities import Promise
from granplugin.capabilities.legality import COMPUTED_WRONGLY, LEFT_FLOAT
from granplugin.planning.rows import AnyRow
from granplugin.quant.layers import PRODUCTS
from granplugin.quant.site import MULTIPLIED
from granplugin.results.audited import Kind, Verdict


def audit(
    rows: Sequence[AnyRow],
    layers: Sequence[LayerPrecision],
    promises: Mapping[str, Promise],
    made: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Verdict, ...]:
    """A verdict for every quantized row, from the engine's layers; none where it tells of none.

    What an engine tells of one site (a LayerPrecision whose layer is the site's name) goes before
    what it tells of the layer. `made` says what was made of a site for this engine
    (legality.Written).
    """
    calls: dict[str, list[LayerPrecision]] = defaultdict(list)
    for layer in layers:
        calls[layer.layer].append(layer)
    if not calls:
        return ()
    roles: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        roles[row.layer].add(row.operand)
    return tuple(
        _verdict(
            row, calls.get(row.site), calls.get(row.layer, ()), promises.get(row.site),
            made.get(row.site, ""), weight_alone=roles[row.layer] == {"weight"},
        )
        for row in rows
    )  # fmt: skip


def _verdict(
    row: AnyRow,
    own: Sequence[LayerPrecision] | None,
    of_layer: Sequence[LayerPrecision],
    promise: Promise | None,
    made: str,
    weight_alone: bool,
) -> Verdict:
    def say(kind: Kind, detail: str) -> Verdict:
        return Verdict(row.site, row.where, promise.kind if promise else None, kind, detail)

    if made in (LEFT_FLOAT, COMPUTED_WRONGLY):
        return say("degraded", made)
    calls = of_layer if own is None else own
    wrong = [call.detail for call in calls if call.precision == "wrong"]
    if promise is not None and promise.kind == "refused":
        wrong.append(promise.reason)
    if wrong:
        return say("wrong", wrong[0])
    if own is None and (row.operand not in MULTIPLIED or row.type not in PRODUCTS):
        return say("unknown", "engines do not say in what format they keep a tensor between layers")
    if not calls or any(call.precision == "unknown" for call in calls):
        return say("unknown", "the engine's plan does not tell which kernel computes this layer")
    ran = {call.precision for call in calls}
    if ran == {row.format}:
        told = [word for word in (made, calls[0].detail, calls[0].kernel) if word]
        return say("honoured", "; ".join(told))
    details = {call.detail for call in calls if call.precision == "float"}
    if weight_alone and ran == {"float"} and details == {"weight-only"}:
        return say("honoured", "weight-only")
    if promise is None and details == {ROUNDED}:
        return say("honoured", f"rounded where it is read; {calls[0].kernel}")
    if promise is None and "float" in ran:
        return say("unknown", f"{_word(details)}, and no table says what the engine has for it")
    if "float" not in ran:
        return say("unknown", f"the engine runs this layer in {' and '.join(sorted(ran))}")
    return say("degraded", _word(details))


def _word(details: set[str]) -> str:
    """What is read in fewer bits where the arithmetic is float."""
    return next((word for word in ("fused-dequant", "weight-only") if word in details), "float")
