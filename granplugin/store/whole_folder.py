"""Folders that are put in place whole or not at all."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

_HERE = -100
"""AT_FDCWD: paths are of the current folder."""
_EXCHANGE = 2
"""RENAME_EXCHANGE: two names change places in one step (renameat2(2), Linux 3.15)."""


def put_in_place(made: Path, target: Path) -> None:
    """Give the folder `made` the name `target`; what had it is deleted. Killed at any point, the
    name has one of the two, whole. Where the file system cannot exchange names, it has none for a
    moment, and what had it gets it back if the new one cannot. Raises OSError."""
    if not target.exists():
        os.replace(made, target)
    elif _exchanged(made, target):
        shutil.rmtree(made, ignore_errors=True)
    else:
        before = made.with_name(f"{made.name}.before")
        os.replace(target, before)
        try:
            os.replace(made, target)
        except OSError:
            os.replace(before, target)
            raise
        shutil.rmtree(before, ignore_errors=True)


def _exchanged(first: Path, second: Path) -> bool:
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0)
