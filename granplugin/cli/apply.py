"""`granplugin apply`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from granplugin.cli import Json, Out, Recipes, Settings

if TYPE_CHECKING:
    from granplugin.pipelines.apply import Applied

EXAMPLE = "granplugin apply recipes/digits_mobilenet.yaml --set data.batch_size=8"


def apply(recipes: Recipes, settings: Settings = None, out: Out = None, json_: Json = False) -> int:
    """Build and measure baselines, recipes and variants, and compare them."""
    from granplugin.recipe.load import load_recipe

    loaded = [load_recipe(path, settings or ()) for path in recipes]

    from granplugin.pipelines.apply import apply

    applied = apply(loaded, out)
    show(applied, json_)
    return applied.exit_code


def show(applied: Applied, json_: bool) -> None:
    """A run's report on stdout."""
    if json_:
        print(applied.report.model_dump_json(indent=1))
        return
    from granplugin.report.terminal import WIDTH, render

    console = Console(width=WIDTH, highlight=False)
    console.print(render(applied.report))
    console.print(f"report: {applied.folder / 'report.md'}", soft_wrap=True)
