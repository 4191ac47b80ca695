"""The section `model`: where the network comes from."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from granplugin.recipe.strict import Callable, File, Strict


class ModelSpec(Strict):
    """Where the network comes from."""

    callable: Callable = Field(description="Returns the torch.nn.Module.")
    args: dict[str, Any] = Field(default={}, description="Keyword arguments of the callable.")
    weights: File | None = Field(
        default=None, description="A safetensors file, or a torch file (weights only)."
    )
