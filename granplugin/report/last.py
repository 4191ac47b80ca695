"""The report of the last run in a folder."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import ValidationError

from granplugin.report.schema.run import Report

log = logging.getLogger(__name__)


def last_report(folder: Path) -> Report | None:
    """The folder's report; None where it has none of this version of granplugin."""
    try:
        return Report.model_validate_json((folder / "report.json").read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as err:
        log.info("%s is not looked at: %s", folder / "report.json", err)
        return None
