"""What a call of a torch function is to the flow of values: its tensors, and whether it adds, joins,
copies or multiplies them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch as functorch

from granplugin.network.flow import Kind

IN_PLACE_ADDS = frozenset({"add_", "__iadd__"})
ADDS = IN_PLACE_ADDS | {"add", "__add__", "__radd__"}
_SOFTMAX = frozenset({"softmax", "_softmax", "_safe_softmax"})
_CONCATS = frozenset({"cat", "concat", "concatenate"})
_NOTHING_DONE = frozenset(
    "dropout dropout1d dropout2d dropout3d alpha_dropout clone contiguous detach".split()
)

SHAPE_READERS = frozenset(
    "zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty".split()
)
"""They take no number of the tensor that they are given."""
_CHOICES = frozenset("topk argmax argsort sort".split())
_MOVES = frozenset(
    "view reshape flatten unflatten permute transpose swapaxes swapdims movedim squeeze unsqueeze "
    "split chunk narrow select unbind __getitem__ __get__ t".split()
)
# Functions of one data tensor that are a layer all the same.
_PRODUCTS = frozenset(
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution "
    "conv_tbc bilinear matmul __matmul__ __rmatmul__ mm bmm addmm addbmm baddbmm mv addmv einsum "
    "tensordot embedding embedding_bag multi_head_attention_forward _native_multi_head_attention "
    "scaled_dot_product_attention lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell "
    "rnn_relu_cell".split()
)


def name_of(function: Any) -> str:
    """A torch function's name, of an overload its operator's (matmul.default); "" where it has
    none."""
    name: str = getattr(function, "__name__", "")
    return name.partition(".")[0]


def storage_of(tensor: Tensor) -> int:
    """The number of the memory that a tensor is a view of; one without any is its own."""
    while in_vmap(tensor):
        tensor = functorch.get_unwrapped(tensor)
    try:
        return tensor.untyped_storage()._cdata
    except NotImplementedError:  # sparse
        return id(tensor)


def in_vmap(tensor: Tensor) -> bool:
    """Whether this stands for one of several tensors that torch.vmap computes with together."""
    return bool(functorch.is_batchedtensor(tensor))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))


def addends(
    function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Tensor, Tensor] | None:
    """The two tensors that this call adds, or None for a call that adds no two tensors."""
    if name_of(function) not in ADDS or kwargs.get("alpha", 1) != 1:
        return None
    return _two_tensors(args, kwargs)


def _two_tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    given = [*args, *(kwargs[key] for key in ("input", "other") if key in kwargs)]
    if len(given) != 2 or not all(isinstance(operand, Tensor) for operand in given):
        return None
    return given[0], given[1]


def scaled_sum(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[..., Tensor] | None:
    """torch.add with an alpha as a product and a sum, which it is in files; None without one."""
    scaled = kwargs.get("alpha", 1) != 1 and _two_tensors(args, kwargs)
    return _scaled_sum if scaled else None


def scaled_sum_in_place(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[..., Tensor] | None:
    """Tensor.add_ with an alpha, as scaled_sum."""
    scaled = kwargs.get("alpha", 1) != 1 and _two_tensors(args, kwargs)
    return _scaled_sum_in_place if scaled else None


def _scaled_sum(input: Tensor, other: Tensor, *, alpha: float, **more: Any) -> Tensor:
    return torch.add(input, other * alpha, **more)


def _scaled_sum_in_place(input: Tensor, other: Tensor, *, alpha: float) -> Tensor:
    return input.add_(other * alpha)


def kind_of(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Kind:
    """What this call is to the flow of values."""
    name = name_of(function)
    if addends(function, args, kwargs):
        return "add"
    if name in _CONCATS:
        return "concat"
    if name in _PRODUCTS:
        return "product"
    if name in _SOFTMAX:
        return "softmax"
    if name in _CHOICES:
        return "choice"
    if name in _MOVES:
        return "move"
    pads = [*args[1:2], *(kwargs[key] for key in ("pad",) if key in kwargs)]
    unpadded = name == "pad" and pads and not any(pads[0])
    return "copy" if unpadded or name in _NOTHING_DONE else "other"
