"""Every result as text and as HTML: its class leads to its view, a renderer gives it a form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.text import Text

from granplugin.report.render import RENDERERS, terminal
from granplugin.report.schema.analysis import Analysis
from granplugin.results.parts import Part
from granplugin.report.schema.run import Report
from granplugin.report.schema.verbs import (
    AuditOutput,
    CapabilitiesOutput,
    CheckOutput,
    CompareOutput,
    DoctorOutput,
    InspectOutput,
    PlanOutput,
    WhyOutput,
)
from granplugin.report.view.analysis import analysis_view
from granplugin.report.view.analysis_whole import analysis_whole_view
from granplugin.report.view.audit import audit_view
from granplugin.report.view.capabilities import capabilities_view
from granplugin.report.view.check import check_view
from granplugin.report.view.compare import compare_view
from granplugin.report.view.doctor import doctor_view
from granplugin.report.view.elements import Section
from granplugin.report.view.inspect import inspect_view
from granplugin.report.view.plan import plan_view, why_view
from granplugin.report.view.run import run_view
from granplugin.report.view.run_whole import run_whole_view

VIEWS: dict[type[Part], Callable[[Any], Section]] = {
    Report: run_view,
    Analysis: analysis_view,
    AuditOutput: audit_view,
    CapabilitiesOutput: capabilities_view,
    CheckOutput: check_view,
    CompareOutput: compare_view,
    DoctorOutput: doctor_view,
    InspectOutput: inspect_view,
    PlanOutput: plan_view,
    WhyOutput: why_view,
}
"""What a terminal and a notebook show of a value."""
WHOLE: dict[type[Part], Callable[[Any], Section]] = {
    Report: run_whole_view,
    Analysis: analysis_whole_view,
}
"""What is left in the run folder to be read: a document with everything."""


def as_text(value: Part, width: int = terminal.WIDTH, **options: Any) -> str:
    """The value as its verb prints it, in lines of `width` characters; only a word longer than
    that, as a path, goes beyond. `options` are its view's. TypeError for a value of a class that
    has no view."""
    return terminal.render(_view(value, **options), width)


def as_lines(value: Part, **options: Any) -> list[Text]:
    """The same, line by line and in colours, for a terminal."""
    return terminal.lines(_view(value, **options))


def as_html(value: Part) -> str:
    """The same as one HTML element; every text is escaped, and there is no script. TypeError for a
    value of a class that has no view."""
    return RENDERERS["html"](_view(value))


def as_markdown(value: Part) -> str:
    """The whole document of a run or an analysis, report.md or analysis.md."""
    return RENDERERS["markdown"](WHOLE[type(value)](value))


def _view(value: Part, **options: Any) -> Section:
    if type(value) not in VIEWS:
        raise TypeError(f"nothing shows a {type(value).__name__}")
    return VIEWS[type(value)](value, **options)
