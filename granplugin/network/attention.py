"""Attention as the products that it is made of, where torch has one function for all of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def multi_head(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[..., Any]:
    """F.multi_head_attention_forward as the functions that it calls."""
    return _multi_head


def scaled_dot_product(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[..., Any] | None:
    """F.scaled_dot_product_attention as a softmax between its two products; None where it draws
    random numbers."""
    return None if (args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)) else _attention


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(scale query key^T + mask) value, as torch's documentation of
    scaled_dot_product_attention has it; rows of which all is masked are 0, as in its kernels."""
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
        value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
    # Scaled first: the scores of 16-bit queries may be too large.
    query = query * (1 / math.sqrt(query.size(-1)) if scale is None else scale)
    scores = torch.matmul(query, key.transpose(-2, -1))
    if is_causal:
        attn_mask = torch.ones(
            query.size(-2), key.size(-2), dtype=torch.bool, device=query.device
        ).tril()
    if attn_mask is None:
        return torch.matmul(torch.softmax(scores, -1), value)
    seen = attn_mask if attn_mask.dtype == torch.bool else attn_mask > -math.inf
    if attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    else:
        scores = scores + attn_mask
    shares = torch.softmax(scores, -1)
    if not is_causal:
        shares = shares.masked_fill(~seen.any(-1, keepdim=True), 0.0)
    return torch.matmul(shares, value)


_multi_head = FunctionType(
    F.multi_head_attention_forward.__code__,
    # It asks whether a mode is on, and hands itself over to it.
    {**F.__dict__, "has_torch_function": lambda tensors: False},
    F.multi_head_attention_forward.__name__,
    F.multi_head_attention_forward.__defaults__,
    F.multi_head_attention_forward.__closure__,
)
_multi_head.__kwdefaults__ = F.multi_head_attention_forward.__kwdefaults__
