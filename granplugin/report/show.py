"""Every result as text and as HTML: its class leads to its view, a renderer gives it a form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

from rich.text import Text

from granplugin.report.render import RENDERERS, terminal
from granplugin.report.schema.analysis import Analysis
from granplugin.report.schema.check import CheckOutput
from granplugin.report.schema.page import EnginePlanOf, PageData
from granplugin.report.schema.run import Report
from granplugin.report.schema.verbs import (
    AuditOutput,
    CapabilitiesOutput,
    CleanOutput,
    CompareOutput,
    CompareRunsOutput,
    DoctorOutput,
    InspectOutput,
    PlanOutput,
    RunsOutput,
    WhyOutput,
)
from granplugin.report.view.elements import Section
from granplugin.report.view.page.kept import Kept, Page
from granplugin.report.view.page.whole import page_view
from granplugin.results.parts import Part

VIEWS: dict[type[Part], str] = {
    Report: "run.run_view",
    Analysis: "analysis.analysis_view",
    AuditOutput: "audit.audit_view",
    CapabilitiesOutput: "capabilities.capabilities_view",
    CheckOutput: "check.check_view",
    CleanOutput: "runs.clean_view",
    CompareOutput: "compare.compare_view",
    CompareRunsOutput: "compare_runs.compare_runs_view",
    DoctorOutput: "doctor.doctor_view",
    InspectOutput: "inspect.inspect_view",
    PlanOutput: "plan.plan_view",
    RunsOutput: "runs.runs_view",
    WhyOutput: "plan.why_view",
}
"""What a terminal and a notebook show of a value: a function of a module of report.view, imported
when it is asked for."""
WHOLE: dict[type[Part], str] = {
    Report: "run_whole.run_whole_view",
    Analysis: "analysis_whole.analysis_whole_view",
}
"""What is left in the run folder to be read: a document with everything."""


def as_text(value: Part, width: int = terminal.WIDTH, **options: Any) -> str:
    """The value as its verb prints it, in lines of `width` characters; only a word longer than
    that, as a path, goes beyond. `options` are its view's. TypeError for a value of a class that
    has no view."""
    return terminal.render(view_of(value, **options), width)


def as_lines(
    value: Part, width: int = terminal.WIDTH, plain: bool = False, **options: Any
) -> list[Text]:
    """The same, line by line and in colours, for a terminal; `plain`, for who hears it, the rows of
    tables are sentences."""
    return terminal.lines(view_of(value, **options), width, plain)


def as_html(value: Part) -> str:
    """The same as one HTML element; every text is escaped, and there is no script. TypeError for a
    value of a class that has no view."""
    return RENDERERS["html"](view_of(value))


def as_markdown(value: Part) -> str:
    """The whole document of a run or an analysis, report.md or analysis.md."""
    return RENDERERS["markdown"](view_of(value, WHOLE))


def as_page(kept: Kept) -> str:
    """What a run folder holds as one HTML file that opens offline; the plot library makes it 5 MB."""
    return _document(page_view(kept))


TITLES: dict[type[Part], str] = {
    AuditOutput: "Audit",
    CompareOutput: "Two engines",
    CompareRunsOutput: "Two runs",
}
"""What a page of a verb's output is called whose view has no title."""


def output_page(value: Part, plans: Sequence[EnginePlanOf]) -> str:
    """A verb's output as such a file, with the plans of engines."""
    view = view_of(value)
    nothing = Section("", ())
    shown = Page(
        title=view.title or TITLES.get(type(value), "granplugin"),
        verdict=replace(view, title=""),
        tables=nothing,
        provenance=nothing,
        data=PageData(plans=list(plans)),
    )
    return _document(shown)


def _document(page: Page) -> str:
    # Jinja2 is imported where a page is made.
    document: Callable[[Page], str] = import_module("granplugin.report.render.page").document
    return document(page)


def view_of(value: Part, views: Mapping[type[Part], str] = VIEWS, **options: Any) -> Section:
    """The value's view; TypeError for a value of a class that has none."""
    if type(value) not in views:
        raise TypeError(f"nothing shows a {type(value).__name__}")
    module, _, function = views[type(value)].partition(".")
    view: Section = getattr(import_module(f"granplugin.report.view.{module}"), function)(
        value, **options
    )
    return view
