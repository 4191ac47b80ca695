"""JSON Schema of recipes (for editors), and of --json."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from granplugin.stdout import say_json


def schema(
    what: Annotated[
        str, typer.Argument(help="recipe, report, inspect, plan, check, audit ...")
    ] = "recipe",
) -> int:
    """JSON Schema of recipes (for editors), or of what a verb prints with --json."""
    from granplugin.pipelines.schema import schema

    say_json(json.dumps(schema(what), indent=1))
    return 0
