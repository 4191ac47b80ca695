"""Local errors of an ONNX file's layers and sites: granplugin.analysis.local, node by node.

One pass gives what each layer reads and puts out; what rounding changes there is that layer's node
alone, run on the change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from granplugin.analysis.figures import FigureKey
from granplugin.analysis.tried import (
    Pair,
    Ranged,
    RoundedNetwork,
    Tried,
    TriedSite,
    figure,
    per_sample,
)
from granplugin.errors import ModelError
from granplugin.network.onnx_layers import Placed, weight_of
from granplugin.network.onnx_prepared import nodes_behind
from granplugin.network.onnx_running import Computation, Feeds, Running, parts_of
from granplugin.network.onnx_watch import tensor_of
from granplugin.quant.formats import FORMATS, scale_of
from granplugin.quant.granularity import expand
from granplugin.sources.onnx_network import Passed

_SMALLEST_NORMAL = np.finfo(np.float32).smallest_normal
_GIVEN = {"x": np.dtype(np.float32), "w": np.dtype(np.float32)}


def rounded(x: np.ndarray, ranged: Ranged) -> np.ndarray:
    """A tensor (float32) rounded as its row says: the oracle's arithmetic."""
    row, fmt = ranged.row, FORMATS[ranged.row.format]
    if ranged.amax is None:
        within = tuple(at for at, n in enumerate(row.block) if at and n == row.shape[at])
        largest = np.abs(x).max(within, keepdims=True) / np.float32(fmt.largest)
        scale = np.maximum(largest, _SMALLEST_NORMAL)
    else:
        # Blocks of several values along an axis of several blocks cannot be broadcast.
        along = [n if cells > 1 else 1 for n, cells in zip(row.block, row.grid, strict=True)]
        scale = expand(scale_of(ranged.amax, fmt), tuple(along))
    y = x / scale
    if fmt.integer:
        np.rint(y, out=y)
    np.clip(y, fmt.smallest, fmt.largest, out=y)
    if not fmt.integer:
        y = y.astype(fmt.dtype).astype(np.float32)
    y *= scale
    return y


