"""The suggested recipe as a file: where it may stand, and that its rules change nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from granplugin.analysis.settings import same
from granplugin.analysis.suggestion import Suggested, recipe_text
from granplugin.errors import UserError
from granplugin.planning.plan import make_plan
from granplugin.recipe.forms import IN_MEMORY
from granplugin.recipe.load import load_recipe
from granplugin.recipe.loaded import Loaded
from granplugin.report.schema.analysis import Analysis
from granplugin.runs.session import Session


def check_target(target: Path, loaded: Loaded) -> None:
    """UserError where no file can be written there, or the recipe stands there that it would
    extend, or that is in no file, before the work that fills it."""
    if loaded.path == IN_MEMORY:
        raise UserError(
            f"{target}: the suggested recipe extends the analyzed one, which is in no file; write "
            "that to one first"
        )
    if target.is_dir():
        raise UserError(f"{target}: is a folder; give the suggested recipe a file name")
    if not target.parent.is_dir():
        raise UserError(f"{target}: there is no folder {target.parent}")
    read = {loaded.path, *(Path(mark.file) for mark in loaded.document.marks.values())}
    if target.resolve() in {path.resolve() for path in read}:
        raise UserError(f"{target}: the suggested recipe extends it; give it another file name")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise UserError(f"{target}: cannot be written: permission denied")


def write_recipe(
    found: Analysis, session: Session, target: Path, settings: Sequence[str] = ()
) -> None:
    """Write the suggested recipe, whole or not at all; it extends the analyzed one, which was
    loaded with these `--set` settings.

    Raises UserError where the file cannot be written, and where a suggested rule would change a
    layer that it is not for.
    """
    advice = found.advice
    rules = [Suggested(tuple(o.layers), o.rule, o.reason) for o in advice.overrides]
    text = recipe_text(session.loaded.path, target, rules, advice.said, settings)
    scratch = target.with_name(f".{target.name}.new")
    try:
        scratch.write_text(text, encoding="utf-8")
        suggested = make_plan(load_recipe(scratch, settings), session.layers)
        changed = {name for override in advice.overrides for name in override.layers}
        before = make_plan(session.loaded, session.layers)
        for old, new in zip(before.rows, suggested.rows, strict=True):
            if old.layer not in changed and not same(old, new):
                raise UserError(f"{target}: a suggested rule would change {old.site} too")
        os.replace(scratch, target)
    except OSError as err:
        raise UserError(f"{target}: cannot be written: {err.strerror or err}") from err
    finally:
        scratch.unlink(missing_ok=True)
