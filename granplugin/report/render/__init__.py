"""Renderers of views: a module for each form, which has one for every element.

RENDERERS names them; a new form is a module and one entry here.
"""

from __future__ import annotations

from collections.abc import Callable

from granplugin.report.render import html, markdown, terminal
from granplugin.report.view.elements import Section

RENDERERS: dict[str, Callable[[Section], str]] = {
    "terminal": terminal.render,
    "markdown": markdown.render,
    "html": html.render,
}
