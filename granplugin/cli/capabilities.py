"""What an engine has, by operation and granularity."""

from __future__ import annotations

from typing import Annotated

import typer

from granplugin.cli import Json, show
from granplugin.engines import AUDITED

EXAMPLE = "granplugin capabilities --backend tensorrt_rtx"


def capabilities(
    backend: Annotated[str, typer.Option(help="The engine.")] = AUDITED[0],
    probe: Annotated[
        bool, typer.Option("--probe", help="Rebuild the small networks behind the table (minutes).")
    ] = False,
    json_: Json = False,
) -> int:
    """What an engine has, by operation and granularity; --probe compares it with its builds."""
    from granplugin.pipelines.capabilities import listed, probed
    from granplugin.report.build.verbs import capabilities_output, probe_output

    if not probe:
        show(capabilities_output(*listed(backend)), json_)
        return 0
    table, cells, structures = probed(backend)
    show(probe_output(table, cells, structures), json_)
    differ = any(cell.differs for cell in cells) or any(each.differs for each in structures)
    return 3 if differ else 0
