"""What builds and runs engines: one module for each of engines.ENGINES, imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

from granplugin.backends.base import Backend, Engine, LayerPrecision, Runner
from granplugin.engines import ENGINES
from granplugin.errors import EngineError
from granplugin.suggest import did_you_mean

__all__ = ["Backend", "Engine", "LayerPrecision", "Runner", "load"]


def load(name: str) -> Backend:
    """The backend's module, whether or not its library is installed (`unavailable` says).

    Raises EngineError for a name that is not in ENGINES.
    """
    if name not in ENGINES:
        raise EngineError(f"unknown engine {name!r}{did_you_mean(name, ENGINES)}")
    return import_module(ENGINES[name].backend)
