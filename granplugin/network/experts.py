"""Weights of several matrices, such as those of experts, as one product for each; and weights that
are a first factor, as second ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
    """torch.matmul, mm or bmm of a parameter of more than two axes, as a product for each of its
    matrices, or of a parameter that is its first factor, as linear layers of it; None for any
    other."""
    given = [*args, *kwargs.values()]
    if len(given) != 2 or not all(isinstance(each, Tensor) for each in given):
        return None
    first, second = given
    ahead, behind = (isinstance(each, nn.Parameter) for each in given)
    if ahead == behind or min(first.ndim, second.ndim) < 2:
        return None
    if ahead:
        # W x = (x^T W^T)^T: engines quantize a weight that is the second factor.
        rows, weights = second.mT, first
        return (
            (lambda *args, **kwargs: each_of(rows, weights, F.linear).mT)
            if (_fit(rows, weights))
            else None
        )
    if second.ndim == 2 or not _fit(first, second):
        return None
    return lambda *args, **kwargs: each_of(first, second, torch.matmul)


def _fit(rows: Tensor, weights: Tensor) -> bool:
    """Whether each matrix of the weights has rows of its own, or all have the same."""
    lengths = zip(reversed(rows.shape[:-2]), reversed(weights.shape[:-2]), strict=False)
    return all(count == 1 or length in (1, count) for length, count in lengths)


def each_of(rows: Tensor, weights: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The products of (..., rows, in) with each of the matrices in weights (..., n, m), whose axes
    in front are those of the rows, or are broadcast as torch.matmul does it."""
    if weights.ndim == 2:
        return product(rows, weights)
    axis, count = -weights.ndim, weights.shape[0]
    given = rows.ndim >= weights.ndim
    if count == 1:
        made = each_of(rows, weights[0], product)
        return made if given else made.unsqueeze(axis)
    own = [
        rows.select(axis, at if rows.shape[axis] > 1 else 0) if given else rows
        for at in range(count)
    ]
    made = [each_of(part, weights[at], product) for at, part in enumerate(own)]
    return torch.stack(made, axis)
