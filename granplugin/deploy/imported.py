"""import: what trtexec wrote on another machine, audited and entered into a run's report.

The files stay in the run folder, under variants/<variant>/imported-<engine>/, so that a later
apply of the same recipe enters them again; what was built of another ONNX file is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

import granplugin
from granplugin.deploy.manifest import Exported, built_file, exports_of
from granplugin.deploy.measured import with_engine
from granplugin.deploy.returned import RESULTS, Files, files_of, folder_of, gather, kind_of
from granplugin.errors import RunError, UserError
from granplugin.report.schema.run import Report
from granplugin.report.show import as_markdown
from granplugin.runs.pages import PAGE, page_of
from granplugin.store.run_folder import RunFolder


def import_results(run: RunFolder, paths: Sequence[Path], variant: str | None = None) -> Report:
    """Read results folders and single files, audit and measure, and enter them into the report.

    A results folder replaces all that came of its variants before, a single file only files of its
    kind. What of a folder is truncated or foreign is left out and noted. Raises UserError, and
    leaves everything as it was, for such a single file, where nothing is good, and for what is of
    another export.
    """
    report = _read_report(run)
    exports = exports_of(run)
    if not exports:
        raise RunError(
            f"{run.path}: nothing was exported of it by granplugin {granplugin.__version__}; "
            "granplugin export RECIPE does it"
        )
    fresh: dict[tuple[str, str], dict[str, str]] = {}
    single: dict[tuple[str, str], dict[str, str]] = {}
    left: list[str] = []
    for path in paths:
        for engine, name, found in gather(path, variant, exports, left):
            if path.is_dir():
                fresh[engine, name] = found
            else:
                single.setdefault((engine, name), {}).update(found)
    for (engine, name), found in single.items():
        held = fresh.get((engine, name)) or files_of(run, engine, name)
        kinds = {kind_of(file) for file in found}
        kept = {file: text for file, text in held.items() if kind_of(file) not in kinds}
        fresh[engine, name] = kept | found
    for engine, name in fresh:
        if not built_file(run, exports[engine], name):
            raise UserError(
                f"{run.path}: {name}'s ONNX file is not the one that was exported; export it again"
            )
    if not single:
        fresh = _usable(run, report, exports, fresh, left)
    with run.publishing():
        report = enter(run, report, fresh)
        report = report.model_copy(
            update={"notes": [*report.notes, *(f"results (imported): left out: {t}" for t in left)]}
        )
        for (engine, name), files in fresh.items():
            folder = folder_of(run, engine, name)
            for file, text in files.items():
                run.publish(f"{folder.relative_to(run.results)}/{file}", text)
            for stale in folder.iterdir():
                if stale.name not in files:
                    stale.unlink()
        run.publish(PAGE, page_of(run.results, report))
        run.publish("report.md", as_markdown(report))
        run.publish("report.json", report.model_dump_json(indent=1))
    return report


def _usable(
    run: RunFolder,
    report: Report,
    exports: Mapping[str, Exported],
    fresh: Mapping[tuple[str, str], dict[str, str]],
    left: list[str],
) -> dict[tuple[str, str], dict[str, str]]:
    """Of these files those that can be entered; others are `left` out, with why. Where all can, none
    is looked at twice; else each kind of a variant is tried upon those before it (a profile needs
    its layers). UserError where none can."""
    try:
        enter(run, report, fresh)
    except UserError as err:
        told = err
    else:
        return dict(fresh)
    good: dict[tuple[str, str], dict[str, str]] = {}
    for (engine, name), files in fresh.items():
        onnx = {name: path} if (path := built_file(run, exports[engine], name)) else {}
        kept: dict[str, str] = {}
        for kind in sorted(set(map(kind_of, files))):
            more = {file: text for file, text in files.items() if kind_of(file) == kind}
            try:
                with_engine(report, exports[engine], onnx, {name: kept | more})
            except UserError as err:
                left.append(str(err))
            else:
                kept |= more
        good[engine, name] = kept
    if not any(kind_of(file) in RESULTS for files in good.values() for file in files):
        raise told
    return {key: files for key, files in good.items() if files}


def enter(
    run: RunFolder, report: Report, fresh: Mapping[tuple[str, str], Files] | None = None
) -> Report:
    """The report with what was imported: the files in the run folder, or where there are any the
    `fresh` ones, by (engine, variant)."""
    fresh = fresh or {}
    report = report.model_copy(
        update={
            "variants": [
                v.model_copy(update={"engines": [e for e in v.engines if not e.imported]})
                for v in report.variants
            ],
            "notes": [note for note in report.notes if " (imported): " not in note],
        }
    )
    for engine, exported in exports_of(run).items():
        found = {name: built_file(run, exported, name) for name in exported.variants}
        onnx = {name: path for name, path in found.items() if path}
        files = {name: fresh.get((engine, name)) or files_of(run, engine, name) for name in onnx}
        if any(files.values()):
            report = with_engine(report, exported, onnx, files)
    return report


def _read_report(run: RunFolder) -> Report:
    path = run.path / "report.json"
    try:
        return Report.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{run.path} has no report; granplugin apply RECIPE makes it") from None
    except (OSError, ValidationError) as err:
        raise RunError(
            f"{path}: not a report of granplugin {granplugin.__version__}, or damaged; apply the "
            "recipe again"
        ) from err
