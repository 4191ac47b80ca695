"""Ranges that are learned: amax as parameters, with the gradient of learned step size quantization.

A quantizer computes what modelopt's own computes; only its gradient is another. It is a backend of
modelopt, so that a saved model restores into the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from granplugin.modelopt_bridge.library import (
    TensorQuantizer,
    fake_tensor_quant,
    register_quant_backend,
    scaled_e4m3,
)
from granplugin.network.taken import LEARNED, LEAST
from granplugin.planning.quantize_config import quantizer_name
from granplugin.planning.rows import QuantizedRow
from granplugin.quant.formats import FORMATS

_BOUNDS = {fmt.num_bits: (fmt.smallest, fmt.largest) for fmt in FORMATS.values()}
_INTEGER = {fmt.num_bits: fmt.integer for fmt in FORMATS.values()}


def learn(model: nn.Module, rows: Sequence[QuantizedRow]) -> None:
    """Make the amax of each of these sites, whose ranges are constants, a parameter with one number
    for each scale; of sites that share a scale, one parameter."""
    modules = dict(model.named_modules())
    for row in rows:
        quantizer = modules.get(quantizer_name(row))
        if row.dynamic or quantizer is None or not quantizer.is_enabled:
            continue
        amax = quantizer._amax
        cells = amax[
            tuple(slice(None, None, n // k) for n, k in zip(amax.shape, row.grid, strict=False))
        ]
        del quantizer._amax
        quantizer.register_parameter("_amax", nn.Parameter(cells.clone()))
        quantizer.backend = LEARNED
    tie(model, rows)


def tie(model: nn.Module, rows: Sequence[QuantizedRow]) -> None:
    """Let the learned ranges of sites that share a scale be one parameter."""
    modules = dict(model.named_modules())
    first: dict[tuple[str, int], nn.Parameter] = {}
    for row in rows:
        quantizer = modules.get(quantizer_name(row))
        if row.share is not None and quantizer is not None and is_learned(quantizer):
            quantizer._amax = first.setdefault((row.share, row.scales), quantizer._amax)


def is_learned(quantizer: nn.Module) -> bool:
    """Whether its amax is trained."""
    return isinstance(getattr(quantizer, "_amax", None), nn.Parameter)


def _expanded(amax: Tensor, x: Tensor) -> Tensor:
    """One amax for each value of its block along the axes that blocks cut."""
    for axis, cells in enumerate(amax.shape):
        if cells not in (1, x.shape[axis]):
            amax = amax.repeat_interleave(x.shape[axis] // cells, axis)
    return amax


class _LearnedStep(torch.autograd.Function):
    """Esser et al. 2020, "Learned Step Size Quantization", arXiv:1902.08153, equations 3 and 5 with
    the gradient scale of section 2.2, where the step is amax / largest."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, amax: Tensor, num_bits: Any) -> Tensor:
        ctx.save_for_backward(x, amax)
        ctx.num_bits = num_bits
        wide = _expanded(amax, x)
        if isinstance(num_bits, tuple):
            return scaled_e4m3(x, wide, None, *num_bits, None, True)
        return fake_tensor_quant(x, wide, None, num_bits, False, False, None, True, None, None)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,), (x, amax) = grads, ctx.saved_tensors
        smallest, largest = _BOUNDS[ctx.num_bits]
        ratio = x * (largest / _expanded(amax, x))
        inside = (ratio >= smallest) & (ratio <= largest)
        rounded = ratio.round() if _INTEGER[ctx.num_bits] else ratio
        of_step = torch.where(inside, rounded - ratio, ratio.clamp(smallest, largest)) * grad
        cells = summed(of_step, amax) / largest
        values = x.numel() / max(amax.numel(), 1)
        return grad * inside, cells / math.sqrt(values * largest), None


def summed(x: Tensor, amax: Tensor) -> Tensor:
    """x summed over what each amax is for."""
    if not amax.ndim:
        return x.sum()
    split: list[int] = []
    within: list[int] = []
    for axis, cells in enumerate(amax.shape):
        within.append(len(split) + 1)
        split += [cells, x.shape[axis] // cells]
    return x.reshape(split).sum(within)


def _fake_quantize(x: Tensor, quantizer: TensorQuantizer) -> Tensor:
    amax = quantizer._amax.abs().clamp_min(LEAST)  # as trained_amax does
    return _LearnedStep.apply(x, amax, quantizer.num_bits)


register_quant_backend(LEARNED, _fake_quantize)
