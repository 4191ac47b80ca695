"""A copy of a model that runs its own modules, also where forward is set on instances."""

from __future__ import annotations

import copy
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def copy_of(model: Model, *, sharing: bool = False) -> Model:
    """A deep copy, or one with the model's own parameters (`sharing`). A function that is some
    module's forward and holds modules of the model - in its closure, its defaults, or a partial's
    arguments - holds those of the copy."""
    # A recurrent layer holds this module, of which there is no copy.
    memo: dict[int, Any] = {id(torch._VF): torch._VF}
    if sharing:
        memo.update((id(parameter), parameter) for parameter in model.parameters())
    made = copy.deepcopy(model, memo)
    for module in model.modules():
        if "forward" in vars(module):
            memo[id(module)].forward = _rebound(vars(module)["forward"], memo)
    return made


def _rebound(value: Any, memo: dict[int, Any]) -> Any:
    """The value with modules of the copy: deepcopy leaves functions as they are."""
    if isinstance(value, partial):
        args = [_rebound(arg, memo) for arg in value.args]
        named = {key: _rebound(arg, memo) for key, arg in value.keywords.items()}
        return partial(_rebound(value.func, memo), *args, **named)
    if isinstance(value, MethodType):
        return MethodType(_rebound(value.__func__, memo), copy.deepcopy(value.__self__, memo))
    if isinstance(value, (nn.Module, list, tuple, dict)):
        return copy.deepcopy(value, memo)
    if not isinstance(value, FunctionType):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if not value.__closure__ and not value.__defaults__ and not value.__kwdefaults__:
        return value
    cells = tuple(CellType() for _ in value.__closure__ or ())
    made = FunctionType(value.__code__, value.__globals__, value.__name__, None, cells or None)
    memo[id(value)] = made  # a function may hold itself
    for cell, old in zip(cells, value.__closure__ or (), strict=True):
        if old != CellType():  # one that was never filled has no contents
            cell.cell_contents = _rebound(old.cell_contents, memo)
    if value.__defaults__:
        made.__defaults__ = tuple(_rebound(each, memo) for each in value.__defaults__)
    if value.__kwdefaults__:
        made.__kwdefaults__ = {k: _rebound(v, memo) for k, v in value.__kwdefaults__.items()}
    made.__dict__.update(value.__dict__)
    return made
