"""The report of the last run in a folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from granplugin.report.schema.earlier import migrated
from granplugin.report.schema.run import Report

log = logging.getLogger(__name__)


def last_report(folder: Path) -> Report | None:
    """The folder's report; None where it has none of this version of granplugin."""
    try:
        data = json.loads((folder / "report.json").read_bytes())
        return Report.model_validate(migrated(Report, data))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as err:
        log.info("%s is not looked at: %s", folder / "report.json", err)
        return None
