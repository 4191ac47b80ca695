"""What the sites of an ONNX graph hold, seen while batches run through it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping

import numpy as np

from granplugin.calibration.seen_arrays import SeenArrays, statistics_of
from granplugin.calibration.statistics import Need, Statistics
from granplugin.errors import ModelError
from granplugin.network.onnx_layers import Placed
from granplugin.network.onnx_prepared import nodes_behind
from granplugin.network.onnx_running import Feeds, Running, parts_of
from granplugin.quant.site import Operand

PEAK = "peak"
"""`<layer>.peak` is the largest |x| of each sample of the layer's input, as a tensor (n, 1)."""


def tensor_of(placed: Placed, operand: Operand) -> str:
    """The name of what a layer reads as this operand, or puts out."""
    if operand == "skip":
        assert placed.skip is not None
        add, at = placed.skip
        return str(add.input[at])
    if operand == "output":
        return placed.output
    return str(placed.node.input[0 if operand == "input" else 1])


class Watch:
    """Collects batch by batch; of a large batch as many samples at once as there is room for what
    they make, which changes no figure."""

    def __init__(
        self, running: Running, placed: Mapping[str, Placed], needs: Collection[Need]
    ) -> None:
        self.running = running
        self.seen = {need: SeenArrays(need) for need in needs}
        self.samples = 0
        by_tensor: dict[str, list[Need]] = defaultdict(list)
        for need in sorted(needs, key=lambda need: (need.site, need.block)):
            layer, _, operand = need.site.rpartition(".")
            of: Operand = "input" if operand == PEAK else operand  # type: ignore[assignment]
            by_tensor[tensor_of(placed[layer], of)].append(need)
        nodes = enumerate(running.graph.nodes)
        order = {name: at for at, node in nodes for name in node.output}
        self._needs = {
            name: by_tensor[name] for name in sorted(by_tensor, key=lambda n: order.get(n, -1))
        }
        names = [name for name in self._needs if name in order]
        self._values = sum(
            max(math.prod(need.shape) for need in self._needs[name]) for name in names
        )
        self._session = running.open(nodes_behind(running.graph, names), names) if names else None

    def see(self, batch: Feeds) -> None:
        """One batch more. Raises ModelError naming the first layer that sees NaN or Inf."""
        self.running.check(batch)
        for part in parts_of(batch, self._values):
            found = {**part, **(self._session.run(part) if self._session else {})}
            for name, needs in self._needs.items():
                for need in needs:
                    x = found[name].astype(np.float32, copy=False)
                    if need.site.endswith(f".{PEAK}"):
                        x = np.abs(x.reshape(len(x), -1)).max(1, keepdims=True)
                    if not self.seen[need].add(x):
                        raise ModelError(
                            f"{need.site}: NaN or Inf during calibration, and in no layer before "
                            "it; look at this layer's weights and at the calibration data"
                        )
            self.samples += len(next(iter(part.values())))

    def statistics(self) -> Statistics:
        """Of all that was seen."""
        return statistics_of(self.seen, self.samples)
