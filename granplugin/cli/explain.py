"""Half a page on a word of recipes and reports, or a code."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

EXAMPLE = "granplugin explain degraded"


def explain(
    topic: Annotated[
        Optional[str], typer.Argument(metavar="TOPIC|CODE", show_default=False)
    ] = None,
) -> int:
    """Half a page on a word of recipes and reports, an exit code or a code of lint."""
    from granplugin.pipelines.explain import listing, page
    from granplugin.stdout import results

    results().write(listing() if topic is None else page(topic))
    return 0
