"""Two engines, files, variants or runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from granplugin.cli import Html, Json, Shapes, show
from granplugin.cli.gate import Annotations, Junit, gate
from granplugin.engines import AUDITED

EXAMPLE = "granplugin compare runs/x/variants/fp32 runs/x/variants/x"


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", show_default=False)],
    backend: Annotated[str, typer.Option(help="What ONNX is built with.")] = AUDITED[0],
    batch: Annotated[int, typer.Option(min=1, help="Samples ONNX is built here for.")] = 1,
    shapes: Shapes = None,
    profile: Annotated[
        Optional[list[Path]], typer.Option(help="trtexec's --exportProfile, of A and then of B.")
    ] = None,
    html: Html = None,
    junit: Junit = None,
    annotations: Annotations = None,
    json_: Json = False,
) -> int:
    """Two engines side by side: engine folders, layers files, ONNX files or variants of a run; or what
    two runs measured."""
    from granplugin.pipelines.compare import compare

    with gate("compare", junit, annotations) as decided:
        comparison = compare(a, b, backend, batch, profile or (), shapes or ())
        decided.decide(comparison.output())
    if html:
        from granplugin.runs.pages import write_verb_page

        write_verb_page(
            html,
            comparison.output(),
            {name: (backend, plan) for name, plan in comparison.named_plans},
        )
    show(comparison.output(), json_)
    return 0
