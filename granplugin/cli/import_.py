"""Enter into a run what came back from an exported folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from granplugin.cli import Json
from granplugin.cli.apply import show_report
from granplugin.cli.gate import Annotations, Junit, gate
from granplugin.cli.next_steps import typed

EXAMPLE = "granplugin import runs/digits_mobilenet results"


def import_(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", show_default=False)],
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", show_default=False)],
    variant: Annotated[
        Optional[str], typer.Option(help="The variant the files are of, where no folder says.")
    ] = None,
    junit: Junit = None,
    annotations: Annotations = None,
    json_: Json = False,
) -> int:
    """Audit what came back from an exported folder, and enter it into the run's report."""
    from granplugin.pipelines.import_ import import_

    with gate("import", junit, annotations) as decided:
        applied = import_(run_folder, files, variant)
        decided.decide(applied.report)
    words = {each: typed(Path(each), out=run_folder) for each in applied.report.recipes}
    show_report(applied, json_, words)
    return applied.exit_code
