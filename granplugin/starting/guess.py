"""What forward can be run with, where no data tell: the usual shapes of what its first layer reads."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from granplugin.errors import RecipeError, UserError
from granplugin.network.forward import call
from granplugin.starting.sample_shapes import Guess

_SIDES = (224, 32, 28, 64, 256, 299, 640)
_LENGTHS = (16_000, 1024, 128)
_TOKENS = 16


def guess_of(
    model: nn.Module, names: Sequence[str], told: Mapping[str, tuple[int, ...]]
) -> Guess | None:
    """Shapes and types of one sample with which forward runs; None where none of the usual does."""
    arguments = inspect.signature(model.forward).parameters.values()
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    # Where forward takes any keyword besides, `names` is empty; those it names are its arguments.
    any_name = not names
    names = names or [each.name for each in arguments if each.kind not in kinds]
    unknown = [name for name in told if name not in names]
    if unknown and not any_name:
        raise RecipeError(
            f"--shape {unknown[0]}: forward has no such argument; it has {', '.join(names)}"
        )
    required = [
        name
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.default is parameter.empty and name in names
    ] or list(names[:1])
    required += [name for name in told if name not in required]
    for candidate in _candidates(model, required, told):
        batch = {
            name: torch.zeros((2, *shape), dtype=torch.int64)
            if kind == "int64"
            else torch.randn((2, *shape))
            for name, (shape, kind) in candidate.items()
        }
        try:
            call(model, batch)
        except UserError:
            continue
        return candidate
    return None


def _candidates(
    model: nn.Module, required: Sequence[str], told: Mapping[str, tuple[int, ...]]
) -> list[Guess]:
    words = any("ids" in name or "token" in name for name in required)
    if told:
        kinds = ("int64", "float32") if words else ("float32", "int64")
        return [{n: (told[n], kind) for n in required if n in told} for kind in kinds]
    shapes: list[tuple[tuple[int, ...], str]] = []
    for module in model.modules():
        match module:
            case nn.Conv2d():
                shapes = [((module.in_channels, side, side), "float32") for side in _SIDES]
            case nn.Conv1d():
                shapes = [((module.in_channels, length), "float32") for length in _LENGTHS]
                shapes += [((length,), "float32") for length in _LENGTHS]
            case nn.Conv3d():
                shapes = [((module.in_channels, 8, 112, 112), "float32")]
            case nn.Linear():
                inside = module.in_features
                shapes = [((inside,), "float32"), ((_TOKENS, inside), "float32")]
            case nn.Embedding():
                shapes = [((_TOKENS,), "int64")]
            case _:
                continue
        break
    if words:
        shapes = [((_TOKENS,), "int64")]
    return [dict.fromkeys(required, each) for each in shapes]
