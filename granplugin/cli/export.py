"""A folder that builds and measures elsewhere, without Python."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from granplugin.cli import From, OneRecipe, Settings, taking
from granplugin.cli.next_steps import Next, say_next
from granplugin.engines import EXPORTED
from granplugin.stdout import say

EXAMPLE = "granplugin export recipe.yaml --out to_the_jetson"


def export(
    recipe: OneRecipe,
    out: Annotated[
        Optional[Path], typer.Option(help="The folder to write; default runs/<name>/to_<engine>.")
    ] = None,
    engine: Annotated[str, typer.Option(help=f"{' or '.join(EXPORTED)}.")] = next(iter(EXPORTED)),
    samples: Annotated[
        Optional[int], typer.Option(min=1, help="Evaluation samples; default all.")
    ] = None,
    run_folder: Annotated[
        Optional[Path], typer.Option("--run", help="The run folder; default runs/<name>.")
    ] = None,
    settings: Settings = None,
    checkpoint: From = None,
) -> int:
    """Leave a folder that builds and measures on a machine with trtexec and no Python."""
    from granplugin.recipe.load import load_recipe

    settings = taking(settings, checkpoint)

    loaded = load_recipe(recipe, settings)

    from granplugin.pipelines.export import export

    left = export(loaded, engine, out, samples, run_folder)
    manifest = left.manifest
    say(
        f"{left.folder}: {len(manifest.variants)} variants, {sum(manifest.counts)} samples\n"
        f"Copy it to the target, run {' or '.join(left.scripts)} there, and bring results back."
    )
    say_next([Next(("import", str(left.run), "results"), "enter what came back")])
    return 0
