"""A page as one file that opens offline: nothing is loaded, and only its own script may run.

Names and recipes are anybody's: every text is escaped (Jinja2), the data are JSON that no HTML
parser can leave, and the content security policy names the two scripts by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from granplugin.report.render import html
from granplugin.report.view.page.kept import Page
from granplugin.visible import visible


def document(page: Page) -> str:
    """The whole HTML file; about 5 MB of it are the plot library."""
    scripts = [_plots(), _own("page.js")]
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=visible(page.title),
            policy=_policy(scripts),
            style=Markup(_own("page.css")),
            verdict=Markup(html.render(page.verdict)),
            tables=Markup(html.render(page.tables)),
            provenance=Markup(html.render(page.provenance)),
            data=Markup(_data(page)),
            has_spots=len(page.data.spots) > 0,
            has_layers=len(page.data.layers) > 0,
            has_tables=len(page.tables.blocks) > 0,
            has_provenance=len(page.provenance.blocks) > 0,
            has_plans=len(page.data.plans) > 0,
            plots=Markup(scripts[0]),
            script=Markup(scripts[1]),
        )
    )


def _data(page: Page) -> str:
    """JSON without a character that ends a script element, and with hidden ones shown."""
    text = json.dumps(_shown(page.data.model_dump(mode="json")), separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return "\n".join(
            visible(line) if "\n" not in value else _line(line) for line in value.split("\n")
        )
    if isinstance(value, dict):
        return {visible(key): _shown(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_shown(each) for each in value]
    return value


def _line(line: str) -> str:
    return line[: len(line) - len(line.lstrip())] + visible(line)


def _policy(scripts: list[str]) -> str:
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader(__name__, "."), autoescape=True, undefined=StrictUndefined
    )


@cache
def _own(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text("utf-8")


@cache
def _plots() -> str:
    return resources.files("plotly.package_data").joinpath("plotly.min.js").read_text("utf-8")
