"""Where networks come from: SOURCES has one entry for each kind, imported when it is asked for.

A kind is a key of the recipe's section `model`, and a class with what `protocol.Network` lists; a
new one is such a key, such a class and one entry.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from granplugin.recipe.loaded import Loaded
from granplugin.recipe.model import kind_of
from granplugin.sources.protocol import Network

SOURCES = {
    "callable": "granplugin.sources.torch_network:TorchNetwork",
    "onnx": "granplugin.sources.onnx_network:OnnxNetwork",
}


def open_network(loaded: Loaded) -> Network:
    """The network of a recipe. Raises ModelError, at the recipe's line, where there is none."""
    return _source(loaded).open(loaded)


def check_torch(loaded: Loaded, what: str) -> None:
    """Raises RecipeError, at the recipe's line, where the network is no torch model, and so not
    what `what` takes."""
    kind = kind_of(loaded.recipe.model)
    if kind != "callable":
        raise loaded.error(
            ("model", kind),
            f"{what} takes a torch model, and {kind}: names none; name the model with callable:",
        )


def _source(loaded: Loaded) -> Any:
    module, _, name = SOURCES[kind_of(loaded.recipe.model)].partition(":")
    return getattr(import_module(module), name)
