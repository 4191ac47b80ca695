"""Ranges and histograms of layers' inputs and outputs, in one float pass that can be resumed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from granplugin.analysis.analyst import PEAK
from granplugin.analysis.factors import layer_module
from granplugin.analysis.passes import InMemory, Pace, left
from granplugin.calibration.seen import Seen, not_finite, seen_of, statistics_of
from granplugin.calibration.statistics import Need, Statistics
from granplugin.data.batches import Batch
from granplugin.errors import DataError, ModelError
from granplugin.network.frames import passing
from granplugin.network.torch_calls import tensors_in


def collect_resumably(
    model: nn.Module,
    needs: Iterable[Need],
    batches: Iterable[Batch],
    forward: Callable[[Batch], Any],
    kept: Path,
    key: str,
) -> Statistics:
    """What is needed at each site, over all batches; `kept` is where an interrupted pass for the
    same `key` was last saved. Raises ModelError naming the first layer that saw NaN or Inf."""
    past, done = left(kept, key)
    once = _Once(seen_of(needs))
    samples = 0

    def see(part: Batch) -> Batch:
        with once.running():
            forward(part)
        return part

    def so_far() -> Statistics | None:
        """None before the first batch."""
        if not samples:
            return past
        now = statistics_of(once.seen, samples)
        return now if past is None else past.merge(now)

    def save_it() -> None:
        if (now := so_far()) is not None:
            now.save(kept, f"{key}+{done}")

    hooks = [_hook(model, site, partial(once.add, site)) for site in once.seen]
    memory = InMemory()
    pace = Pace()
    try:
        for at, batch in enumerate(batches):
            if at < done:
                continue
            for part in memory.run(see, batch):
                samples += len(next(iter(part.values())))
            once.end_batch()
            done = at + 1
            pace.save(save_it)
    finally:
        for hook in hooks:
            hook.remove()
    found = so_far()
    if found is None:
        raise DataError("there are no calibration samples")
    return found


class _Once:
    """Sees each value of a batch once: what was seen before memory ran out is not to be seen again
    where the batch is run in halves."""

    def __init__(self, seen: Mapping[str, Sequence[Seen]]) -> None:
        self.seen = seen
        self._reached: dict[str, None] = {}
        self._calls: Counter[Seen] = Counter()
        self._before: Counter[Seen] = Counter()

    def add(self, site: str, tensor: Tensor) -> None:
        self._reached[site] = None
        for each in self.seen[site]:
            if self._calls[each] >= self._before[each]:
                each.add(tensor.detach().float())
            self._calls[each] += 1

    @contextmanager
    def running(self) -> Iterator[None]:
        """While a batch runs, or a part of one."""
        self._calls.clear()
        try:
            yield
        except Exception:
            self._before.update(self._calls)
            raise

    def end_batch(self) -> None:
        """All of a batch was seen. Raises ModelError where it was not finite."""
        self._before.clear()
        if (site := not_finite(self.seen, self._reached)) is not None:
            raise ModelError(
                f"{site}: NaN or Inf in the calibration data's pass, and in no layer "
                "before it; look at this layer's weights and at the data"
            )


def _hook(model: nn.Module, site: str, add: Callable[[Tensor], None]) -> Any:
    """Give `add` the site's tensors as the model runs."""
    layer, _, role = site.rpartition(".")
    module = layer_module(model, layer) if role in ("input", PEAK) else model.get_submodule(layer)
    module = passing(module, role) or module

    def given(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next(tensors_in((args, kwargs)))
        add(_peaks(x) if role == PEAK else x)

    if role == "output":
        return module.register_forward_hook(lambda m, args, out: add(next(tensors_in(out))))
    return module.register_forward_pre_hook(given, with_kwargs=True)


def _peaks(x: Tensor) -> Tensor:
    rows = x.detach().flatten(1) if x.ndim > 1 else x.detach()[:, None]
    # Not abs().amax(): that writes and reads a copy of the activation.
    return torch.maximum(rows.amax(1), -rows.amin(1))[:, None]
