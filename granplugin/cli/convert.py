"""A recipe of modelopt's quant_cfg or a calibrated checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from granplugin.cli import Settings
from granplugin.stdout import say

EXAMPLE = "granplugin convert calibrated.pth --model net.py:make"


def convert(
    source: Annotated[
        str, typer.Argument(metavar="CONFIG|MODULE:NAME|CHECKPOINT|RECIPE", show_default=False)
    ],
    model: Annotated[
        Optional[str], typer.Option(help="What makes the network: file.py:function.")
    ] = None,
    to: Annotated[
        Optional[str],
        typer.Option(help="Of a recipe: quant_cfg (modelopt), or pytorch-quantization."),
    ] = None,
    variant: Annotated[Optional[str], typer.Option(help="Of a recipe: which variant.")] = None,
    out: Annotated[Optional[Path], typer.Option(help="The file that is written.")] = None,
    settings: Settings = None,
) -> int:
    """A recipe of modelopt's quant_cfg or of a calibrated checkpoint, its ranges to the bit; with
    --to, the other way."""
    if to is not None:
        from granplugin.pipelines.convert import convert_recipe

        written = convert_recipe(source, to, variant, out, tuple(settings or ()))
        say(f"{to}: {written.files[0]}")
        for lost in written.lost:
            say(f"not in it: {lost}")
        return 0
    from granplugin.pipelines.convert import convert

    converted = convert(source, model, out)
    for at, file in enumerate(converted.files):
        say(f"{'recipe' if at == 0 else 'with'}: {file}")
    for lost in converted.lost:
        say(f"not in it: {lost}")
    if not converted.whole:
        say(f"next: a recipe with model, data and extends: {converted.files[0].name}")
    return 0
