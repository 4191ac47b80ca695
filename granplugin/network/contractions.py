"""Functions of two factors that are matrix products in some layout - einsum, tensordot, inner,
bilinear -, as what they are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Contraction:
    """A product over `summed` axes, for each of the `batch` axes: of `left`, whose other axes are
    `rows`, and of `right`, whose other axes are `columns`; put out in the order `out`."""

    left: _Labels
    right: _Labels
    batch: _Labels
    rows: _Labels
    summed: _Labels
    columns: _Labels
    out: _Labels

    def of(self, left: Tensor, right: Tensor) -> Tensor:
        first = _permuted(left, self.left, (*self.batch, *self.rows, *self.summed))
        first = _joined(first, len(self.summed))
        if self.batch and isinstance(right, nn.Parameter):
            return self._each(first, right)
        if self.batch:
            first = _joined(first, len(self.rows), behind=1)
        length = [left.shape[self.left.index(each)] for each in self.rows]
        width = [right.shape[self.right.index(each)] for each in self.columns]
        if self.right == (*self.columns, *self.summed) and right.ndim == 2:
            result = F.linear(first, right)
        else:
            second = _permuted(right, self.right, (*self.batch, *self.summed, *self.columns))
            second = _joined(_joined(second, len(self.columns)), len(self.summed), behind=1)
            result = torch.matmul(first, second)
        if len(self.columns) != 1 or (self.batch and len(self.rows) != 1):
            result = result.reshape(*result.shape[: len(self.batch)], *length, *width)
        return _permuted(result, (*self.batch, *self.rows, *self.columns), self.out)

    def _each(self, first: Tensor, right: Tensor) -> Tensor:
        """As one product for each matrix of a weight."""
        second = _permuted(right, self.right, (*self.batch, *self.summed, *self.columns))
        width = second.shape[second.ndim - len(self.columns) :]
        second = _joined(_joined(second, len(self.columns)), len(self.summed), behind=1)
        if not self.rows:
            first = first.unsqueeze(-2)
        result = _stacked(first, second, len(self.batch))
        result = result if self.rows else result.squeeze(-2)
        if len(self.columns) != 1:
            result = result.reshape(*result.shape[:-1], *width)
        return _permuted(result, (*self.batch, *self.rows, *self.columns), self.out)


def _stacked(first: Tensor, second: Tensor, axes: int) -> Tensor:
    """The products of the matrices of `second` and what of `first` has their place on this many
    axes, stacked."""
    if not axes:
        return torch.matmul(first, second)
    return torch.stack([_stacked(first[at], second[at], axes - 1) for at in range(second.shape[0])])


def einsum(args: tuple[Any, ...], kwargs: Any) -> Callable[..., Tensor] | None:
    """torch.einsum as one matrix product; None where it is none of two factors."""
    equation, *factors = args
    if len(factors) == 1 and isinstance(factors[0], (list, tuple)):
        factors = list(factors[0])
    if len(factors) != 2 or not isinstance(equation, str):
        return None
    first, second = factors
    labels = _read(equation, (first.ndim, second.ndim))
    found = None if labels is None else _contraction(first, second, *labels)
    if found is None:
        return None
    product, swapped = found
    return lambda *args, **kwargs: product.of(*((second, first) if swapped else (first, second)))


def tensordot(args: tuple[Any, ...], kwargs: Any) -> Callable[..., Tensor] | None:
    """torch.tensordot as one matrix product; None where it is none."""
    first, second = args[:2]
    dims = args[2] if len(args) > 2 else kwargs.get("dims", 2)
    if isinstance(dims, Tensor):
        dims = dims.tolist()
    if isinstance(dims, int):
        pairs = [(first.ndim - dims + i, i) for i in range(dims)]
    else:
        pairs = list(zip(*dims, strict=True))
    left = [f"a{axis}" for axis in range(first.ndim)]
    right = [f"b{axis}" for axis in range(second.ndim)]
    for at, of in pairs:
        right[of] = left[at]
    out = [each for each in (*left, *right) if (each in left) != (each in right)]
    return _in_order(first, second, left, right, out)


def inner(args: tuple[Any, ...], kwargs: Any) -> Callable[..., Tensor] | None:
    """torch.inner as one matrix product; None where it is none."""
    first, second = args[0], args[1] if len(args) > 1 else kwargs["other"]
    left = [f"a{axis}" for axis in range(first.ndim)]
    right = [f"b{axis}" for axis in range(second.ndim)]
    if not (left and right):
        return None
    right[-1] = left[-1]
    return _in_order(first, second, left, right, [*left[:-1], *right[:-1]])


def bilinear(args: tuple[Any, ...], kwargs: Any) -> Callable[..., Tensor]:
    """F.bilinear, y_k = x1 A_k x2, as the linear layer that multiplies x1 by all of A; what it puts
    out is weighted by x2 and summed."""
    return _bilinear


def _bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out, given, other = weight.shape
    rows = F.linear(input1, weight.transpose(1, 2).reshape(out * other, given))
    result = (rows.unflatten(-1, (out, other)) * input2.unsqueeze(-2)).sum(-1)
    return result if bias is None else result + bias


def _read(equation: str, ranks: tuple[int, int]) -> tuple[_Labels, _Labels, _Labels] | None:
    """An einsum's axes: of its two factors, of what it puts out. An ellipsis stands for as many as
    its factor has left, the last of which are the same in both."""
    terms, arrow, told = equation.replace(" ", "").partition("->")
    if terms.count(",") != 1:
        return None
    named = [term.replace("...", ".") for term in terms.split(",")]
    open_axes = [rank - len(term.replace(".", "")) for term, rank in zip(named, ranks, strict=True)]
    most = max((n for term, n in zip(named, open_axes, strict=True) if "." in term), default=0)

    def axes(term: str, count: int) -> _Labels:
        ellipsis = tuple(f"...{i}" for i in range(most - count, most))
        return tuple(label for each in term for label in (ellipsis if each == "." else (each,)))

    left, right = (axes(term, count) for term, count in zip(named, open_axes, strict=True))
    if arrow:
        return left, right, axes(told.replace("...", "."), most)
    # What is written once is put out, in the alphabet's order.
    once = sorted(n for n, count in Counter((*named[0], *named[1])).items() if count == 1)
    return left, right, axes("".join((".", *(n for n in once if n != "."))), most)


def _contraction(
    first: Tensor, second: Tensor, left: _Labels, right: _Labels, out: _Labels
) -> tuple[_Contraction, bool] | None:
    """The product, and whether its factors are exchanged: the first is the one whose rows are put
    out first. None where nothing is summed, or something else is done besides."""
    shared = set(left) & set(right)
    summed = tuple(each for each in left if each in shared and each not in out)
    alone = (set(left) ^ set(right)) - set(out)
    repeated = len(set(left)) < len(left) or len(set(right)) < len(right)
    lengths = dict(zip(left, first.shape, strict=True))
    uneven = any(
        lengths[each] != length
        for each, length in zip(right, second.shape, strict=True)
        if each in summed
    )
    if not summed or alone or repeated or uneven or len(set(out)) < len(out):
        return None
    batch = tuple(each for each in out if each in shared)
    free = [each for each in out if each not in shared]
    swapped = bool(free) and free[0] in right
    weighted = [isinstance(each, nn.Parameter) for each in (first, second)]
    if free and weighted[0] != weighted[1]:
        # A layer's weight is its second factor.
        swapped = weighted[0]
    if swapped:
        left, right = right, left
    rows = tuple(each for each in free if each in left)
    columns = tuple(each for each in free if each in right)
    if not (rows or columns):
        return None
    return _Contraction(left, right, batch, rows, summed, columns, out), swapped


def _in_order(
    first: Tensor, second: Tensor, left: Sequence[str], right: Sequence[str], out: Sequence[str]
) -> Callable[..., Tensor] | None:
    contraction = _contraction(first, second, tuple(left), tuple(right), tuple(out))
    if contraction is None:
        return None
    product, swapped = contraction
    factors = (second, first) if swapped else (first, second)
    return lambda *args, **kwargs: product.of(*factors)


def _permuted(tensor: Tensor, axes: _Labels, order: _Labels) -> Tensor:
    return tensor if axes == order else tensor.permute([axes.index(each) for each in order])


def _joined(tensor: Tensor, count: int, behind: int = 0) -> Tensor:
    """The last axes, but for those `behind`, as one; a new one for none."""
    if count == 1:
        return tensor
    end = tensor.ndim - behind
    kept, joined = tensor.shape[: end - count], tensor.shape[end - count : end]
    return tensor.reshape(*kept, math.prod(joined), *tensor.shape[end:])
