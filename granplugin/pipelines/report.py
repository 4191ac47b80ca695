"""report: report.html of a run folder again, of what is in it."""

from __future__ import annotations

from pathlib import Path

from granplugin.errors import RunError
from granplugin.runs.pages import PAGE, page_of, write_page


def report(folder: Path, target: Path | None = None) -> Path:
    """Write the page of a run folder, by default as report.html in it. Raises RunError where there
    is nothing to show, or nowhere to write."""
    if not folder.is_dir():
        raise RunError(f"{folder}: not a run folder; give one, as runs/digits_mobilenet")
    target = target or folder / PAGE
    write_page(target, page_of(folder))
    return target
