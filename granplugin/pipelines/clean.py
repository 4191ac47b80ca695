"""clean: free what runs keep for a next run; their results stay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from granplugin.errors import RunError
from granplugin.pipelines.runs import run_folders, size_of
from granplugin.report.schema.verbs import CleanOutput
from granplugin.store.run_folder import empty_cache


def clean(folders: Sequence[Path]) -> CleanOutput:
    """Empty the caches of these runs, or of all in these folders. Raises RunError for what is no
    run and has none."""
    found: list[Path] = []
    for folder in folders:
        runs = run_folders(folder) if folder.is_dir() else []
        if not runs:
            raise RunError(f"{folder}: no run; `granplugin runs` lists them")
        found += [run for run in runs if run not in found]
    freed: dict[str, int] = {}
    busy = []
    for run in found:
        before = size_of(run / "cache")
        if empty_cache(run):
            freed[str(run)] = before - size_of(run / "cache")
        else:
            busy.append(str(run))
    return CleanOutput(freed=freed, busy=busy)
