"""A commented recipe to start from, made for your network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from granplugin.cli.next_steps import Next, say_next, typed
from granplugin.stdout import say

EXAMPLE = "granplugin init net.py:make --data samples.npz"


def init(
    target: Annotated[
        str,
        typer.Argument(metavar="FILE.py:FUNCTION|MODULE:FUNCTION|FILE.onnx", show_default=False),
    ],
    data: Annotated[
        Optional[str],
        typer.Option(help="Calibration data: an .npz, a folder of images, or file.py:function."),
    ] = None,
    weights: Annotated[
        Optional[Path], typer.Option(help="A safetensors or torch file with the state dict.")
    ] = None,
    shape: Annotated[
        Optional[list[str]],
        typer.Option(help="Of one sample, as image=3x224x224, where there are no data."),
    ] = None,
    out: Annotated[
        Optional[Path], typer.Option(help="The recipe; default: <function>.yaml here.")
    ] = None,
) -> int:
    """A commented recipe to start from, after a look at the network and the data."""
    from granplugin.pipelines.init import init

    started = init(target, data, weights, shape or (), out)
    say(f"recipe: {started.recipe}")
    words, why = typed(started.recipe), "build and measure it"
    if started.data:
        say(f"data: {started.data}, to be filled in")
        why = f"once batches() in {started.data} is filled in"
    say_next([Next(("apply", *words), why)])
    return 0
