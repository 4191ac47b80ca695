"""What most layers of a type have, and those that have something else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from granplugin.planning.rows import Plan, QuantizedRow
from granplugin.quant.layers import CALL, Layer
from granplugin.quant.site import Operand
from granplugin.words import first

S = TypeVar("S", bound=Hashable)
OWN: tuple[Operand, ...] = ("input", "weight", "output")
"""The operands that modules of modelopt and of pytorch-quantization have quantizers of."""


@dataclass(frozen=True, slots=True)
class Unsaid:
    """Why quantizers of a library cannot be told what a row says."""

    why: str


@dataclass
class Compacted(Generic[S]):
    """`common` is the setting of most sites of a type of layer and an operand, `others` that of
    each site that has another; None is float. `lost` says what is in neither."""

    common: dict[tuple[str, Operand], S | None] = field(default_factory=dict)
    others: dict[tuple[Layer, Operand], S | None] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


def compacted(
    plan: Plan, layers: Sequence[Layer], said: Callable[[QuantizedRow], S | Unsaid], library: str
) -> Compacted[S]:
    """A plan as modules' quantizers have it. `said` makes of a row what these are told; `library`
    names whose they are."""
    found = Compacted[S]()
    rows = {(row.layer, row.operand): row for row in plan.quantized}
    settings: dict[tuple[str, Operand], dict[Layer, S | None]] = {}
    lost: dict[str, list[str]] = {}
    for layer in layers:
        module = CALL not in layer.traits
        for operand in (*OWN, "other", "skip"):
            row = rows.get((layer.name, operand))
            value: S | Unsaid | None = None
            if row is not None:
                own = module and operand in OWN
                value = said(row) if own else Unsaid(f"{library} has no quantizer there")
            if isinstance(value, Unsaid):
                lost.setdefault(value.why, []).append(f"{layer.name}.{operand}")
                value = None
            if module and operand in OWN:
                settings.setdefault((layer.type, operand), {})[layer] = value
    for key, by_layer in settings.items():
        if any(value is not None for value in by_layer.values()):
            ((most, _),) = Counter(by_layer.values()).most_common(1)
            found.common[key] = most
            found.others |= {(at, key[1]): v for at, v in by_layer.items() if v != most}
    found.lost = [f"{first(sites)}: {why}" for why, sites in lost.items()]
    found.lost += _of_the_whole(plan)
    return found


def _of_the_whole(plan: Plan) -> Iterator[str]:
    """What no quantizer says."""
    folded = [row.layer for row in plan.rows if row.bn == "fold" and row.operand == "weight"]
    if folded:
        yield (
            f"bn: fold of {first(folded)}: fold them first (torch.nn.utils.fuse_conv_bn_eval), as "
            "their weights' ranges are those behind folding"
        )
    if plan.moved:
        names = first([each.layer for each in plan.moved])
        yield (
            f"algorithm: {plan.moved[0].algorithm} of {names}: give the config the network that "
            "granplugin.run_algorithm returns"
        )
    shared: dict[str, list[QuantizedRow]] = {}
    for row in plan.quantized:
        if row.share is not None:
            shared.setdefault(row.share, []).append(row)
    for rows in shared.values():
        if len({row.at.tensor for row in rows}) > 1:  # of one tensor, ranges are one anyway
            sites = first([row.site for row in rows])
            yield f"{sites}: have one scale, the largest of theirs, and would have their own"
