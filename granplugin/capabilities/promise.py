"""The promise: before anything is built, what an engine will make of each row of a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from granplugin.capabilities.table import ACTIVATIONS, LOOKUP, LOWERINGS, Cell, Table, TableRule
from granplugin.engines import PromiseKind
from granplugin.planning.rows import AnyRow, ScaledRow
from granplugin.quant.layers import Layer
from granplugin.quant.site import MULTIPLIED, Operand

KINDS: tuple[PromiseKind, ...] = ("native", "lowered", "simulated", "refused")
"""From best to worst."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What an engine makes of a row.

    native: computed as asked; lowered: rewritten by `lowering` (a key of LOWERINGS) into what the
    engine has; simulated: float on the device, for accuracy only; refused: the engine fails, or
    computes something else. `reason` is a sentence, `source` says where it is known from. `cause`
    is the role that has to change for the row to be native, None where it is.
    """

    kind: PromiseKind
    reason: str
    source: str
    lowering: str | None = None
    cause: Operand | None = None


def cell_promise(table: Table, cell: Cell) -> Promise:
    """The promise for one cell, weight and input taken together."""
    return _promise(table.rule(cell), cell)


def operation(layer: Layer) -> str:
    """The table's word for what a layer computes."""
    if layer.kind is None:
        return "maxpool" if layer.type.startswith("MaxPool") else "passive"
    return _OPERATIONS[layer.kind.operation](layer)


def _convolution(layer: Layer) -> str:
    if "depthwise" in layer.traits:
        return "depthwise"
    return "grouped" if layer.groups > 1 else "conv"


_OPERATIONS: dict[str, Callable[[Layer], str]] = {
    "convolution": _convolution,
    "transposed": lambda layer: "transposed",
    "linear": lambda layer: "gemm" if len(layer.shape("input") or ()) <= 2 else "linear",
    "matmul": lambda layer: ACTIVATIONS,
    "lookup": lambda layer: LOOKUP,
}


def scales_of(row: AnyRow | None) -> tuple[str, int | None]:
    """A row's scales as they stand in the graph, a word of `Scales`, and the block size if cut.

    One scale per index of an axis, or for runs along it, is a vector along that axis. Where scales
    differ along several axes, a weight's are written along the axis where the block is longest and
    one by one along the rest; another tensor is reshaped.
    """
    if row is None or not row.quantized:
        return "float", None
    block = row.block  # found anew each time
    lengths = zip(row.shape, block, strict=True)
    varying = [axis for axis, (length, part) in enumerate(lengths) if part < length]
    if row.dynamic:
        return ("per_token(dynamic)" if varying else "per_tensor(dynamic)"), None
    if not varying:
        return "per_tensor", None
    if len(varying) == 1:
        return _VECTORS[_axis_word(row, varying[0])], None
    words = {_axis_word(row, axis) for axis in varying}
    if words == {"token"}:
        return _VECTORS["token"], None
    if not row.at.constant:
        return "reshaped", None
    axis = max(range(len(block)), key=lambda i: (block[i], i))
    if block[axis] == 1:
        return "per_element", None
    return f"per_block({_axis_word(row, axis)})", block[axis]


_VECTORS = {
    "out": "per_channel",
    "in": "per_channel(in)",
    "kernel": "per_channel(kernel)",
    "channel": "per_channel",
    "token": "per_token",
    "batch": "per_batch",
    "position": "per_position",
}


def _axis_word(row: ScaledRow, axis: int) -> str:
    channel = row.at.channel_axis
    if not row.at.constant:
        if axis == 0:
            return "batch"  # in a file of another's: no recipe cuts it
        if axis == channel:
            return "channel"
        return "token" if channel == len(row.shape) - 1 else "position"
    if axis > 1:
        return "kernel"
    # Where no axis has the output channels alone (grouped, transposed), they are on axis 1.
    return "out" if axis == (1 if channel is None else channel) else "in"


