"""capabilities: what an engine has, as its table says and as its builds show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from granplugin import backends, capabilities
from granplugin.capabilities import Line, Table
from granplugin.errors import UserError

if TYPE_CHECKING:
    from granplugin.capabilities.probe import Probed, ProbedStructure


def listed(backend: str) -> tuple[Table, tuple[Line, ...]]:
    """The table of the installed version, or of the latest where none is, and its lines."""
    table, _ = _table(backend)
    return table, capabilities.listing(table)


def probed(backend: str) -> tuple[Table, tuple[Probed, ...], tuple[ProbedStructure, ...]]:
    """The table, and each of its cells and structures as a build of today shows it; takes minutes.
    Raises UserError where the engine is not installed."""
    table, reason = _table(backend)
    if reason:
        raise UserError(f"{backend} cannot be probed: {reason}")
    from granplugin.capabilities.probe import probe, probe_structures

    return table, probe(backend), probe_structures(backend)


def _table(backend: str) -> tuple[Table, str | None]:
    reason = backends.backend_of(backend).unavailable()
    version = None if reason else backends.backend_of(backend).version()
    return capabilities.load_table(backend, version), reason
