"""Free what runs keep for a next run; results stay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from granplugin.cli import Json, show

EXAMPLE = "granplugin clean runs/digits_mobilenet"


def clean(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", show_default=False)],
    json_: Json = False,
) -> int:
    """Free what runs keep for a next run (a folder of runs: all of them); results stay."""
    from granplugin.pipelines.clean import clean

    show(clean(folders), json_)
    return 0
