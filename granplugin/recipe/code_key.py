"""What a callable's result depends on: its file, those it imports, the versions of packages."""

from __future__ import annotations

import ast
import importlib.util
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from granplugin.recipe.strict import Target
from granplugin.store.keys import content_key, file_key
from granplugin.store.maker import version_of


def code_key(target: Target) -> str:
    """A hash of a callable's code.

    For a file: of it and of the files beside it that it imports, directly or not. For an installed
    module: of its file and the version of its distribution. Nothing is imported.
    """
    if target.path:
        facts = sorted(file_key(file) for file in code_files(target.path))
    else:
        module = target.module or ""
        file = _file_of(module)
        # A distribution of another name has no version here: its files' hashes have to do.
        facts = [*([file_key(file)] if file else []), version_of(package_of(module))]
    return content_key(target.name, *facts)


def package_of(module: str) -> str:
    """The top package that a module is in."""
    return module.partition(".")[0]


def _file_of(module: str) -> Path | None:
    """The file of an installed module; unlike importlib.util.find_spec, no package that it is in
    is imported."""
    spec: ModuleSpec | None = None
    name = ""
    for part in module.split("."):
        name = f"{name}.{part}".lstrip(".")
        if spec is None:
            spec = importlib.util.find_spec(name)
        else:
            spec = PathFinder.find_spec(name, spec.submodule_search_locations)
        if spec is None:
            return None
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None


def code_files(path: Path) -> list[Path]:
    """A file of code, and those beside it that it imports, directly or not."""
    return sorted(_with_neighbours(path), key=lambda file: (file != path, file))


def _with_neighbours(path: Path) -> set[Path]:
    found: set[Path] = set()
    queue = [path]
    while queue:
        file = queue.pop()
        if file in found or not file.is_file():
            continue
        found.add(file)
        try:
            nodes = list(ast.walk(ast.parse(file.read_bytes())))
        except SyntaxError:  # it can import nothing either
            continue
        for node in nodes:
            if isinstance(node, ast.Import):
                folder, names = path.parent, [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                folder = file.parents[node.level - 1] if node.level else path.parent
                names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
            else:
                continue
            for parts in (name.strip(".").split(".") for name in names):
                for depth in range(1, len(parts) + 1):
                    place = folder.joinpath(*parts[:depth])
                    queue += [place.with_name(f"{place.name}.py"), place / "__init__.py"]
    return found
