"""What a run folder holds, as values: all that a page is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from granplugin.planning.rows import Row
from granplugin.report.schema.analysis import Analysis
from granplugin.report.schema.page import EnginePlanOf, KeptForPage, PageData
from granplugin.report.schema.run import Report
from granplugin.report.view.elements import Section


@dataclass(frozen=True)
class Kept:
    """`rows` are each variant's; `missing` says of every file that could not be read what is not
    shown for it."""

    name: str
    report: Report | None = None
    analysis: Analysis | None = None
    rows: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    plans: tuple[EnginePlanOf, ...] = ()
    of_run: KeptForPage | None = None
    of_analysis: KeptForPage | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """A page: what is said first, tables below charts, where it is from, and the charts' data."""

    title: str
    verdict: Section
    tables: Section
    provenance: Section
    data: PageData
