"""Inputs inside one another: named by path in batches and files, given to forward as it takes them."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

_CACHE = "transformers.cache_utils.Cache"


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Values by path as arguments: numbers in a path count a tuple's parts, names are keys.

    >>> nested({"ids": 1, "past.0.key": 2, "past.1.key": 3})
    {'ids': 1, 'past': ({'key': 2}, {'key': 3})}
    """
    whole: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for path, value in flat.items():
        name, dot, rest = path.partition(".")
        whole[name] = value
        if dot:
            parts.setdefault(name, {})[rest] = value
    return whole | {name: _numbered(nested(each)) for name, each in parts.items()}


def _numbered(parts: dict[str, Any]) -> dict[str, Any] | tuple[Any, ...]:
    if all(key.isdecimal() for key in parts):
        return tuple(parts[key] for key in sorted(parts, key=int))
    return parts


def hold_inputs(model: nn.Module) -> None:
    """Let the model be called with tuples and dicts where its forward is annotated to take a
    dataclass, or a cache of transformers: each call makes these. Any other is left as it is."""
    made = {name: how for name, kind in _annotated(model).items() if (how := _maker(kind))}
    if made:
        model.register_forward_pre_hook(partial(_held, made), with_kwargs=True)


def _held(
    made: Mapping[str, Callable[[Any], Any]],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def held(name: str, value: Any) -> Any:
        return made[name](value) if name in made and isinstance(value, (tuple, dict)) else value

    names = inspect.signature(module.forward).parameters
    positional = tuple(held(name, value) for name, value in zip(names, args, strict=False))
    return positional, {name: held(name, value) for name, value in kwargs.items()}


def _annotated(model: nn.Module) -> dict[str, Any]:
    """Argument of forward -> its annotation; none where these cannot be read."""
    try:
        return typing.get_type_hints(model.forward)
    except Exception:  # an annotation is an expression of the user's, of names that may be gone
        return {}


def _maker(annotation: Any) -> Callable[[Any], Any] | None:
    """What makes a value of this kind out of its parts; None where a tuple or dict is one."""
    for kind in typing.get_args(annotation) or (annotation,):
        if not isinstance(kind, type):
            continue
        if dataclasses.is_dataclass(kind):
            return partial(_of_fields, kind)
        if f"{kind.__module__}.{kind.__name__}" == _CACHE:
            # Each layer's keys and values.
            return sys.modules[kind.__module__].DynamicCache
    return None


def _of_fields(kind: type, parts: Any) -> Any:
    return kind(**parts) if isinstance(parts, dict) else kind(*parts)
