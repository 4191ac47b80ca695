"""How much of a network is quantized, as it is written."""

from __future__ import annotations

from dataclasses import asdict

from granplugin.planning import coverage
from granplugin.report.schema.parts import Coverage


def covered(found: coverage.Coverage) -> Coverage:
    """The schema's value."""
    return Coverage(**asdict(found))
