"""Ranges and histograms of layers' inputs and outputs, in one float pass that can be resumed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from granplugin.analysis.analyst import PEAK
from granplugin.analysis.factors import layer_module
from granplugin.analysis.passes import InMemory, Pace, left
from granplugin.calibration.seen import Seen
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
    needs = sorted(needs, key=lambda need: (need.site, need.block))
    past, done = left(kept, key)
    seen: dict[str, list[Seen]] = {}
    for need in needs:
        seen.setdefault(need.site, []).append(Seen(need))
    order: dict[str, None] = {}
    samples = 0
    # What was seen of a batch before memory ran out is not to be seen again in its halves.
    calls: Counter[Seen] = Counter()
    before: Counter[Seen] = Counter()

    def add(site: str, tensor: Tensor) -> None:
        order[site] = None
        for each in seen[site]:
            if calls[each] >= before[each]:
                each.add(tensor.detach().float())
            calls[each] += 1

    def see(part: Batch) -> Batch:
        calls.clear()
        try:
            forward(part)
        except Exception:
            before.update(calls)
            raise
        return part

    def snapshot() -> Statistics | None:
        """Of what is done so far; None before the first batch."""
        if not samples:
            return past
        found = [each for group in seen.values() for each in group if each.amax is not None]
        now = Statistics(
            {each.need: each.amax_grid() for each in found},
            {each.need: each.counts_grid() for each in found if each.need.histogram},
            samples,
        )
        return now if past is None else past.merge(now)

    def save_it() -> None:
        if (now := snapshot()) is not None:
            now.save(kept, f"{key}+{done}")

    hooks = [_hook(model, site, partial(add, site)) for site in seen]
    memory = InMemory()
    pace = Pace()
    try:
        for at, batch in enumerate(batches):
            if at < done:
                continue
            for part in memory.run(see, batch):
                samples += len(next(iter(part.values())))
            before.clear()
            for site in order:
                if not all(each.is_finite() for each in seen[site]):
                    raise ModelError(
                        f"{site}: NaN or Inf in the calibration data's pass, and in no layer "
                        "before it; look at this layer's weights and at the data"
                    )
            done = at + 1
            pace.save(save_it)
    finally:
        for hook in hooks:
            hook.remove()
    found = snapshot()
    if found is None:
        raise DataError("there are no calibration samples")
    return found


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
