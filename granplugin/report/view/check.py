"""Recipes that were checked: those that are good, and how far they were checked."""

from __future__ import annotations

from granplugin.report.schema.check import CheckOutput
from granplugin.report.view.elements import Section, Verbatim


def check_view(output: CheckOutput) -> Section:
    """A line for each good recipe; what is wrong with the others goes where errors go."""
    return Section("", (Verbatim(tuple(each.line for each in output.recipes if each.ok)),))
