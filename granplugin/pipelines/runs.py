"""runs: the run folders there are, and how much room they take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from granplugin.errors import RunError
from granplugin.report.schema.verbs import RunKept, RunsOutput
from granplugin.runs.pages import summary_of

_MARKS = ("plan.json", "report.json", "analysis.json")
"""Any of these makes a folder with a cache a run's."""


def runs(folder: Path) -> RunsOutput:
    """The runs in a folder, or the one that it is. Raises RunError where there is no such folder."""
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; runs are kept in runs/ where they were started")
    return RunsOutput(folder=str(folder), runs=[_kept(path) for path in run_folders(folder)])


def run_folders(folder: Path) -> list[Path]:
    """The folder itself where it is a run's, else those in it that are, by name."""
    if _is_run(folder):
        return [folder]
    return sorted(path for path in folder.iterdir() if path.is_dir() and _is_run(path))


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder; links are counted as such."""
    return sum(path.lstat().st_size for path in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())


def _is_run(path: Path) -> bool:
    return (path / "cache").is_dir() and any((path / mark).is_file() for mark in _MARKS)


def _kept(path: Path) -> RunKept:
    created, recipes, variants = summary_of(path)
    kept = size_of(path / "cache")
    return RunKept(
        run=str(path),
        created=created,
        recipes=recipes,
        variants=variants,
        result_bytes=size_of(path) - kept,
        cache_bytes=kept,
    )
