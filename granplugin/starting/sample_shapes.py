"""Shapes of one sample, as they are told and as they are guessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from granplugin.errors import RecipeError

Guess = Mapping[str, tuple[tuple[int, ...], str]]
"""Input -> the shape of one sample, and its type."""


def shapes_of(told: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """`image=3x224x224` -> sizes of one sample. Raises RecipeError."""
    found = {}
    for each in told:
        name, sign, sizes = each.partition("=")
        if not sign or not all(size.isdigit() for size in sizes.split("x")):
            raise RecipeError(f"--shape {each}: write it as image=3x224x224, without the batch")
        found[name] = tuple(map(int, sizes.split("x")))
    return found
