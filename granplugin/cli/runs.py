"""The runs there are, of when, and how much room they take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from granplugin.cli import Json, show


def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER")] = Path("runs"), json_: Json = False
) -> int:
    """The runs there are, of when, and how much room they take."""
    from granplugin.pipelines.runs import runs

    show(runs(folder), json_)
    return 0
