"""The runs there are, of when, and how much room they take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from granplugin.cli import Json, show
from granplugin.cli.next_steps import Next, say_next


def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER")] = Path("runs"), json_: Json = False
) -> int:
    """The runs there are, of when, and how much room they take."""
    from granplugin.pipelines.runs import runs

    listed = runs(folder)
    show(listed, json_)
    if not json_ and any(each.cache_bytes for each in listed.runs):
        say_next([Next(("clean", str(folder)), "frees the caches; results stay")])
    return 0
