"""Effects of rounding on a torch model's output, batch by batch.

A layer alone, and all but a layer, are replayed from that layer on.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from granplugin.analysis.effects import Wanted, check_whole, compare
from granplugin.analysis.replay import Diverged, Script
from granplugin.analysis.rounded import Changes, run
from granplugin.errors import ModelError

log = logging.getLogger(__name__)


class References:
    """What the float network gave for batches that come again, as long as that is not much."""

    _MOST = 2**26
    """Bytes."""

    def __init__(self) -> None:
        self._kept: dict[bytes, dict[str, np.ndarray]] = {}
        self._bytes = 0

    def of(
        self, tensors: Mapping[str, Tensor], run: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """The outputs for this batch: those that are kept, else what `run` gives."""
        content = hashlib.blake2b()
        for name, tensor in sorted(tensors.items()):
            array = tensor.detach().cpu().contiguous()
            content.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
            content.update(array.reshape(-1).view(torch.uint8).numpy())
        key = content.digest()
        if key not in self._kept:
            outputs = run()
            size = sum(output.nbytes for output in outputs.values())
            if self._bytes + size > self._MOST:
                return outputs
            self._kept[key] = {name: output.copy() for name, output in outputs.items()}
            self._bytes += size
        return self._kept[key]


class Effects:
    """Measures effects batch by batch; `arrays` makes outputs by name, samples on axis 0, of what
    forward returns."""

    def __init__(
        self,
        model: nn.Module,
        asked: Wanted,
        example: Mapping[str, Tensor],
        arrays: Callable[[object], dict[str, np.ndarray]],
        references: References,
    ) -> None:
        self.model, self.asked, self._arrays = model, asked, arrays
        self._references = references
        self.changes, self.start = Changes(model, asked.network), asked.network.start()
        self.script = Script(model)
        self.replayed: set[str] = set()
        self._learn(example)

    def _learn(self, example: Mapping[str, Tensor]) -> None:
        alone, restored = self.asked.alone, self.asked.restored
        layers = {*(layer for layer, _ in alone.values()), *restored.values()}
        if not layers:
            return
        modules = {layer: self.changes.module_of(layer) for layer in layers}
        script = self.script

        def forward() -> object:
            return run(self.model, example)

        with script.installed():
            script.learn(forward, modules.values())
            bad: set[str] = set()
            for changes in ({}, self.changes.of(self.start)) if restored else ({},):
                script.changes = changes
                script.record(forward)
                bad |= {n for n, m in modules.items() if not script.replayable(forward, m)}
            script.changes = {}
            script.forget()
        if bad:
            log.info("%d layers are run from the start: %s", len(bad), ", ".join(sorted(bad)[:3]))
        self.replayed = layers - bad

    def run(
        self, tensors: Mapping[str, Tensor], labels: np.ndarray | None, wanted: frozenset[str]
    ) -> dict[str, np.ndarray]:
        """The wanted figures of one batch."""
        script, asked = self.script, self.asked
        found: dict[str, np.ndarray] = {}

        def forward() -> object:
            return run(self.model, tensors)

        def add(name: str, outputs: object, what: str) -> None:
            whole = self._arrays(outputs)
            check_whole(whole, what)
            found[name] = compare(reference, whole, labels, asked.metric, asked.classes)

        with script.installed():
            alone = {n: asked.alone[n] for n in wanted if n in asked.alone}
            script.changes = {}
            if alone:
                reference = self._arrays(script.record(forward))
            else:
                reference = self._references.of(tensors, lambda: self._arrays(script.run(forward)))
            if not all(np.isfinite(output).all() for output in reference.values()):
                raise ModelError(self._not_finite(forward))
            for name, (layer, pair) in alone.items():
                script.changes = self.changes.of({layer: pair}, others=False)
                add(name, self._from(layer, forward), f"only {layer} quantized")
            restored = {n: asked.restored[n] for n in wanted if n in asked.restored}
            if restored:
                whole = self.changes.of(self.start)
                script.changes = whole
                script.record(forward)
                for name, layer in restored.items():
                    own = self.changes.modules_of(layer)
                    script.changes = {m: change for m, change in whole.items() if m not in own}
                    add(name, self._from(layer, forward), f"all but {layer} quantized")
            script.forget()
            for name, choice in asked.choices.items():
                if name in wanted:
                    script.changes = self.changes.of(choice)
                    add(name, script.run(forward), f"{len(choice)} layers quantized")
            script.changes = {}
        return found

    def _not_finite(self, forward: Callable[[], object]) -> str:
        """Where NaN or Inf first comes up."""
        found: list[str] = []

        def see(name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if not output.isfinite().all():
                found.append(name)

        hooks = [
            self.changes.module_of(name).register_forward_hook(partial(see, name))
            for name in self.asked.network.tried
        ]
        try:
            self.script.run(forward)
        finally:
            for hook in hooks:
                hook.remove()
        if not found:
            return "the model's output holds NaN or Inf in the analysis data, and no layer's does"
        return (
            f"{found[0]}: its output holds NaN or Inf in the analysis data, and in no layer "
            "before it"
        )

    def _from(self, layer: str, forward: Callable[[], object]) -> object:
        """The output with the script's changes, which begin at this layer."""
        if layer in self.replayed:
            try:
                return self.script.replay(forward, self.changes.module_of(layer))
            except Diverged:
                log.info("%s: the model's calls differ from batch to batch; run whole", layer)
                self.replayed.discard(layer)
        return self.script.run(forward)
