"""A validated recipe with the text it came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from granplugin.errors import DataError, ModelError, RecipeError
from granplugin.recipe.decisions import of_base
from granplugin.recipe.schema import Recipe, RecipePart
from granplugin.recipe.source import Document
from granplugin.recipe.yaml_text import Mark


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
        """A rule's id, or its number among those that are no base's."""
        rules = self.recipe.rules
        own = sum(not of_base(rule.id) for rule in rules[: index + 1])
        return rules[index].id or f"rule {own}"

    @property
    def before_rules(self) -> str:
        """What decides where no rule of its own does."""
        said = self.recipe.defaults
        return self.recipe.base or (said if isinstance(said, str) else "the defaults")


@dataclass(frozen=True)
class Loaded(LoadedPart):
    """A validated recipe with its model and data, and the text it came from; `live` is the
    torch.nn.Module that was given with it."""

    recipe: Recipe
    live: Any = None


@contextmanager
def located(loaded: Loaded, *location: str) -> Iterator[None]:
    """What goes wrong with a section of the recipe is said at its line."""
    try:
        yield
    except (ModelError, DataError) as err:
        mark = loaded.mark(*location)
        if str(err).startswith(f"{mark.file}:"):
            raise
        raise type(err)(f"{mark}: {err}") from err
