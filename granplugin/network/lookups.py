"""A bag of embeddings as the lookup of its rows, and what it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def embedding_bag(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[..., Tensor] | None:
    """F.embedding_bag of bags of one length; None where they have several, or where it changes its
    weights."""
    given = args[0] if args else kwargs["input"]
    changes = kwargs.get("max_norm", args[3] if len(args) > 3 else None) is not None
    if given.ndim != 2 or given.is_floating_point() or given.is_nested or changes:
        return None
    return _embedding_bag


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Rows of `weight` (values, features) at `input` (samples, bag): their sum, mean or largest, but
    for those of the padding, as torch's documentation of embedding_bag has it."""
    rows = F.embedding(input, weight)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    if padding_idx is None:
        return rows.amax(1) if mode == "max" else rows.sum(1) if mode == "sum" else rows.mean(1)
    left_out = (input == padding_idx % weight.shape[0]).unsqueeze(-1)
    if mode == "max":
        empty = left_out.all(1)
        return rows.masked_fill(left_out, -torch.inf).amax(1).masked_fill(empty, 0)
    summed = rows.masked_fill(left_out, 0).sum(1)
    return summed if mode == "sum" else summed / (~left_out).sum(1).clamp(min=1)
