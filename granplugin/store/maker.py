"""What made a content, as a part of its key: the code, by its text, and the libraries' versions."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGE = __name__.partition(".")[0]
_IMPORT = re.compile(
    rf"^[ \t]*(?:from ({_PACKAGE}[\w.]*) import (\([^)]*\)|.*)|import ({_PACKAGE}[\w.]*))",
    re.MULTILINE,
)
"""An import of a module of this package: of names from one, or of the module. A search for text:
parsing would take a second."""


@cache
def made_by(*modules: str, libraries: tuple[str, ...] = ()) -> str:
    """A hash of the text of these modules and of all modules of the package that they import,
    directly or not, with the names and versions of these distributions.

    A module is named as it is imported; nothing is imported here. What a module opens by a name
    that it computes (a backend) is named by the caller. Raises ValueError for a module that is not
    there.

    >>> made_by("granplugin.suggest") == made_by("granplugin.suggest", libraries=("numpy",))
    False
    """
    versions = [version_of(library) for library in libraries]
    parts = (*sorted(f"{m} {_digest(m)}" for m in reached(modules)), *versions)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


def version_of(distribution: str) -> str:
    """Its name and version; "" where there is no distribution of this name."""
    try:
        return f"{distribution} {importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return ""


def reached(modules: Iterable[str]) -> set[str]:
    """These modules, and those of the package that they import, directly or not.

    The package itself is none of them: what it imports are its public names, on first use.
    """
    found: set[str] = set()
    queue = list(modules)
    if missing := [module for module in queue if _file(module) is None]:
        raise ValueError(f"{', '.join(missing)}: no such module")
    while queue:
        module = queue.pop()
        if module == _PACKAGE or module in found or _file(module) is None:
            continue
        found.add(module)
        queue += [module.rpartition(".")[0], *_imports(module)]
    return found


@cache
def _file(module: str) -> Path | None:
    path = _ROOT.joinpath(*module.split("."))
    files = (path.with_name(f"{path.name}.py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


@cache
def _text(module: str) -> str:
    file = _file(module)
    return file.read_text(encoding="utf-8") if file else ""


@cache
def _digest(module: str) -> str:
    return hashlib.sha256(_text(module).encode()).hexdigest()


@cache
def _imports(module: str) -> tuple[str, ...]:
    """What it imports of the package; a name of a module may be a module of a package."""
    found = []
    for whose, names, itself in _IMPORT.findall(_text(module)):
        found += [itself] if itself else [whose]
        found += [f"{whose}.{name}" for name in re.findall(r"\w+", names)]
    return tuple(found)
