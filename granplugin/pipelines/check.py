"""check: a recipe's text, and its rules against the layers of the last plan, without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from granplugin.errors import RecipeError
from granplugin.planning.plan import make_plan
from granplugin.planning.plan_file import text_key
from granplugin.quant.layers import Layer, layer_from_json
from granplugin.recipe.files import named
from granplugin.recipe.load import load_recipe, load_variants
from granplugin.recipe.loaded import Loaded
from granplugin.report.schema.check import CheckedRecipe, CheckOutput, NamedFile
from granplugin.store.run_folder import default_folder


def check(
    recipes: Sequence[Path],
    settings: Sequence[str] = (),
    out: Path | None = None,
    files: bool = False,
) -> CheckOutput:
    """Check each of these recipes; `out` is the folder of the last plan, by default runs/<name>.
    With `files`, all that it reads, runs and writes is listed."""
    return CheckOutput(recipes=[check_recipe(path, settings, out, files) for path in recipes])


def check_recipe(
    path: Path, settings: Sequence[str], out: Path | None, files: bool = False
) -> CheckedRecipe:
    """Everything that can be said of a recipe without building its model."""
    checked, why, listed = "text", "", list[NamedFile]()
    try:
        loaded = load_recipe(path, settings)
        if files:
            listed = [NamedFile(key=k, file=f, outside=o) for k, f, o in named(loaded)]
        variants = load_variants(loaded)
        layers, why = _last_layers(loaded, out or default_folder(loaded.recipe.name))
        if layers:
            checked = "text and its rules"
            for variant in variants.values():
                make_plan(variant, layers)
    except RecipeError as err:
        return CheckedRecipe(
            recipe=str(path),
            ok=False,
            errors=str(err).splitlines(),
            checked=checked,
            files=listed,
        )
    return CheckedRecipe(recipe=str(path), ok=True, checked=checked, why=why, files=listed)


def _last_layers(loaded: Loaded, folder: Path) -> tuple[tuple[Layer, ...], str]:
    """The layers of the last plan, if it is of this very model; and what to say of that."""
    file = folder / "plan.json"
    try:
        last = json.loads(file.read_text(encoding="utf-8"))
        if last["text_key"] != text_key(loaded.recipe):
            return (), f" only: {file} is of another model"
        layers = tuple(map(layer_from_json, last["layers"]))
    except FileNotFoundError:
        return (), f" only: no plan in {folder} yet"
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return (), f" only: {file} cannot be read; run granplugin plan again"
    return layers, f", against {len(layers)} layers of {file}"
