"""What `granplugin check` says. On its own: with the other verbs' it would take as long as a check."""

from __future__ import annotations

from pydantic import Field

from granplugin.results.parts import Part


class NamedFile(Part):
    """A file that a recipe reads, runs or writes."""

    key: str = Field(description="The key that names it.")
    file: str
    outside: bool = Field(description="Whether it lies outside the recipe's folder.")


class CheckedRecipe(Part):
    recipe: str
    ok: bool
    errors: list[str] = []
    checked: str = Field(description="`text`, or `text and layers` of the last plan.")
    why: str = ""
    files: list[NamedFile] = Field(default=[], description="With --files: all that it names.")

    @property
    def line(self) -> str:
        """What is said of a good one."""
        return f"{self.recipe}: good; checked its {self.checked}{self.why}"


class CheckOutput(Part):
    """`granplugin check --json`."""

    version: int = 1
    recipes: list[CheckedRecipe]
