"""Experts whose weights lie in one tensor, as one product for each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def grouped(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[..., Tensor] | None:
    """F.grouped_mm of rows (rows, in) that are sorted by expert, and weights (experts, in, out); None
    for its other uses.

    Every expert multiplies all rows, and each row keeps the product of its own: how many rows an
    expert has depends on the data, and a graph's shapes may not.
    """
    plain = len(args) == 2 and all(kwargs.get(key) is None for key in ("bias", "out_dtype"))
    if not plain or kwargs.get("offs") is None or (args[0].ndim, args[1].ndim) != (2, 3):
        return None
    return _grouped


def _grouped(rows: Tensor, weights: Tensor, *, offs: Tensor, **_: Any) -> Tensor:
    """`offs` are where each expert's rows end; what comes behind the last of them is nobody's, and
    may be anything."""
    at = torch.arange(rows.shape[0], device=rows.device)
    expert = (at.unsqueeze(-1) >= offs).sum(-1, keepdim=True)
    result = torch.matmul(rows, weights[0])
    for number in range(1, weights.shape[0]):
        result = torch.where(expert == number, torch.matmul(rows, weights[number]), result)
    return result


def stacked(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[..., Tensor] | None:
    """torch.bmm or matmul of rows (experts, rows, in) and a parameter (experts, in, out), or of one
    matrix in a parameter of three axes; None for any other."""
    given = [*args, *kwargs.values()]
    if len(given) != 2 or not all(isinstance(each, Tensor) for each in given):
        return None
    rows, weights = given
    if not isinstance(weights, nn.Parameter) or weights.ndim != 3 or rows.ndim < 3:
        return None
    if len(weights) > 1 and (rows.ndim != 3 or len(rows) != len(weights)):
        return None
    return lambda *args, **kwargs: _stacked(rows, weights)


def _stacked(rows: Tensor, weights: Tensor) -> Tensor:
    if len(weights) == 1:
        return torch.matmul(rows, weights[0])
    products = [torch.matmul(rows[at], weights[at]) for at in range(len(weights))]
    return torch.stack(products)
