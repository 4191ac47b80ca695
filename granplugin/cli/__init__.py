"""The command line: a verb a module, which parses, makes one call, prints and has an exit code.
This is what they share: the words of arguments, and how a result is shown.

A verb's module says in its first line what the verb does, has a function of its name (import_ is
`import`), whose docstring is its help, and may have an EXAMPLE. It imports its pipeline inside that
function: `--help` answers at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, cast

import typer

import granplugin
from granplugin.cli.telling import Plain, Quiet, Telling, Verbose, telling
from granplugin.stdout import results, say_json

if TYPE_CHECKING:
    from granplugin.results.parts import Part

Recipes = Annotated[list[Path], typer.Argument(metavar="RECIPE...", show_default=False)]
OneRecipe = Annotated[Path, typer.Argument(metavar="RECIPE", show_default=False)]
Settings = Annotated[
    Optional[list[str]],
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key, as data.batch_size=8."),
]
From = Annotated[
    Optional[Path],
    typer.Option(
        "--from",
        metavar="CHECKPOINT",
        help="What mto.save wrote of the model, quantized: taken over; rules change what they name.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON; `granplugin schema` documents it.")]
Shapes = Annotated[
    Optional[list[str]],
    typer.Option(
        metavar="INPUT=SHAPE",
        help="What open lengths are built for, as x=1x3x640x640 or x=MIN:OPT:MAX.",
    ),
]
Out = Annotated[Optional[Path], typer.Option(help="The run folder; default runs/<name>.")]

Html = Annotated[
    Optional[Path], typer.Option(help="Write it as a page too, with the engine's plan.")
]

# ClickException, which typer has of click or of its own, depending on its version.
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__mro__[2])


def call(argv: Sequence[str]) -> int:
    """Run one command line; the exit code. Raises what the verb raises."""
    command = typer.main.get_command(program())
    try:
        result = command.main(args=list(argv), prog_name="granplugin", standalone_mode=False)
    except typer.Abort as err:  # typer's for ^C and, of all things, for an EOFError
        raise err.__cause__ or KeyboardInterrupt from None
    except _UsageError as err:
        err.show()
        return err.exit_code
    if result == 130:  # newer typers' for ^C
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def program() -> typer.Typer:
    """The program with all its verbs."""
    from granplugin.cli.verbs import Verbs

    app = typer.Typer(
        cls=Verbs,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        help="Quantization granularity, layer by layer, for NVIDIA modelopt and TensorRT.",
        epilog="Start with: granplugin apply recipes/digits_mobilenet.yaml",
    )
    app.callback()(options)
    return app


def taking(settings: Sequence[str] | None, checkpoint: Path | None) -> list[str]:
    """The settings with those that take a quantized checkpoint over."""
    if checkpoint is None:
        return [*(settings or ())]
    # Paths of a recipe start at it, those of a command line here. As YAML it may need quotes.
    path = str(checkpoint.absolute())
    path = path if _PLAIN.fullmatch(path) else json.dumps(path)
    return [f"model.weights={path}", "model.quantized=keep", *(settings or ())]


_PLAIN = re.compile(r"[\w./-]*[A-Za-z_][\w./-]*")


def show(value: Part, json_: bool, **options: Any) -> None:
    """A result on stdout: as JSON, or as its view with these options, as wide as the terminal and
    in its colours."""
    if json_:
        say_json(value.model_dump_json(indent=1))
        return
    from rich.console import Console

    from granplugin.report.show import as_lines

    plain = telling().plain
    stdout = Console(file=results(), highlight=False, no_color=plain or None)
    wide = {"width": stdout.width} if stdout.is_terminal else {}
    for line in as_lines(value, plain=plain, **wide, **options):
        stdout.print(line, soft_wrap=True)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"granplugin {granplugin.__version__}")
        raise typer.Exit()


def options(
    context: typer.Context,
    quiet: Quiet = False,
    verbose: Verbose = False,
    plain: Plain = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of every verb."""
    context.obj = Telling(quiet=quiet, verbose=verbose, plain=plain)
