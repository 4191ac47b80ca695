"""A recipe in any form -> one validated recipe per variant, with the line of every key at hand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from granplugin.errors import RecipeError
from granplugin.recipe.base import with_base
from granplugin.recipe.checks import check_files, check_keys
from granplugin.recipe.edit import (
    VARIED,
    rule_index,
    rules_of,
    with_rule,
    with_value,
    without_rules,
)
from granplugin.recipe.explain import explained
from granplugin.recipe.forms import IN_MEMORY, RecipeForm, read
from granplugin.recipe.loaded import Loaded, LoadedPart
from granplugin.recipe.model import MODELS
from granplugin.recipe.paths import anchored, shown, why_missing
from granplugin.recipe.schema import Recipe, RecipePart
from granplugin.recipe.source import Document, merge, parse_value, read_document, subtree
from granplugin.recipe.yaml_text import MAX_VALUES, Location, Mark

AnyRecipe = TypeVar("AnyRecipe", bound=RecipePart)

_GIVEN = "granplugin:load"
"""Where a model came from that was given live."""
RECIPE = "recipe"
"""The name of the variant that is the recipe itself."""


def load_recipe(
    form: RecipeForm,
    settings: Sequence[str] = (),
    data: bool = True,
    live: object = None,
    quantized: bool = False,
) -> Loaded:
    """Read and validate a recipe: a file, its text or a dict (see forms.RecipeForm); `settings` are
    the `key=value` of `--set`. A `live` model stands in place of what the recipe says of one; it is
    kept as it is where it is `quantized`.

    Without `data`, the files of its data need not be there. Raises RecipeError, one line per
    mistake, each with file:line:column.
    """
    document, path = _read(form, settings)
    if live is not None:
        model = {"callable": _GIVEN, "quantized": "keep" if quantized else "refuse"}
        document = with_value(document, "model", model, {}, Mark("model", 0, 0))
    return _loaded(document, path, tuple(settings), data, live)


def load_part(form: RecipeForm) -> LoadedPart:
    """The same of a recipe that need not say its model and data; none of their files, nor any
    other that it names but those it extends, need be there."""
    document, path = _read(form, ())
    loaded = LoadedPart(_validated(RecipePart, document, path), document, path, ())
    check_keys(loaded)
    return loaded


def load_variants(loaded: Loaded) -> dict[str, Loaded]:
    """The recipe itself, then each of its variants, by name."""
    variants = {RECIPE: loaded}
    _check_size(loaded)
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
            if key.split(".")[0] == "defaults" and loaded.recipe.base:
                raise loaded.error(inside, "the recipe has a base, and no defaults to change")
            marks = subtree(loaded.document, inside, ())
            document = with_value(document, key, value, marks, loaded.mark(*inside))
        dropped = {
            rule_index(rules_of(document), rule_id, loaded.mark(*at, "drop", index))
            for index, rule_id in enumerate(variant.drop)
        }
        document = without_rules(document, dropped)
        for index in range(len(variant.rules)):
            document = with_rule(document, loaded.document, (*at, "rules", index))
        variants[name] = _loaded(
            document, loaded.path, loaded.settings, data=True, live=loaded.live
        )
    return variants


def _check_size(loaded: Loaded) -> None:
    """Each variant is a recipe as large as this one, and each of its changes looks through it."""
    variants = loaded.recipe.variants.values()
    changes = sum(len(each.set) + len(each.drop) + len(each.rules) for each in variants)
    if max(len(variants), changes / 8) * len(loaded.document.marks) > 2 * MAX_VALUES:
        raise loaded.error(
            ("variants",),
            f"{len(variants)} variants with {changes:,} changes of so large a recipe come to over "
            f"{2 * MAX_VALUES:,} values; put what differs into recipes that extend this one",
        )


def _read(form: RecipeForm, settings: Sequence[str]) -> tuple[Document, Path]:
    own, path = read(form)
    document, based = _extended(own, path, (), _Bases()), False
    # A base that is set is looked up before what is set in its rules.
    for setting in sorted(settings, key=lambda each: not each.startswith("base=")):
        key, sign, text = setting.partition("=")
        if not sign or not key:
            raise RecipeError(f"--set {setting}: write --set key=value")
        if key != "base" and not based:
            document, based = with_base(document), True
        mark = Mark(f"--set {key}", 0, 0)
        if key.partition(".")[0] == "extends":
            raise RecipeError(f"{mark}: what a recipe extends is written in the recipe")
        document = with_value(document, key, parse_value(text, mark.file), {}, mark)
    return document if based else with_base(document), path


MAX_BASES = 50
"""How often a recipe and what it extends say `extends` of a file, all together."""


@dataclass
class _Bases:
    """What a recipe extends: each file is read once, however many extend it; `counted` are the
    times, `values` what was merged."""

    documents: dict[Path, Document] = field(default_factory=dict)
    counted: int = 0
    values: int = 0

    def check(self, own: Document, at: Location) -> None:
        if self.counted > MAX_BASES:
            raise own.error(at, f"with what it extends it extends over {MAX_BASES} recipes")
        if self.values > 2 * MAX_VALUES:
            raise own.error(at, f"with what it extends it has over {MAX_VALUES:,} values")


def _extended(own: Document, path: Path, chain: tuple[Path, ...], bases: _Bases) -> Document:
    """The document with what it extends."""
    own = anchored(own)
    said = own.value.get("extends", [])
    said = [said] if isinstance(said, str) else said if isinstance(said, list) else []
    chain = (*chain, path.resolve())
    below: Document | None = None
    for index, given in enumerate(filter(_is_text, said)):
        at, base = ("extends", index), Path(given)
        if missing := why_missing(base, folder=False):
            raise own.error(at, missing)
        file = base.resolve()
        if file in chain:
            raise own.error(at, f"{shown(base)} extends itself, by way of {path.name}")
        bases.counted += 1
        bases.check(own, at)
        if file not in bases.documents:
            shorter = Path(shown(base))
            document = _extended(read_document(shorter), shorter, chain, bases)
            document.value.pop("name", None)
            bases.documents[file] = document
        document = bases.documents[file]
        bases.values += len(document.marks)
        bases.check(own, at)
        below = merge(below, document, MODELS) if below else document
    return merge(below, own, MODELS) if below else own


def _loaded(
    document: Document, path: Path, settings: tuple[str, ...], data: bool, live: object = None
) -> Loaded:
    loaded = Loaded(_validated(Recipe, document, path), document, path, settings, live)
    check_keys(loaded)
    check_files(loaded, data)
    return loaded


def _validated(kind: type[AnyRecipe], document: Document, path: Path) -> AnyRecipe:
    stem = RECIPE if path == IN_MEMORY else path.stem
    name = re.sub(r"[^A-Za-z0-9._-]", "-", stem).lstrip("._-")[:100] or RECIPE
    try:
        return kind.model_validate({"name": name, **document.value})
    except ValidationError as err:
        lines = dict.fromkeys(explained(document, error) for error in err.errors(include_url=False))
        raise RecipeError("\n".join(list(lines)[:10])) from err


def _is_text(value: Any) -> bool:
    return isinstance(value, str)  # of what is not, the schema will say so, at its line
