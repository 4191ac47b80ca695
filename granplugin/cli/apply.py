"""Build, measure and compare baselines, recipes and variants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from granplugin.cli import Json, Out, Recipes, Settings, show
from granplugin.stdout import say

if TYPE_CHECKING:
    from granplugin.pipelines.apply import Applied

EXAMPLE = "granplugin apply recipes/digits_mobilenet.yaml --set data.batch_size=8"


def apply(recipes: Recipes, settings: Settings = None, out: Out = None, json_: Json = False) -> int:
    """Build and measure baselines, recipes and variants, and compare them."""
    from granplugin.recipe.load import load_recipe

    loaded = [load_recipe(path, settings or ()) for path in recipes]

    from granplugin.pipelines.apply import apply

    applied = apply(loaded, out)
    show_report(applied, json_)
    return applied.exit_code


def show_report(applied: Applied, json_: bool) -> None:
    """A run's report on stdout, and where the whole of it is."""
    show(applied.report, json_)
    if not json_:
        say(f"report: {applied.folder / 'report.html'}, and as text report.md")
