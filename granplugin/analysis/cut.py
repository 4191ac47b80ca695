"""Effects of rounding on an ONNX file's outputs, batch by batch.

A layer alone, and all but a layer, are run from where they differ: nodes that are the same and read
the same are not computed again, but taken from a recording. All sessions share the file's weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from granplugin.analysis.effects import Wanted, check_whole, compare
from granplugin.analysis.tried import Choice
from granplugin.errors import ModelError
from granplugin.graph.read.graph import reads
from granplugin.measures.samples import sampled
from granplugin.network.onnx_rounded import Rounded, rounded
from granplugin.network.onnx_running import Computation, Feeds, Running, parts_of
from granplugin.planning.rows import QuantizedRow
from granplugin.sources.onnx_network import Passed


@dataclass(frozen=True, eq=False)
class _Cut:
    """What is left to compute of a changed graph: `nodes`, of the tensors `given`."""

    nodes: Sequence[onnx.NodeProto]
    constants: Feeds
    given: Sequence[str]
    outputs: Sequence[str]


@dataclass(frozen=True, eq=False)
class _Recording:
    """A graph, run whole, with the cuts that are run on what it keeps."""

    session: Computation
    cuts: Mapping[str, _Cut]


class Effects:
    """Measures effects batch by batch."""

    def __init__(
        self,
        running: Running,
        passed: Passed,
        asked: Wanted,
        axes: Mapping[str, int | None],
        example: Feeds,
    ) -> None:
        self.running, self.passed, self.asked, self.axes = running, passed, asked, axes
        self._outputs = list(running.graph.outputs)
        self._recorded: dict[str, _Recording] = {}
        self._values = 0
        self._example = example

    def run(
        self, batch: Feeds, labels: np.ndarray | None, wanted: frozenset[str]
    ) -> Mapping[str, np.ndarray]:
        """The wanted figures of one batch."""
        found: dict[str, np.ndarray] = {}
        self._record(wanted)
        start = 0
        for part in parts_of(batch, self._values):
            length = len(next(iter(part.values())))
            theirs = None if labels is None else labels[start : start + length]
            start += length
            for name, sums in self._run(part, theirs, wanted).items():
                found[name] = found[name] + sums if name in found else sums
        return found

    def _record(self, wanted: Collection[str]) -> None:
        """Open what is recorded for these figures, once."""
        if self._recorded:
            return
        asked, network = self.asked, self.asked.network
        plain = Rounded(tuple(self.running.graph.nodes), {})
        alone = {
            name: self._rounded({layer: pair}, others=False)
            for name, (layer, pair) in asked.alone.items()
            if name in wanted
        }
        self._recorded["alone"] = self._recording(plain, alone)
        restored = {name: layer for name, layer in asked.restored.items() if name in wanted}
        if restored:
            start = network.start()
            changed = {
                name: self._rounded({k: v for k, v in start.items() if k != layer})
                for name, layer in restored.items()
            }
            self._recorded["restored"] = self._recording(self._rounded(start), changed)
        for each in self._recorded.values():
            shown = each.session.run(self._example).values()
            values = sum(x.size // max(len(x), 1) for x in shown if x.ndim)
            self._values = max(self._values, values)

    def _rounded(self, choice: Choice, others: bool = True) -> Rounded:
        """The graph with a choice's settings."""
        network, rows = self.asked.network, list[QuantizedRow]()
        amax: dict[str, np.ndarray] = {}
        made: dict[str, np.ndarray] = {}
        folded = set()
        for layer, (weight, given) in choice.items():
            if layer not in network.tried:
                continue
            tried = network.tried[layer]
            if weight is not None and (values := tried.weights[weight]) is not None:
                row = tried.asked.weights[weight]
                rows.append(row)
                made[row.site] = values
                if row.bn == "fold":
                    folded.add(layer)
            if given is not None and (ranged := tried.inputs[given]) is not None:
                rows.append(ranged.row)
                if ranged.amax is not None:
                    amax[ranged.row.site] = ranged.amax
        for ranged in network.chosen_sites(choice, others):
            rows.append(ranged.row)
            if ranged.amax is not None:
                amax[ranged.row.site] = ranged.amax
        return rounded(self.passed.graph, self.passed.placed, rows, amax, folded, made)

    def _recording(self, whole: Rounded, changed: Mapping[str, Rounded]) -> _Recording:
        same = {node.SerializeToString() for node in whole.nodes}
        cuts = {name: self._cut(same, each) for name, each in changed.items()}
        kept = {name for cut in cuts.values() for name in cut.given} - self.running.inputs.keys()
        names = list(dict.fromkeys([*self._outputs, *sorted(kept)]))
        return _Recording(self.running.open(whole.nodes, names, whole.constants), cuts)

    def _cut(self, same: Collection[bytes], changed: Rounded) -> _Cut:
        """What of a changed graph is not among the nodes that were recorded, or reads what is not."""
        nodes, made = [], set[str]()
        for node in changed.nodes:
            if not made.isdisjoint(reads(node)) or node.SerializeToString() not in same:
                nodes.append(node)
                made.update(node.output)
        read = {name for node in nodes for name in reads(node)} - made - {""}
        given = [
            name
            for name in sorted(read)
            if name not in changed.constants and name not in self.running.graph.stored
        ]
        return _Cut(nodes, changed.constants, given, [n for n in self._outputs if n in made])

    def _run(
        self, batch: Feeds, labels: np.ndarray | None, wanted: frozenset[str]
    ) -> dict[str, np.ndarray]:
        asked, found = self.asked, dict[str, np.ndarray]()

        def add(name: str, outputs: Feeds, what: str) -> None:
            whole = sampled({key: outputs[key] for key in self._outputs}, self.axes)
            check_whole(whole, what)
            found[name] = compare(reference, whole, labels, asked.metric, asked.classes)

        kept = {**batch, **self._recorded["alone"].session.run(batch)}
        reference = sampled({key: kept[key] for key in self._outputs}, self.axes)
        if not all(np.isfinite(output).all() for output in reference.values()):
            raise ModelError(self._not_finite(batch))
        for name, cut in self._recorded["alone"].cuts.items():
            if name in wanted:
                layer = asked.alone[name][0]
                add(name, {**kept, **self._replay(cut, kept)}, f"only {layer} quantized")
        if "restored" in self._recorded:
            kept = {**batch, **self._recorded["restored"].session.run(batch)}
            for name, cut in self._recorded["restored"].cuts.items():
                if name in wanted:
                    layer = asked.restored[name]
                    add(name, {**kept, **self._replay(cut, kept)}, f"all but {layer} quantized")
        del kept
        for name, choice in asked.choices.items():
            if name in wanted:
                change = self._rounded(choice)
                session = self.running.open(change.nodes, self._outputs, change.constants)
                add(name, session.run(batch), f"{len(choice)} layers quantized")
        return found

    def _replay(self, cut: _Cut, kept: Feeds) -> dict[str, np.ndarray]:
        if not cut.outputs:  # nothing of it reaches an output
            return {}
        given = {name: kept[name].dtype for name in cut.given}
        session = self.running.open(cut.nodes, cut.outputs, cut.constants, given)
        return session.run(kept)

    def _not_finite(self, batch: Feeds) -> str:
        """Where NaN or Inf first comes up."""
        placed = {name: self.passed.placed[name].output for name in self.asked.network.tried}
        names = list(dict.fromkeys(placed.values()))
        found = self.running.open(self.running.graph.nodes, names).run(batch)
        for name, output in placed.items():
            if not np.isfinite(found[output]).all():
                return (
                    f"{name}: its output holds NaN or Inf in the analysis data, and in no layer "
                    "before it"
                )
        return "the model's output holds NaN or Inf in the analysis data, and no layer's does"
