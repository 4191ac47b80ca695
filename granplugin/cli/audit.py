"""What an engine does with any Q/DQ ONNX; and lint of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from granplugin.cli import Html, Json, Shapes, show
from granplugin.cli.gate import Annotations, Junit, gate
from granplugin.cli.next_steps import after_audit, say_next
from granplugin.engines import AUDITED

EXAMPLE = "granplugin audit model.onnx --layers layers.json"


def audit(
    onnx: Annotated[Optional[Path], typer.Argument(metavar="ONNX", show_default=False)] = None,
    backend: Annotated[str, typer.Option(help=f"{' or '.join(AUDITED)}.")] = AUDITED[0],
    layers: Annotated[
        Optional[Path],
        typer.Option(help="An engine built elsewhere: trtexec's --exportLayerInfo, or layers.txt."),
    ] = None,
    profile: Annotated[Optional[Path], typer.Option(help="Its trtexec --exportProfile.")] = None,
    plan: Annotated[
        Optional[Path], typer.Option(help="The plan.json the file was made by.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples it is built for here.")] = 1,
    html: Html = None,
    shapes: Shapes = None,
    explain: Annotated[
        Optional[str], typer.Option(metavar="CODE", help="The page of a code of lint.")
    ] = None,
    junit: Junit = None,
    annotations: Annotations = None,
    json_: Json = False,
) -> int:
    """What an engine does with any Q/DQ ONNX: a verdict for every quantized site, and lint."""
    if explain is not None:
        from granplugin.audits.lint_pages import page
        from granplugin.stdout import results

        results().write(page(explain))
        return 0
    if onnx is None:
        raise typer.BadParameter("give the ONNX file that is audited", param_hint="ONNX")
    from granplugin.pipelines.audit import audit

    with gate("audit", junit, annotations) as decided:
        audited = audit(onnx, backend, layers, profile, plan, batch, shapes or ())
        output = audited.output()
        decided.decide(output)
    if html:
        from granplugin.runs.pages import write_verb_page

        plans = {} if audited.plan is None else {str(audited.onnx): (audited.engine, audited.plan)}
        write_verb_page(html, output, plans)
    show(output, json_)
    if not json_:
        say_next(after_audit(output))
    return audited.exit_code