class Book:
    """Answers for one table and build; equal cells are looked up once. `shared` names the layers
    whose skip input another layer reads, as from shared_skips."""

    def __init__(
        self,
        table: Table,
        graph: str = "fp32",
        targets: tuple[str, ...] = (),
        shared: frozenset[str] = frozenset(),
    ) -> None:
        self.table, self.graph, self.targets, self.shared = table, graph, targets, shared
        self.known: dict[tuple[Any, ...], Mapping[Operand, Promise]] = {}

    def of_layer(self, layer: Layer, rows: Sequence[AnyRow]) -> Mapping[Operand, Promise]:
        """Operand -> promise for one layer's quantized rows, decided together."""
        op = operation(layer)
        sites = tuple([(row.operand, row.format, *scales_of(row)) for row in rows])
        add = None
        if any(row.operand == "skip" for row in rows):
            # A batch norm that is kept scales each channel behind the product.
            one = [row.scales for row in rows if row.operand == "weight" and row.bn != "keep"] == [
                1
            ]
            add = Cell(
                "add_shared" if layer.name in self.shared else "add",
                "",
                "per_tensor" if one else "per_channel",
            )
        if (op, sites, add) not in self.known:
            self.known[op, sites, add] = self._decide(op, sites, add)
        return self.known[op, sites, add]

    def _decide(self, op: str, sites: tuple[Any, ...], add: Cell | None) -> dict[Operand, Promise]:
        found: dict[Operand, Promise] = {}
        pair = {
            operand: (fmt, scales, size)
            for operand, fmt, scales, size in sites
            if operand in MULTIPLIED
        }
        for role, fmt, scales, size in sites:
            if role == "output":
                cell = Cell(op, fmt, output=scales, graph=self.graph, targets=self.targets)
                found[role] = self._alone(cell, role)
            elif role == "skip" and add is not None:
                cell = self._cell(add.op, {"input": (fmt, scales, size)})
                cell = replace(cell, weight=add.weight)
                found[role] = self._alone(cell, role)
        if not pair:
            return found
        together = self._alone(self._cell(op, pair), next(iter(pair)))
        if together.kind == "native":
            return found | dict.fromkeys(pair, together)
        # A role is to blame if it is not native beside the plainest partner; both are, if only
        # their meeting is not.
        alone = {role: self._alone(self._cell(op, self._beside(pair, role)), role) for role in pair}
        if all(promise.kind == "native" for promise in alone.values()):
            return found | {role: replace(together, cause=role) for role in pair}
        worst = max(alone, key=lambda role: KINDS.index(alone[role].kind))
        for role, promise in alone.items():
            if promise.kind == "native" and alone[worst].kind == "lowered":
                found[role] = promise
            elif KINDS.index(promise.kind) < KINDS.index(alone[worst].kind):
                reason = f"because of its {worst}: {alone[worst].reason}"
                found[role] = replace(alone[worst], reason=reason)
            else:
                found[role] = promise
        return found

    @staticmethod
    def _beside(
        pair: Mapping[Operand, tuple[Any, ...]], role: Operand
    ) -> dict[Operand, tuple[Any, ...]]:
        return {
            other: values if other == role else (pair[role][0], "per_tensor", None)
            for other, values in pair.items()
        }

    def _cell(self, op: str, pair: Mapping[Operand, tuple[Any, ...]]) -> Cell:
        formats = {fmt for fmt, _, _ in pair.values()}
        sizes = [size for operand in MULTIPLIED if (size := pair.get(operand, _NONE)[2])]
        return Cell(
            op,
            formats.pop() if len(formats) == 1 else "mixed",
            weight="none" if op == ACTIVATIONS else pair.get("weight", _NONE)[1],
            input=pair.get("input", _NONE)[1],
            other=pair.get("other", _NONE)[1],
            size=sizes[0] if sizes else None,
            graph=self.graph,
            targets=self.targets,
        )

    def _alone(self, cell: Cell, role: Operand) -> Promise:
        promise = _promise(self.table.rule(cell), cell)
        return promise if promise.kind == "native" else replace(promise, cause=role)


_NONE = (None, "float", None)


def _promise(rule: TableRule, cell: Cell) -> Promise:
    # Weights alone are asked to be stored small and multiplied in float; that is what a
    # fused-dequant is.
    weight_only = cell.weight not in ("float", "none") and cell.input == "float"
    if rule.engine == "quantized" or (rule.engine == "fused-dequant" and weight_only):
        return Promise("native", rule.why, rule.source)
    if rule.lowering:
        reason = f"{rule.why}; {LOWERINGS[rule.lowering]}"
        return Promise("lowered", reason, rule.source, rule.lowering)
    if rule.engine in ("float", "fused-dequant"):
        return Promise("simulated", rule.why, rule.source)
    return Promise("refused", rule.why, rule.source)
