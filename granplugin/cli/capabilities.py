"""`granplugin capabilities`."""

from __future__ import annotations

from typing import Annotated

import typer

from granplugin.cli import Json
from granplugin.engines import AUDITED

EXAMPLE = "granplugin capabilities --backend tensorrt_rtx"


def capabilities(
    backend: Annotated[str, typer.Option(help="The engine.")] = AUDITED[0],
    probe: Annotated[
        bool, typer.Option(help="Rebuild the small networks behind the table; takes minutes.")
    ] = False,
    json_: Json = False,
) -> int:
    """What an engine has, by operation and granularity; --probe compares it with its builds."""
    from granplugin.pipelines.capabilities import listed, probed
    from granplugin.report import capabilities_text as text

    if not probe:
        table, lines = listed(backend)
        print(text.table_json(table, lines) if json_ else "\n".join(text.table_lines(table, lines)))
        return 0
    table, cells = probed(backend)
    print(text.probe_json(table, cells) if json_ else "\n".join(text.probe_lines(cells)))
    return 3 if any(cell.differs for cell in cells) else 0
