"""One page of a run, to open offline or to mail."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from granplugin.stdout import say

EXAMPLE = "granplugin report runs/digits_mobilenet --open"


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", show_default=False)],
    html: Annotated[
        Optional[Path], typer.Option(help="Where to write; default report.html in the run.")
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> int:
    """One page of a run and its analysis, to open offline or to mail."""
    from granplugin.pipelines.report import report

    written = report(run, html)
    say(f"report: {written}")
    if not open_:
        return 0
    import webbrowser

    if not webbrowser.open(written.resolve().as_uri()):
        say("no browser could be opened; open the file yourself")
    return 0
