"""The files that a recipe names: which must be there, and which lie outside its folder."""

from __future__ import annotations

from pathlib import Path

from granplugin.recipe.code_key import code_files
from granplugin.recipe.configs import LIBRARY
from granplugin.recipe.loaded import Loaded
from granplugin.recipe.paths import shown
from granplugin.recipe.strict import Strict, Target, paths_of
from granplugin.recipe.yaml_text import Location

_ROLES = ("calibration", "evaluation", "analysis")


def needed(loaded: Loaded, data: bool) -> list[tuple[Location, Path]]:
    """The files and folders that must be there, each with the key that names it; without `data`,
    but for those of its data."""
    recipe = loaded.recipe
    files: list[tuple[Location, Path | None]] = [
        (("evaluate",), recipe.evaluate.path if recipe.evaluate else None),
        (("statistics", "import"), recipe.statistics.import_),
    ]
    parts: list[tuple[Location, Strict | None]] = [(("model",), recipe.model)]
    for role in _ROLES if data and recipe.model.reads_data else ():
        parts.append((("data", role), getattr(recipe.data, role)))
    for at, part in parts:
        for key in paths_of(type(part)) if part is not None else ():
            given = getattr(part, key)
            given = given.path if isinstance(given, Target) else given
            files.append(((*at, key), given if isinstance(given, Path) else None))
    return [(at, file) for at, file in files if file is not None]


def named(loaded: Loaded) -> list[tuple[str, str, bool]]:
    """All that a recipe reads, runs or writes, its own text first: what it is (the key that names
    it), the file, and whether that lies outside the recipe's folder. The files that code imports
    from beside it are listed, installed modules by their name."""
    recipe, own = loaded.recipe, loaded.path.resolve()
    files = dict.fromkeys(mark.file for mark in loaded.document.marks.values())
    marked = (Path(file).resolve() for file in files if not file.startswith(f"{LIBRARY}/"))
    # What is read need not have a key left that none of those above it overrides.
    texts = dict.fromkeys((*loaded.document.files, *marked))
    found = [("recipe", own), *(("extends", text) for text in texts if text != own)]
    for at, file in needed(loaded, data=True):
        key = ".".join(map(str, at))
        code = code_files(file) if file.suffix == ".py" else [file]
        found += [(key, each) for each in code]
    modules = [
        (key, f"installed module {target.module}", False)
        for key, target in _targets(loaded)
        if target.module
    ]
    for key, written in (
        ("statistics.export", recipe.statistics.export),
        ("build.timing_cache", recipe.build.timing_cache),
    ):
        found += [(key, written)] if written else []
    found = [(key, file) for key, file in found if file.name and not file.name.startswith("--set")]
    folder = own.parent
    modules += [("base", f"installed {t}", False) for t in files if t.startswith(f"{LIBRARY}/")]
    return [
        *((key, shown(file), not file.resolve().is_relative_to(folder)) for key, file in found),
        *modules,
    ]


def _targets(loaded: Loaded) -> list[tuple[str, Target]]:
    recipe = loaded.recipe
    parts = [("model", recipe.model), *((f"data.{r}", getattr(recipe.data, r)) for r in _ROLES)]
    found = [(f"{at}.callable", getattr(part, "callable", None)) for at, part in parts]
    return [(at, of) for at, of in (*found, ("evaluate", recipe.evaluate)) if of is not None]
