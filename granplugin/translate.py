"""Another library's errors as ours: translated where the library is called, and kept as the cause."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

from granplugin.errors import EngineError, LackError, UserError
from granplugin.machine import lacking


def load_library(package: str) -> ModuleType:
    """Import it. Raises EngineError where it is installed and does not load."""
    with translated(f"{package} cannot be loaded", (ImportError, OSError, RuntimeError)):
        return import_module(package)


def errors_of(*modules: ModuleType) -> tuple[type[Exception], ...]:
    """All that calls of a library may raise: every exception class of these modules, which need
    have no base in common, and what bindings make of C++'s exceptions."""
    own = (each for module in modules for each in vars(module).values())
    classes = [each for each in own if isinstance(each, type) and issubclass(each, Exception)]
    return (*dict.fromkeys(classes), RuntimeError, ValueError, MemoryError)


@contextmanager
def translated(
    said: str, errors: tuple[type[Exception], ...], error: type[UserError] = EngineError
) -> Iterator[None]:
    """A library's error as EngineError, or another of ours: `said` and the library's message on
    one line, itself the cause. What the machine lacks is no fault of what the library was given:
    LackError."""
    try:
        yield
    except errors as err:
        if lack := lacking(err):
            raise LackError(f"{said}: {one_line(err) if str(err) else lack}") from err
        raise error(f"{said}: {one_line(err)}") from err


def one_line(err: Exception) -> str:
    """A library's message on one line of at most 300 characters; its type where it has none."""
    lines = (line.strip() for line in str(err).splitlines())
    told = " ".join(line for line in lines if not line.startswith(("Exception from", "Check '")))
    return textwrap.shorten(told or str(err) or type(err).__name__, 300, placeholder=" ...")
