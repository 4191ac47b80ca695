"""Functions that hide their products and sums: each as those, under their own names, that it is made
of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional as F

from granplugin.network.attention import multi_head, scaled_dot_product
from granplugin.network.contractions import bilinear, einsum, inner, tensordot
from granplugin.network.experts import grouped, stacked
from granplugin.network.lookups import embedding_bag
from granplugin.network.torch_calls import name_of, scaled_sum, scaled_sum_in_place

_Open = Callable[[tuple[Any, ...], Mapping[str, Any]], Callable[..., Any] | None]
_OPEN: dict[Any, _Open] = {
    F.multi_head_attention_forward: multi_head,
    F.scaled_dot_product_attention: scaled_dot_product,
    torch.einsum: einsum,
    torch.tensordot: tensordot,
    torch.inner: inner,
    torch.bilinear: bilinear,
    F.embedding_bag: embedding_bag,
}
_OPEN_BY_NAME: dict[str, _Open] = {
    **dict.fromkeys(("grouped_mm", "_grouped_mm", "grouped_mm_fallback"), grouped),
    **dict.fromkeys(("bmm", "mm", "matmul", "__matmul__", "linalg_matmul"), stacked),
    "add": scaled_sum,
    "add_": scaled_sum_in_place,
}
"""What stands in for one that is not there, or is not on this device, has its name; so have a
function, a method and an operator."""


def opened(
    function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[..., Any] | None:
    """A function of the same results as this one, which calls others for its products: to quantize
    their operands takes a mode that is on while it runs. None for a function that hides none, or
    does something else besides."""
    try:
        found = _OPEN.get(function)
    except TypeError:  # no hash
        return None
    found = found or _OPEN_BY_NAME.get(name_of(function))
    return None if found is None else found(args, kwargs)
