"""Where networks come from: SOURCES has one entry for each kind, imported when it is asked for.

A kind is a key of the recipe's section `model`, and a class with what `protocol.Network` lists; a
new one is such a key, such a class and one entry here.
"""

from __future__ import annotations

from importlib import import_module

from granplugin.recipe.loaded import Loaded
from granplugin.recipe.model import ModelSpec
from granplugin.sources.protocol import Network

SOURCES = {"callable": "granplugin.sources.torch_network:TorchNetwork"}


def kind_of(spec: ModelSpec) -> str:
    """The key of the section `model` that says where the network comes from."""
    return next(kind for kind in SOURCES if getattr(spec, kind, None) is not None)


def open_network(loaded: Loaded) -> Network:
    """The network of a recipe. Raises ModelError, at the recipe's line, where there is none."""
    module, _, name = SOURCES[kind_of(loaded.recipe.model)].partition(":")
    return getattr(import_module(module), name).open(loaded)
