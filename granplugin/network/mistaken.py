"""What is probably wrong with an input that a forward does not take: what it wants, what it got."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_CHANNELS = re.compile(r"expected input\[([\d, ]+)\] to have (\d+) channels, but got (\d+)")
_PRODUCT = re.compile(r"shapes cannot be multiplied \((\d+)x(\d+) and (\d+)x\d+\)")
_FEATURES = re.compile(r"input_size\. Expected (\d+), got (\d+)")
_FLAT = re.compile(r"Expected \dD \(unbatched\) or \dD \(batched\) input to conv")


def mistaken(given: Mapping[str, Tensor], said: str) -> str:
    """What to change in the inputs, behind a semicolon, by what torch `said`; empty where that does
    not tell."""
    for name, tensor in given.items():
        told = _shape(name, tuple(tensor.shape), said) or _kind(name, tensor, said)
        if told:
            return f"; {told}"
    if "Double" in said or "double" in said:
        return (
            "; data are float32, and something in the model is float64: load it as float32 "
            "(model.float())"
        )
    return ""


def _shape(name: str, shape: tuple[int, ...], said: str) -> str | None:
    if found := _CHANNELS.search(said):
        seen = tuple(map(int, found[1].split(", ")))
        return _channels(name, shape, seen, int(found[2]), int(found[3]))
    if "expected 4D input (got 3D input)" in said and len(shape) == 3:
        return (
            f"{name} has 3 axes, and forward takes (samples, channels, height, width): give one "
            "image as a batch of one"
        )
    if _FLAT.search(said) and len(shape) == 2:
        return f"{name} is flat: a sample is to have channels and places, not {shape[1]} values"
    if found := _PRODUCT.search(said):
        return _product(name, shape, int(found[2]), int(found[3]))
    if (found := _FEATURES.search(said)) and int(found[1]) in shape[1:-1]:
        return (
            f"the {found[1]} features of {name} come on axis {shape.index(int(found[1]))}, not last"
        )
    return None


def _channels(
    name: str, shape: tuple[int, ...], seen: tuple[int, ...], wanted: int, got: int
) -> str | None:
    if seen == (1, *shape):
        return (
            f"{name} has {len(shape)} axes: one is missing, of the {wanted} channels on axis 1 (as "
            "x[:, None]) or of samples"
        )
    if seen != shape:
        return None
    if shape[-1] == wanted:
        return f"the channels of {name} come last, and torch takes them on axis 1"
    if (wanted, got) == (3, 1):
        return f"{name} is gray, and forward takes 3 colours: repeat the channel, as in training"
    if (wanted, got) == (1, 3):
        return (
            f"{name} has 3 colours, and forward takes one channel: make gray of them as in training "
            "(grayscale: true, of a folder of images)"
        )
    if (wanted, got) == (3, 4):
        return f"{name} has 4 channels, and forward takes 3: leave the alpha channel out"
    return f"{name} has {got} channels on axis 1, and forward takes {wanted}"


def _product(name: str, shape: tuple[int, ...], got: int, wanted: int) -> str | None:
    values = torch.Size(shape[1:]).numel()
    if values == wanted and len(shape) > 2:
        return (
            f"a sample of {name} is {list(shape[1:])}, and forward takes its {wanted} values flat"
        )
    if shape[-1] == got:
        return f"{name} has {got} features on its last axis, and forward takes {wanted}"
    if len(shape) == 4:
        return f"{name} is {shape[2]}x{shape[3]}: the model may be made for another size"
    return None


def _kind(name: str, tensor: Tensor, said: str) -> str | None:
    whole = not tensor.is_floating_point()
    if "'indices'" in said and tensor.dtype not in (torch.int64, torch.int32):
        return f"{name} is to be whole numbers, int64, as of tokens or classes"
    if "index out of range" in said and whole and tensor.numel():
        return f"{name} holds {int(tensor.min())} to {int(tensor.max())}: one is in no table"
    if whole and re.search(r"same dtype|should be the same|expected .*scalar type", said):
        if tensor.dtype == torch.uint8:
            return (
                f"{name} is in 0..255: make floats of it as in training, in the data or in forward"
            )
        return f"{name} is {str(tensor.dtype).removeprefix('torch.')}, and forward takes floats"
    return None