class NodeErrors:
    """Measures them batch by batch."""

    def __init__(
        self,
        running: Running,
        passed: Passed,
        network: RoundedNetwork,
        wanted: frozenset[FigureKey],
        example: Feeds,
    ) -> None:
        placed = passed.placed
        self.layers = [
            _Layer(running, each, placed[name], asked)
            for name, each in network.tried.items()
            if (asked := {n: f for n, f in each.figures().items() if n in wanted})
        ]
        self.sites = [
            _Site(each, tensor_of(placed[place], operand), settings)  # type: ignore[arg-type]
            for each in network.sites.values()
            if not each.own.at.constant
            and (settings := {n: r for n, r in each.figures().items() if n in wanted})
            for place, _, operand in [each.own.observed.rpartition(".")]
        ]
        # What no data change; each sample is given it.
        self._weights: dict[FigureKey, tuple[np.ndarray, np.ndarray]] = {}
        for each in network.sites.values():
            settings = {n: r for n, r in each.figures().items() if n in wanted}
            if each.own.at.constant and settings:
                weight = weight_of(passed.graph, placed[each.own.layer].node)
                assert weight is not None, f"{each.own.site} is stored"
                signal = _squares(weight[None], each.axis + 1)
                for name, ranged in settings.items():
                    error = (rounded(weight, ranged) - weight)[None]
                    self._weights[name] = signal, _squares(error, each.axis + 1)
        names = [name for each in self.layers for name in (each.reads, each.gives)]
        names += [each.tensor for each in self.sites]
        names = [name for name in dict.fromkeys(names) if name not in running.inputs]
        nodes = nodes_behind(running.graph, names)
        self._session = running.open(nodes, names) if names else None
        self._values = 0
        if self._session is not None:
            shown = self._session.run(example)
            self._values = sum(x.size // max(len(x), 1) for x in shown.values() if x.ndim)

    def run(self, batch: Feeds) -> Mapping[FigureKey, np.ndarray]:
        """The figures of one batch. Raises ModelError naming the first layer whose output is not
        finite."""
        found: dict[FigureKey, np.ndarray] = {}
        for part in parts_of(batch, self._values):
            samples = len(next(iter(part.values())))
            tensors = {**part, **(self._session.run(part) if self._session else {})}
            seen = [each.see(tensors, samples) for each in self.layers]
            seen += [each.see(tensors, samples) for each in self.sites]
            for name, sums in (pair for figures in seen for pair in figures.items()):
                found[name] = found[name] + sums if name in found else sums
        count = len(next(iter(batch.values())))
        return found | {
            name: figure(np.repeat(signal, count, 0), np.repeat(error, count, 0))
            for name, (signal, error) in self._weights.items()
        }


@dataclass(frozen=True, eq=False)
class _Site:
    tried: TriedSite
    tensor: str
    figures: Mapping[FigureKey, Ranged]

    def see(self, tensors: Feeds, samples: int) -> dict[FigureKey, np.ndarray]:
        x = tensors[self.tensor].astype(np.float32, copy=False)
        signal = per_sample(_squares(x, self.tried.axis), samples)
        if not np.isfinite(signal).all():
            raise ModelError(f"{self.tried.own.site}: NaN or Inf in the analysis data")
        return {
            name: figure(
                signal, per_sample(_squares(rounded(x, ranged) - x, self.tried.axis), samples)
            )
            for name, ranged in self.figures.items()
        }


class _Layer:
    def __init__(
        self, running: Running, tried: Tried, placed: Placed, figures: Mapping[FigureKey, Pair]
    ) -> None:
        self.tried, self.figures = tried, figures
        self.reads = placed.node.input[0]
        self.gives = placed.output if placed.bn is None else placed.bn.output[0]
        self.axis = 1 if tried.held.weight.ndim > 2 else -1
        self._turned = placed.node.op_type == "MatMul"
        self._session = _alone(running, placed)
        self._weight = self._laid(tried.held.folded[0])
        used = {weight for weight, _ in figures.values() if weight is not None}
        changes = {weight: tried.change(weight) for weight in used}
        self._changes = {w: self._laid(x) for w, x in changes.items() if x is not None}

    def _laid(self, weight: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(weight.T if self._turned else weight)

    def _apply(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return self._session.run({"x": x, "w": weight})["y"]

    def see(self, tensors: Feeds, samples: int) -> dict[FigureKey, np.ndarray]:
        x = tensors[self.reads].astype(np.float32, copy=False)
        signal = self._energy(tensors[self.gives], samples)
        if not np.isfinite(signal).all():
            raise ModelError(
                f"{self.tried.name}: its output holds NaN or Inf in the analysis data, and in no "
                "layer before it"
            )
        moved: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        found = {}
        for name, (weight, given) in self.figures.items():
            if given is None:
                assert weight is not None
                y = self._apply(x, self._changes[weight])
            else:
                if given not in moved:
                    ranged = self.tried.inputs[given]
                    assert ranged is not None, f"{name} has no range"
                    other = rounded(x, ranged)
                    moved[given] = other, self._apply(other - x, self._weight)
                other, y = moved[given]
                if weight is not None:
                    y = self._apply(other, self._changes[weight]) + y
            found[name] = figure(signal, self._energy(y, samples))
        return found

    def _energy(self, y: np.ndarray, samples: int) -> np.ndarray:
        return per_sample(_squares(y, self.axis % y.ndim), samples)


def _alone(running: Running, placed: Placed) -> Computation:
    """What a layer's node makes of x with the weight w, without a bias."""
    node = onnx.NodeProto(name="node", op_type=placed.node.op_type, input=["x", "w"], output=["y"])
    kept = [each for each in placed.node.attribute if each.name not in ("transB", "beta")]
    node.attribute.extend(kept)
    if node.op_type == "Gemm":
        node.attribute.append(helper.make_attribute("transB", 1))
    return running.open([node], ["y"], given=_GIVEN)


def _squares(y: np.ndarray, axis: int) -> np.ndarray:
    """(rows, channels), float64: the sum of squares over all other axes."""
    others = tuple(a for a in range(1, y.ndim) if a != axis)
    return np.square(y).sum(others).reshape(len(y), -1).astype(np.float64)
