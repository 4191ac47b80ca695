"""Which layer loses what, why, and the settings that mend it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from granplugin.cli import From, Json, OneRecipe, Out, Settings, show, taking
from granplugin.cli.next_steps import after_analysis, say_next, typed
from granplugin.stdout import say

EXAMPLE = "granplugin analyze recipe.yaml --write-recipe suggested.yaml"


def analyze(
    recipe: OneRecipe,
    write_recipe: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Write the suggested recipe there.")
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Show every layer, not the worst 15.")
    ] = False,
    statistics: Annotated[
        Optional[Path],
        typer.Option(metavar="FILE", help="The statistics.safetensors of an earlier analysis."),
    ] = None,
    costs: Annotated[
        bool, typer.Option(help="Build engines to count each setting's kernels and MB.")
    ] = True,
    settings: Settings = None,
    checkpoint: From = None,
    out: Out = None,
    json_: Json = False,
) -> int:
    """Which layer loses what, at which granularity, and why; and the overrides it takes."""
    from granplugin.recipe.load import load_recipe

    settings = taking(settings, checkpoint)

    loaded = load_recipe(recipe, settings)

    from granplugin.pipelines.analyze import analyze

    analyzed = analyze(loaded, costs, statistics, out, write_recipe)
    show(analyzed.analysis, json_, all_layers=all_)
    if not json_:
        say(f"report: {analyzed.folder / 'report.html'}, and as text analysis.md")
    if write_recipe:
        analyzed.write_recipe(write_recipe)
        if not json_:
            say(f"recipe: {write_recipe}")
    if not json_:
        role = "analysis" if loaded.recipe.data.analysis else "calibration"
        few = getattr(loaded.recipe.data, role).samples
        words = typed(recipe, settings, out)
        key = f"data.{role}.samples" if few else None
        say_next(after_analysis(analyzed.analysis, words, write_recipe, key))
    return analyzed.exit_code
