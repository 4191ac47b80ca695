"""What the layers are: shapes, ranges, spreads, defaults."""

from __future__ import annotations

from granplugin.cli import From, Json, OneRecipe, Out, Settings, show, taking
from granplugin.cli.next_steps import Next, say_next, typed
from granplugin.errors import RecipeError

EXAMPLE = "granplugin inspect recipes/digits_mobilenet.yaml"


def inspect(
    recipe: OneRecipe,
    settings: Settings = None,
    checkpoint: From = None,
    out: Out = None,
    json_: Json = False,
) -> int:
    """What the layers are: shapes, ranges, spreads and defaults; nothing is calibrated."""
    from granplugin.recipe.load import load_recipe

    settings = taking(settings, checkpoint)

    loaded = load_recipe(recipe, settings, data=False)

    from granplugin.pipelines.inspect import inspect

    inspection = inspect(loaded, out)
    show(inspection.output(), json_)
    # The layers are what one needs to see to mend a rule.
    if inspection.refused:
        raise RecipeError(inspection.refused)
    if not json_:
        say_next([Next(("plan", *typed(recipe, settings, out)), "what each site gets")])
    return 0
