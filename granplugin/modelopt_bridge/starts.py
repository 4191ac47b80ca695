"""Where the ranges of weights start that are learned: at the least error of what a layer computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from granplugin.modelopt_bridge.learned import is_learned, summed
from granplugin.modelopt_bridge.observe import of_every_process, quantizer_of
from granplugin.planning.quantize_config import quantizer_name
from granplugin.planning.rows import QuantizedRow
from granplugin.quant.layers import PRODUCTS

STEPS = 41
"""Candidates: the calibrated amax times 2^(-k / 4), k = 0..40. What is between them, training finds."""


@contextmanager
def squares_seen(
    model: nn.Module, rows: Iterable[QuantizedRow]
) -> Iterator[Callable[[], dict[str, Tensor]]]:
    """Layer -> the sum of the squares of each channel of its input, over all processes, once the
    model has run meanwhile; of the layers whose weights are among these rows."""
    found: dict[str, Tensor] = {}

    def watch(layer: str, channels: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].detach().float()
            others = [axis for axis in range(x.ndim) if axis != channels % x.ndim]
            found[layer] = found.get(layer, 0) + x.square().sum(others).double().cpu()

        return hook

    hooks = [
        quantizer_of(model, f"{row.layer}.input").register_forward_pre_hook(
            watch(row.layer, PRODUCTS[row.type].channels)
        )
        for row in rows
        if row.operand == "weight" and "input" in PRODUCTS[row.type].multiplied
    ]
    try:
        yield lambda: {
            layer: torch.stack([each[layer] for each in of_every_process(found)]).sum(0)
            for layer in found
        }
    finally:
        for hook in hooks:
            hook.remove()


def start_weights(
    model: nn.Module,
    rows: Iterable[QuantizedRow],
    weight_of: Callable[[QuantizedRow], Tensor],
    squares: Mapping[str, Tensor],
) -> None:
    """Set the learned amax of these weights, none above what it was calibrated to, to the one with
    the least sum of E[x^2] (Q(w) - w)^2, x what w is multiplied by: the error of the layer's output,
    were its inputs independent and of mean 0. A range that is pinned or shared stays.

    What multiplies zeros alone has no say, however large: a filter behind a channel that died in
    training would else take the range of all others, and no gradient comes from it.
    """
    modules = dict(model.named_modules())
    for row in rows:
        quantizer = modules.get(quantizer_name(row))
        power = squares.get(row.layer) if row.operand == "weight" else None
        chosen = row.amax is not None or row.share is not None
        if power is None or chosen or quantizer is None or not is_learned(quantizer):
            continue
        weight = weight_of(row).to(quantizer._amax.device)
        power = _of_values(row, power).to(weight)
        largest = quantizer._amax.detach().clone()
        least, best = torch.full_like(largest, torch.inf), largest.clone()
        with torch.no_grad():
            for step in range(STEPS):
                quantizer._amax.copy_(largest * 2 ** (-step / 4))
                error = summed(power * (quantizer(weight) - weight).square(), largest)
                better = error < least
                least = torch.where(better, error, least)
                best = torch.where(better, quantizer._amax, best)
            quantizer._amax.copy_(best)


def _of_values(row: QuantizedRow, power: Tensor) -> Tensor:
    """What each value of a weight is multiplied by, by channel, broadcast to the weight's shape."""
    kind, shape = PRODUCTS[row.type], row.shape
    if (
        kind.weight_channels
    ):  # of a transposed convolution inputs lie on axis 0, whatever its groups
        return power.reshape(-1, *[1] * (len(shape) - 1))
    groups = len(power) // shape[1]
    of_filters = power.reshape(groups, shape[1]).repeat_interleave(shape[0] // groups, 0)
    return of_filters.reshape(*shape[:2], *[1] * (len(shape) - 2))
