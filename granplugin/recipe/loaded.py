"""A validated recipe with the text it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from granplugin.errors import RecipeError
from granplugin.recipe.schema import Recipe
from granplugin.recipe.source import Document, Mark


@dataclass(frozen=True)
class Loaded:
    """A validated recipe and the text it came from."""

    recipe: Recipe
    document: Document
    path: Path

    def mark(self, *location: str | int) -> Mark:
        return self.document.mark(location)

    def error(self, location: Sequence[str | int], message: str) -> RecipeError:
        return self.document.error(location, message)

    def rule_label(self, index: int) -> str:
        return self.recipe.rules[index].id or f"rule {index + 1}"
