"""Where networks come from: a class for each kind of the recipe's section `model`, which names it.

A new kind is such a section (granplugin.recipe.model.MODELS), a class with what `protocol.Network`
lists, and the one that runs it for an analysis.
"""

from __future__ import annotations

from importlib import import_module

from granplugin.recipe.loaded import Loaded
from granplugin.recipe.model import CallableModel, kind_of
from granplugin.sources.protocol import Network


def open_network(loaded: Loaded) -> Network:
    """The network of a recipe. Raises ModelError, at the recipe's line, where there is none."""
    module, _, name = loaded.recipe.model.opened_by.partition(":")
    network: type[Network] = getattr(import_module(module), name)
    return network.open(loaded)


def check_torch(loaded: Loaded, what: str) -> None:
    """Raises RecipeError, at the recipe's line, where the network is no torch model, and so not
    what `what` takes."""
    model = loaded.recipe.model
    if not isinstance(model, CallableModel):
        kind = kind_of(model)
        raise loaded.error(
            ("model", kind),
            f"{what} takes a torch model, and {kind}: names none; name the model with callable:",
        )
