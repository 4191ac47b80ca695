"""What builds and runs engines: one class for each of engines.ENGINES, imported when asked for."""

from __future__ import annotations

from functools import cache
from pkgutil import resolve_name

from granplugin.backends.base import Backend
from granplugin.engines import ENGINES
from granplugin.errors import EngineError
from granplugin.suggest import did_you_mean

__all__ = ["Backend", "backend_of"]


@cache
def backend_of(name: str) -> Backend:
    """The backend, whether or not its library is installed (`unavailable` says).

    Raises EngineError for a name that is not in ENGINES.
    """
    if name not in ENGINES:
        raise EngineError(f"unknown engine {name!r}{did_you_mean(name, ENGINES)}")
    return resolve_name(ENGINES[name].backend)(ENGINES[name])
