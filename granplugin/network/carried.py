"""What of a model's outputs a file cannot hold, and the way out."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from granplugin.errors import ModelError


def check_carried(outputs: Mapping[str, Tensor], inputs: Collection[str]) -> None:
    """Raises ModelError for an output with an input's name, of complex numbers, or without strides:
    it names the output."""
    for name, tensor in outputs.items():
        if name in inputs:
            raise ModelError(
                f"output {name!r} has the name of an input, and in a file each tensor has a name of "
                "its own: put it out under another key"
            )
        if tensor.is_complex():
            raise ModelError(
                f"output {name!r} is complex, for which ONNX has no operators: put out "
                "torch.view_as_real of it"
            )
        if tensor.layout != torch.strided or tensor.is_nested:
            kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            raise ModelError(
                f"output {name!r} is a {kind} tensor, which no ONNX file holds: put out a dense one"
            )
