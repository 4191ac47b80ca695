"""`granplugin check`."""

from __future__ import annotations

import sys

from granplugin.cli import Json, Out, Recipes, Settings, show

EXAMPLE = "granplugin check recipes/*.yaml"


def check(recipes: Recipes, settings: Settings = None, out: Out = None, json_: Json = False) -> int:
    """Validate recipes without running anything; rules too, where the last plan still holds."""
    from granplugin.pipelines.check import check

    found = check(recipes, settings or (), out)
    show(found, json_)
    if not json_:
        for error in (error for each in found.recipes for error in each.errors):
            print(error, file=sys.stderr)
    return 0 if all(each.ok for each in found.recipes) else 2
