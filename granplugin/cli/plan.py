"""`granplugin plan`."""

from __future__ import annotations

import json
from typing import Annotated, Optional

import typer

from granplugin.cli import Json, OneRecipe, Out, Settings

EXAMPLE = "granplugin plan recipe.yaml --why features.0.0"


def plan(
    recipe: OneRecipe,
    variant: Annotated[Optional[str], typer.Option(help="A variant of the recipe.")] = None,
    why: Annotated[Optional[str], typer.Option(metavar="LAYER", help="One layer's story.")] = None,
    modelopt: Annotated[bool, typer.Option(help="The config as modelopt takes it.")] = False,
    settings: Settings = None,
    out: Out = None,
    json_: Json = False,
) -> int:
    """What each site gets, and the rule that decided it; nothing is calibrated."""
    from granplugin.recipe.load import load_recipe

    loaded = load_recipe(recipe, settings or ())

    from granplugin.pipelines.plan import plan
    from granplugin.report import plan_text as text

    found = plan(loaded, variant, out)
    if modelopt:
        print(json.dumps(found.config(), indent=1))
    elif why:
        story = found.why(why)
        print(text.why_json(why, story) if json_ else "\n".join([why, *story]))
    elif json_:
        print(text.plan_json(str(recipe), found.variant, found.plan, found.written))
    else:
        print("\n".join(text.plan_lines(found.plan, found.written)))
    return 0
