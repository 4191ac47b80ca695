"""Calls of functions that multiply two tensors: which, and how a layer has their operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F

from granplugin.network.raised import passed_on
from granplugin.network.torch_calls import in_vmap, name_of
from granplugin.quant.site import Operand


class _Argument(NamedTuple):
    """Where a function takes a tensor: by position, or by this keyword."""

    position: int
    keyword: str

    def of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], default: Any = None) -> Any:
        if self.position < len(args):
            return args[self.position]
        return kwargs.get(self.keyword, default)

    def put(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with this one changed."""
        if self.position < len(args):
            return (*args[: self.position], value, *args[self.position + 1 :]), dict(kwargs)
        return args, {**kwargs, self.keyword: value}


class _Form(NamedTuple):
    """How a function takes its factors. `weighted` is the type of the layer that it is with a
    weight as its second; a `reversed` one takes the weight of a linear layer as (in, out)."""

    weighted: str
    first: _Argument
    second: _Argument
    reversed: bool = False
    bias: _Argument | None = None
    groups: _Argument | None = None


_INPUT, _WEIGHT, _BIAS = _Argument(0, "input"), _Argument(1, "weight"), _Argument(2, "bias")
_GROUPS = _Argument(6, "groups")
_MAX_NORM = _Argument(3, "max_norm")
_MATRIX = _Argument(1, "mat2")
_FORMS: dict[str, _Form] = {
    **{
        f"{name}{rank}d": _Form(f"{type}{rank}d", _INPUT, _WEIGHT, False, _BIAS, _GROUPS)
        for name, type in (("conv", "Conv"), ("conv_transpose", "ConvTranspose"))
        for rank in (1, 2, 3)
    },
    "linear": _Form("Linear", _INPUT, _WEIGHT, False, _BIAS),
    "embedding": _Form("Embedding", _INPUT, _WEIGHT),
    "matmul": _Form("Linear", _INPUT, _Argument(1, "other"), True),
    "mm": _Form("Linear", _INPUT, _MATRIX, True),
    "bmm": _Form("Linear", _INPUT, _MATRIX, True),
    "mv": _Form("Linear", _INPUT, _Argument(1, "vec"), True),
    "addmv": _Form("Linear", _Argument(1, "mat"), _Argument(2, "vec"), True),
    "addmm": _Form("Linear", _Argument(1, "mat1"), _Argument(2, "mat2"), True),
    "baddbmm": _Form("Linear", _Argument(1, "batch1"), _Argument(2, "batch2"), True),
}
_FORMS["linalg_matmul"] = _FORMS["matmul"]
# It is called on the second factor.
_FORMS["rmatmul"] = _Form("Linear", _Argument(1, "other"), _INPUT, True)
_CALLED = {"linalg_matmul": "matmul", "rmatmul": "matmul"}
"""Function -> what it is called in a layer's name."""


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """One call of a function that multiplies its `first` by its `second`. `name` is the function's
    without underscores: conv2d, matmul."""

    name: str
    form: _Form
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def first(self) -> Tensor:
        found: Tensor = self.form.first.of(self.args, self.kwargs)
        return found

    @property
    def second(self) -> Tensor:
        found: Tensor = self.form.second.of(self.args, self.kwargs)
        return found

    @property
    def bias(self) -> Tensor | None:
        found: Tensor | None = self.form.bias.of(self.args, self.kwargs) if self.form.bias else None
        return found

    @property
    def groups(self) -> int:
        return int(self.form.groups.of(self.args, self.kwargs, 1)) if self.form.groups else 1

    def type(self, weighted: bool) -> str:
        """That of the layer it is, with a weight as its second factor or an activation."""
        return self.form.weighted if weighted else "MatMul"

    def laid(self, second: Tensor, operand: Operand) -> Tensor:
        """The second factor as a layer has it: a linear layer's weight is (out, in), and what two
        activations are multiplied as is (in, out). Its own inverse."""
        linear = self.form.weighted == "Linear" and second.ndim > 1
        return second.mT if linear and self.form.reversed == (operand == "weight") else second

    def unusable(self, weighted: bool) -> str | None:
        """Why no engine can be told to quantize it, or None."""
        first, second = self.first, self.second
        if self.form.weighted == "Embedding":
            return _unusable_lookup(self, weighted)
        if first.is_complex() or second.is_complex():
            return "it multiplies complex numbers"
        if not first.is_floating_point():
            return "it multiplies integers"
        if self.form.weighted != "Linear":
            return None if weighted else "its filter is computed from the data"
        if min(first.ndim, second.ndim) < 2:
            return "it multiplies a vector"
        if weighted and second.ndim != 2:
            return f"its weight has {second.ndim} axes, and a linear layer's has 2"
        return None

    def with_weight(self, weight: Tensor, bias: Tensor) -> Product:
        """The call with these for its second factor, as a layer has it, and its bias. Requires a
        function that takes a bias."""
        assert self.form.bias is not None, f"{self.name} takes a bias"
        second = self.laid(weight, "weight")
        args, kwargs = self.form.second.put(self.args, self.kwargs, second)
        args, kwargs = self.form.bias.put(args, kwargs, bias)
        return replace(self, args=args, kwargs=kwargs)

    def alone(self, first: Tensor, weight: Tensor) -> Tensor:
        """The product with these for its factors, a weight as a layer has it, and with nothing added
        to it."""
        if self.form.weighted == "Linear":
            return F.linear(first, weight)
        bare = replace(self, kwargs={**self.kwargs, "bias": None})
        if self.form.bias is not None and self.form.bias.position < len(self.args):
            at = self.form.bias.position
            bare = replace(self, args=(*self.args[:at], None, *self.args[at + 1 :]))
        return bare.with_factors(first, weight)

    def with_factors(self, first: Tensor, second: Tensor) -> Tensor:
        """What the call puts out with these factors in place of its own."""
        args, kwargs = self.form.first.put(self.args, self.kwargs, first)
        args, kwargs = self.form.second.put(args, kwargs, second)
        result: Tensor = passed_on(self.function, args, kwargs)
        return result


def _unusable_lookup(product: Product, weighted: bool) -> str | None:
    if _MAX_NORM.of(product.args, product.kwargs) is not None:
        return "it changes its weight at each call (max_norm)"
    return None if weighted else "the rows it looks up are computed from the data"


def product_of(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Product | None:
    """What a call multiplies, or None where it is no product of two tensors."""
    name = name_of(function).strip("_")
    form = _FORMS.get(name)
    if form is None:
        return None
    factors = (form.first.of(args, kwargs), form.second.of(args, kwargs))
    if not all(isinstance(factor, Tensor) and not in_vmap(factor) for factor in factors):
        return None
    return Product(_CALLED.get(name, name), form, function, args, dict(kwargs))
