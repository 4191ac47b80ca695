"""Where networks come from: SOURCES has one entry for each kind, imported when it is asked for.

A kind is a key of the recipe's section `model`, and a class with what `protocol.Network` lists, or
`protocol.Described` where it cannot be run; a new one is such a key, such a class and one entry.
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
    """The network of a recipe; where it does not run, what protocol.Described lists. Raises
    ModelError, at the recipe's line, where there is none."""
    return _source(loaded).open(loaded)


def check_runs(loaded: Loaded, verb: str) -> None:
    """Raises RecipeError, at the recipe's line, where this kind of network cannot be run."""
    if not _source(loaded).runs:
        kind = kind_of(loaded.recipe.model)
        raise loaded.error(
            ("model", kind),
            f"{verb} runs the network, and what {kind}: names is only planned and inspected "
            "(granplugin plan, granplugin inspect); to run it, name the torch model with callable:",
        )


def _source(loaded: Loaded) -> Any:
    module, _, name = SOURCES[kind_of(loaded.recipe.model)].partition(":")
    return getattr(import_module(module), name)
