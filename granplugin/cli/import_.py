"""Enter into a run what came back from an exported folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from granplugin.cli import Json
from granplugin.cli.apply import show_report
from granplugin.cli.next_steps import typed

EXAMPLE = "granplugin import runs/digits_mobilenet results"


def import_(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", show_default=False)],
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", show_default=False)],
    variant: Annotated[
        Optional[str], typer.Option(help="The variant the files are of, where no folder says.")
    ] = None,
    json_: Json = False,
) -> int:
    """Audit what came back from an exported folder, and enter it into the run's report."""
    from granplugin.pipelines.import_ import import_

    applied = import_(run_folder, files, variant)
    words = {each: typed(Path(each), out=run_folder) for each in applied.report.recipes}
    show_report(applied, json_, words)
    return applied.exit_code
