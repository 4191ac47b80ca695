"""Validate recipes without running anything."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from granplugin.cli import Json, Out, Recipes, Settings
from granplugin.cli.gate import Annotations, Junit, gate
from granplugin.stdout import say, say_json
from granplugin.visible import visible_lines

EXAMPLE = "granplugin check recipes/*.yaml"


def check(
    recipes: Recipes,
    settings: Settings = None,
    out: Out = None,
    files: Annotated[
        bool, typer.Option("--files", help="List the files it reads, runs and writes.")
    ] = False,
    junit: Junit = None,
    annotations: Annotations = None,
    json_: Json = False,
) -> int:
    """Validate recipes without running anything; rules too, where the last plan still holds."""
    from granplugin.pipelines.check import check

    with gate("check", junit, annotations) as decided:
        checked = check(recipes, settings or (), out, files)
        decided.decide(checked)
    if json_:
        say_json(checked.model_dump_json(indent=1))
    # Loading the views of all reports would take as long as the check.
    for each in checked.recipes if not json_ else ():
        for error in each.errors:
            print(visible_lines(error), file=sys.stderr)
        if each.ok:
            say(each.line)
        for named in each.files:
            outside = "  (outside the recipe's folder)" if named.outside else ""
            say(f"  {named.key}: {named.file}{outside}")
    return 0 if all(each.ok for each in checked.recipes) else 2
