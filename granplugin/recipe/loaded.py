"""A validated recipe with the text it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from granplugin.errors import RecipeError
from granplugin.recipe.schema import Recipe, RecipePart
from granplugin.recipe.source import Document, Mark


@dataclass(frozen=True)
class LoadedPart:
    """A validated recipe, of which model and data may be left out, and the text it came from.

    `path` is its file, forms.IN_MEMORY where it is in none; `settings` are the `key=value` that
    changed it.
    """

    recipe: RecipePart
    document: Document
    path: Path
    settings: tuple[str, ...] = ()

    def mark(self, *location: str | int) -> Mark:
        return self.document.mark(location)

    def error(self, location: Sequence[str | int], message: str) -> RecipeError:
        return self.document.error(location, message)

    def rule_label(self, index: int) -> str:
        return self.recipe.rules[index].id or f"rule {index + 1}"


@dataclass(frozen=True)
class Loaded(LoadedPart):
    """A validated recipe with its model and data, and the text it came from."""

    recipe: Recipe
