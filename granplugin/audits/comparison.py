"""Two engines' plans side by side: what changed, layer by layer, however each fuses its nodes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from granplugin.audits.engine_plans import build_plan, read_plan_file
from granplugin.audits.shapes import Range, shapes_for
from granplugin.backends.engine_plan import EngineLayer, EnginePlan, Moved
from granplugin.errors import EngineError
from granplugin.graph.read.loading import read_model
from granplugin.partition import joined
from granplugin.report.build.verbs import compare_output
from granplugin.report.result import Result
from granplugin.report.schema.verbs import CompareOutput

_QDQ = re.compile(r"(quantize|(^|[/_.])d?q([/_.\d]|$))", re.IGNORECASE)
"""Q/DQ nodes by their names, which is all a plan has: they are of the layer that reads them."""


@dataclass(frozen=True)
class Side:
    """What one engine does for a layer: its kernels, `bytes` read and written by them, constants
    too (None where a size is open), `arithmetic` as types read and written, and their time in a
    profile."""

    kernels: int
    bytes: int | None
    arithmetic: str
    time_ms: float | None


@dataclass(frozen=True)
class Change:
    """One layer - ONNX nodes that a kernel of either engine fuses - in both engines."""

    layer: str
    nodes: tuple[str, ...]
    a: Side
    b: Side

    @property
    def changed(self) -> bool:
        return (self.a.kernels, self.a.bytes, self.a.arithmetic) != (
            self.b.kernels, self.b.bytes, self.b.arithmetic,
        )  # fmt: skip


@dataclass(frozen=True, repr=False)
class Comparison(Result):
    """Two plans, by the names they were given, and their layers in the order of the first."""

    names: tuple[str, str]
    plans: tuple[EnginePlan, EnginePlan]
    layers: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def named_plans(self) -> tuple[tuple[str, EnginePlan], ...]:
        """The plans with their names."""
        return tuple(zip(self.names, self.plans, strict=True))

    def output(self) -> CompareOutput:
        """Every layer."""
        return compare_output(self)


def plan_of(
    path: Path, backend: str, batch: int, shapes: Mapping[str, Range]
) -> tuple[EnginePlan, list[str]]:
    """The plan that a file or folder stands for, and notes of the shapes it was built for."""
    if path.is_dir():
        files = ("layers.json", "layers.txt", f"{backend}.onnx", "model.onnx")
        found = next((path / file for file in files if (path / file).is_file()), None)
        if found is None:
            raise EngineError(
                f"{path}: is neither an engine's folder (layers.txt or layers.json) nor a "
                "variant's (model.onnx)"
            )
        path = found
    if path.suffix == ".onnx":
        model = read_model(path)
        sizes, notes = shapes_for(model, shapes, batch)
        return build_plan(model, path, backend, batch, sizes)[0], notes
    return read_plan_file(path), []


def aligned(a: EnginePlan, b: EnginePlan) -> tuple[Change, ...]:
    """The plans' kernels by layer. Nodes that one kernel of either plan has are one layer, but for
    Q/DQ; a kernel with none but these is of the layer that reads it."""
    layers = _Layers([*a.kernels, *b.kernels])
    sides = [layers.of(plan) for plan in (a, b)]
    names = dict.fromkeys([*sides[0], *sides[1]])
    return tuple(
        Change(
            _title(name, [*sides[0].get(name, ()), *sides[1].get(name, ())]),
            layers.nodes.get(name, ()),
            _side(sides[0].get(name, ())),
            _side(sides[1].get(name, ())),
        )
        for name in names
    )


_Kernel = tuple[EngineLayer, Moved]


class _Layers:
    """Which nodes belong together: those of kernels that have some of them in common."""

    def __init__(self, kernels: Iterable[EngineLayer]) -> None:
        self.name_of = joined(filter(None, map(_own, kernels)))
        nodes: dict[str, list[str]] = {}
        for node, name in self.name_of.items():
            nodes.setdefault(name, []).append(node)
        self.nodes = {name: tuple(of) for name, of in nodes.items()}

    def of(self, plan: EnginePlan) -> dict[str, list[_Kernel]]:
        readers: dict[str, EngineLayer] = {}
        for kernel in reversed(plan.kernels):
            for tensor in kernel.inputs:
                readers[tensor.name] = kernel
        found: dict[str, list[_Kernel]] = {}
        for kernel, moved in zip(plan.kernels, plan.moved_by, strict=True):
            found.setdefault(self._name(kernel, readers), []).append((kernel, moved))
        return found

    def _name(self, kernel: EngineLayer, readers: dict[str, EngineLayer]) -> str:
        seen = kernel
        for _ in range(4):  # a reformat may stand between a quantize kernel and its reader
            if own := _own(seen):
                return self.name_of[own[0]]
            following = next((readers[t.name] for t in seen.outputs if t.name in readers), None)
            if following is None:
                break
            seen = following
        return "inputs and outputs"


def _own(kernel: EngineLayer) -> list[str]:
    return [node for node in kernel.onnx_nodes if not _QDQ.search(node)]


def _title(name: str, kernels: Sequence[_Kernel]) -> str:
    """The node that multiplies, with the count of others that do, or else the first node."""
    products = dict.fromkeys(_own(k)[0] for k, _ in kernels if k.multiplies and _own(k))
    others = f" +{len(products) - 1}" if len(products) > 1 else ""
    return next(iter(products), name) + others


def _side(found: Sequence[_Kernel]) -> Side:
    kernels = [kernel for kernel, _ in found]
    times = [kernel.time_ms for kernel in kernels if kernel.time_ms is not None]
    main = [kernel for kernel in kernels if kernel.multiplies] or kernels
    read = dict.fromkeys(k.inputs[0].dtype for k in main if k.inputs)
    written = dict.fromkeys(k.outputs[0].dtype for k in main if k.outputs)
    return Side(
        len(kernels),
        sum((moved for _, moved in found), Moved()).total,
        f"{'+'.join(read)} > {'+'.join(written)}" if kernels else "-",
        sum(times) if times else None,
    )
