"""A recipe of modelopt's quant_cfg or a calibrated checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from granplugin.stdout import say

EXAMPLE = "granplugin convert calibrated.pth --model net.py:make"


def convert(
    source: Annotated[
        str, typer.Argument(metavar="CONFIG|MODULE:NAME|CHECKPOINT", show_default=False)
    ],
    model: Annotated[
        Optional[str], typer.Option(help="What makes the network: file.py:function.")
    ] = None,
    out: Annotated[Optional[Path], typer.Option(help="The recipe that is written.")] = None,
) -> int:
    """A recipe of modelopt's quant_cfg, or of a calibrated checkpoint, its ranges to the bit."""
    from granplugin.pipelines.convert import convert

    found = convert(source, model, out)
    for at, file in enumerate(found.files):
        say(f"{'recipe' if at == 0 else 'with'}: {file}")
    for lost in found.lost:
        say(f"not in it: {lost}")
    if not found.whole:
        say(f"next: a recipe with model, data and extends: {found.files[0].name}")
    return 0
