"""export: a folder for a machine with trtexec and no Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from granplugin.deploy import export as folder
from granplugin.deploy.manifest import Manifest
from granplugin.engines import EXPORTED
from granplugin.errors import UserError
from granplugin.recipe.loaded import Loaded
from granplugin.store.run_folder import default_folder, open_run
from granplugin.suggest import did_you_mean


@dataclass(frozen=True, slots=True)
class ExportFolder:
    """What export leaves: the folder, the scripts of which one is run there, and the run folder that
    what comes back is entered into."""

    manifest: Manifest
    folder: Path
    scripts: tuple[str, ...]
    run: Path


def export(
    loaded: Loaded,
    engine: str = next(iter(EXPORTED)),
    out: Path | None = None,
    samples: int | None = None,
    run_folder: Path | None = None,
) -> ExportFolder:
    """Write `out`, by default to_<engine> in the run folder, with the first `samples` evaluation
    samples or all. Raises UserError where something must change."""
    if engine not in EXPORTED:
        hint = did_you_mean(engine, EXPORTED)
        raise UserError(f"{engine!r} cannot be exported for{hint}")
    with open_run(run_folder or default_folder(loaded.recipe.name), "export_log.txt") as run:
        out = out or run.path / f"to_{engine}"
        manifest = folder.export(loaded, run, engine, out, samples)
    scripts = tuple(program.script for program in EXPORTED[engine])
    return ExportFolder(manifest, out, scripts, run.path)
