"""What each site gets, and the rule that decided it."""

from __future__ import annotations

import json
from typing import Annotated, Optional

import typer

from granplugin.cli import From, Json, OneRecipe, Out, Settings, show, taking
from granplugin.cli.next_steps import Next, say_next, typed
from granplugin.stdout import say_json

EXAMPLE = "granplugin plan recipe.yaml --why features.0.0"


def plan(
    recipe: OneRecipe,
    variant: Annotated[Optional[str], typer.Option(help="A variant of the recipe.")] = None,
    why: Annotated[Optional[str], typer.Option(metavar="LAYER", help="One layer's story.")] = None,
    modelopt: Annotated[
        bool, typer.Option("--modelopt", help="The config as modelopt takes it.")
    ] = False,
    settings: Settings = None,
    checkpoint: From = None,
    out: Out = None,
    json_: Json = False,
) -> int:
    """What each site gets, and the rule that decided it; nothing is calibrated."""
    from granplugin.recipe.load import load_recipe

    settings = taking(settings, checkpoint)

    loaded = load_recipe(recipe, settings)

    from granplugin.pipelines.plan import plan
    from granplugin.report.schema.verbs import WhyOutput

    planned = plan(loaded, variant, out)
    if modelopt:
        say_json(json.dumps(planned.config(), indent=1))
    elif why:
        show(WhyOutput(layer=why, story=list(planned.why(why))), json_)
    else:
        show(planned.output(), json_)
        if not json_ and not planned.refused:
            say_next([Next(("apply", *typed(recipe, settings, out)), "build and measure it")])
    return 0
