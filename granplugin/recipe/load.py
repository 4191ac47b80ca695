"""Recipe files -> one validated recipe per variant, with the line of every key at hand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from granplugin.errors import RecipeError
from granplugin.recipe.checks import check
from granplugin.recipe.edit import (
    VARIED,
    rule_index,
    rules_of,
    with_rule,
    with_value,
    without_rules,
)
from granplugin.recipe.explain import explained
from granplugin.recipe.loaded import Loaded
from granplugin.recipe.paths import anchored, shown, why_missing
from granplugin.recipe.schema import Recipe
from granplugin.recipe.source import (
    Document,
    Location,
    Mark,
    merge,
    parse_value,
    read_document,
    subtree,
)

RECIPE = "recipe"
"""The name of the variant that is the recipe itself."""


def load_recipe(path: Path, settings: Sequence[str] = (), data: bool = True) -> Loaded:
    """Read and validate a recipe; `settings` are the `key=value` of `--set`.

    Without `data`, the files of its data need not be there. Raises RecipeError, one line per
    mistake, each with file:line:column.
    """
    document = _extended(path, ())
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign or not key:
            raise RecipeError(f"--set {setting}: write --set key=value")
        mark = Mark(f"--set {key}", 0, 0)
        if key.partition(".")[0] == "extends":
            raise RecipeError(f"{mark}: what a recipe extends is written in the recipe")
        document = with_value(document, key, parse_value(text, mark.file), {}, mark)
    return _validate(document, path, data)


def load_variants(loaded: Loaded) -> dict[str, Loaded]:
    """The recipe itself, then each of its variants, by name."""
    variants = {RECIPE: loaded}
    for name, variant in loaded.recipe.variants.items():
        at: Location = ("variants", name)
        if name == RECIPE:
            raise loaded.error(
                at, f"a variant cannot be called {RECIPE!r}: that is the recipe itself"
            )
        document = loaded.document
        for key, value in variant.set.items():
            inside = (*at, "set", key)
            if key.split(".")[0] not in VARIED:
                raise loaded.error(
                    inside, f"a variant changes {', '.join(VARIED)}, not {key.split('.')[0]!r}"
                )
            marks = subtree(loaded.document, inside, ())
            document = with_value(document, key, value, marks, loaded.mark(*inside))
        dropped = {
            rule_index(rules_of(document), rule_id, loaded.mark(*at, "drop", index))
            for index, rule_id in enumerate(variant.drop)
        }
        document = without_rules(document, dropped)
        for index in range(len(variant.rules)):
            document = with_rule(document, loaded.document, (*at, "rules", index))
        variants[name] = _validate(document, loaded.path, data=True)
    return variants


def _extended(path: Path, chain: tuple[Path, ...]) -> Document:
    own = anchored(read_document(path))
    bases = own.value.get("extends", [])
    bases = [bases] if isinstance(bases, str) else bases if isinstance(bases, list) else []
    chain = (*chain, path.resolve())
    below: Document | None = None
    for index, base in enumerate(map(Path, filter(_is_text, bases))):
        at = ("extends", index)
        if why_missing(base, folder=False):
            raise own.error(at, why_missing(base, folder=False))
        if base.resolve() in chain:
            raise own.error(at, f"{shown(base)} extends itself, by way of {path.name}")
        document = _extended(Path(shown(base)), chain)
        document.value.pop("name", None)
        below = merge(below, document) if below else document
    return merge(below, own) if below else own


def _validate(document: Document, path: Path, data: bool) -> Loaded:
    name = re.sub(r"[^A-Za-z0-9._-]", "-", path.stem).lstrip("._-") or RECIPE
    try:
        recipe = Recipe.model_validate({"name": name, **document.value})
    except ValidationError as err:
        lines = dict.fromkeys(explained(document, error) for error in err.errors(include_url=False))
        raise RecipeError("\n".join(list(lines)[:10])) from err
    loaded = Loaded(recipe, document, path)
    check(loaded, data)
    return loaded


def _is_text(value: Any) -> bool:
    return isinstance(value, str)  # of what is not, the schema will say so, at its line
