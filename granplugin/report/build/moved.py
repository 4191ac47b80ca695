"""What an engine's kernels move, as reports have it."""

from __future__ import annotations

from granplugin.backends.engine_plan import Moved
from granplugin.report.schema.parts import MovedBytes


def moved_bytes(moved: Moved) -> MovedBytes:
    """Its parts and their sum."""
    return MovedBytes(**vars(moved), total=moved.total)
