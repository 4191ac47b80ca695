"""What the inputs and outputs of a model's layers hold, seen while data runs through it.

Every reduction is exact and independent of the order: the same tensors give the same statistics
bit for bit, however they are batched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import nn

from granplugin.calibrators import BINS, FIRST, SHIFT
from granplugin.errors import DataError, ModelError
from granplugin.modelopt_bridge.library import TensorQuantizer
from granplugin.statistics import Need, Statistics
from granplugin.trace import evaluating

log = logging.getLogger(__name__)

ForwardLoop = Callable[[nn.Module], object]
_CHUNK = 1 << 20
_LEAST_BATCH = 16


def observe(model: nn.Module, needs: Iterable[Need], forward_loop: ForwardLoop) -> Statistics:
    """Run `forward_loop(model)` once, in float, and collect what is needed at each site.

    `model` is converted by modelopt; its quantizers are off while this runs. Raises ModelError
    naming the first layer that saw NaN or Inf, a site that does not exist, or one that was never
    reached.
    """
    sites: dict[str, list[_Seen]] = {}
    for need in sorted(needs, key=lambda need: (need.site, need.block)):
        sites.setdefault(need.site, []).append(_Seen(need))
    reached: dict[str, None] = {}
    samples = 0

    def count(module: nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal samples
        samples += next((len(x) for x in _tensors((args, kwargs)) if x.ndim), 0)

    def watch(site: str) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            reached[site] = None
            for seen in sites[site]:
                seen.add(args[0].detach().float())

        return hook

    quantizers = [m for m in model.modules() if isinstance(m, TensorQuantizer)]
    enabled = [quantizer for quantizer in quantizers if quantizer.is_enabled]
    hooks = [model.register_forward_pre_hook(count, with_kwargs=True)]
    try:
        for site in sites:
            hooks.append(_quantizer(model, site).register_forward_pre_hook(watch(site)))
        for quantizer in enabled:
            quantizer.disable()
        with evaluating(model):
            forward_loop(model)
    finally:
        for hook in hooks:
            hook.remove()
        for quantizer in enabled:
            quantizer.enable()

    for site in reached:
        if not all(seen.amax.isfinite().all() for seen in sites[site]):
            raise ModelError(
                f"{site}: NaN or Inf during calibration, and in no layer before it; "
                "look at this layer's weights and at the calibration data"
            )
    if missing := sorted(sites.keys() - reached.keys()):
        raise ModelError(
            f"{missing[0]}: never reached during calibration{_and_more(missing)}; "
            "set its format to float"
        )
    log.debug("observed %d sites on %d samples", len(sites), samples)
    found = [seen for group in sites.values() for seen in group]
    return Statistics(
        {seen.need: seen.amax.cpu().numpy() for seen in found},
        {seen.need: seen.counts_grid() for seen in found if seen.need.histogram},
        samples,
    )


def batches(samples: int) -> list[slice]:
    """Slices of 16 to 31 samples (fewer only where there are fewer than 16 in all).

    On a CPU, torch picks another convolution for a batch of fewer than 16 samples, depending on
    the threads too, and the last bits of what it computes differ (ConvParams::use_mkldnn in
    aten/src/ATen/native/Convolution.cpp). From 16 on, one sample's activations are the same bits
    in any batch, so data run in these batches give the same statistics bit for bit, whatever
    batch size the user chose, in any order and on any number of threads.
    """
    count = max(samples // _LEAST_BATCH, 1)
    bounds = [samples * i // count for i in range(count + 1)]
    return [slice(*ends) for ends in zip(bounds, bounds[1:], strict=False)]


class _Seen:
    """The running amax and counts of one need, on the device of the data."""

    def __init__(self, need: Need) -> None:
        self.need = need
        self.cells = int(np.prod(need.grid))
        self.amax: torch.Tensor | None = None
        self.counts: torch.Tensor | None = None

    def add(self, x: torch.Tensor) -> None:
        amax = self._amax(x)
        self.amax = amax if self.amax is None else torch.maximum(self.amax, amax)
        if self.need.histogram:
            counts = self._counts(x)
            self.counts = counts if self.counts is None else self.counts.add_(counts)

    def _amax(self, x: torch.Tensor) -> torch.Tensor:
        if self.cells == 1:
            low, high = torch.aminmax(x)
            return torch.maximum(high, -low).reshape(self.need.grid)
        split = x.reshape(self._split(x))
        within = (0, *range(2, split.ndim, 2))
        # Not abs().amax(): that writes and reads a copy of the activation.
        return torch.maximum(split.amax(within), -split.amin(within)).reshape(self.need.grid)

    def _counts(self, x: torch.Tensor) -> torch.Tensor:
        if self.cells == 1:
            # All 16 bits are counted and cut to BINS at the end, which is cheaper than clamping.
            bits = x.contiguous().view(torch.int32).reshape(-1)
            return sum(
                torch.bincount((part >> SHIFT).bitwise_and_(0xFFFF), minlength=1 << 16)
                for part in bits.split(_CHUNK)
            )
        split = x.reshape(self._split(x))
        bins = (split.view(torch.int32) >> SHIFT).bitwise_and_(0xFFFF)
        bins.sub_(FIRST).clamp_(0, BINS - 1)
        cells = torch.arange(self.cells, dtype=torch.int32, device=x.device)
        shape = [n for length in self.need.grid[1:] for n in (length, 1)]
        bins += cells.reshape(1, *shape) * BINS
        return torch.bincount(bins.reshape(-1), minlength=self.cells * BINS)

    def counts_grid(self) -> np.ndarray:
        counts = self.counts.cpu().numpy()
        if self.cells == 1:
            kept = counts[FIRST : FIRST + BINS].copy()
            kept[0] += counts[:FIRST].sum()
            kept[-1] += counts[FIRST + BINS :].sum()
            counts = kept
        return counts.reshape(*self.need.grid, BINS)

    def _split(self, x: torch.Tensor) -> list[int]:
        """The batch, then cells and values within a cell for each axis.

        An axis with one cell may have any length: a layer may see images of several sizes.
        """
        sizes = zip(x.shape[1:], self.need.shape[1:], self.need.grid[1:], strict=False)
        if x.ndim != len(self.need.shape) or any(
            cells > 1 and length != planned for length, planned, cells in sizes
        ):
            raise DataError(
                f"{self.need.site}: saw a tensor of shape {list(x.shape)} during calibration, the "
                f"plan was made for {['batch', *self.need.shape[1:]]}; use per_tensor here"
            )
        grid = self.need.grid[1:]
        return [
            len(x),
            *(n for k, m in zip(x.shape[1:], grid, strict=True) for n in (m, k // m)),
        ]


def _quantizer(model: nn.Module, site: str) -> TensorQuantizer:
    try:
        return model.get_submodule(f"{site}_quantizer".removeprefix("."))
    except AttributeError as err:
        raise ModelError(
            f"{site}: modelopt has no quantizer there; set its format to float"
        ) from err


def _tensors(value: object) -> Iterable[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
