"""import: what came back from an exported folder, entered into its run's report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from granplugin.deploy.imported import import_results
from granplugin.errors import RunError
from granplugin.pipelines.apply import Applied
from granplugin.store.run_folder import open_run


def import_(run_folder: Path, files: Sequence[Path], variant: str | None = None) -> Applied:
    """Audit results folders and single files, and enter them into the run's report. `variant` is
    what single files are of, where no folder says it. Raises UserError where they are not of this
    run."""
    if not run_folder.is_dir():
        raise RunError(f"{run_folder}: there is no such run folder")
    with open_run(run_folder, "import_log.txt") as run:
        return Applied(import_results(run, files, variant), run.path)
