"""The command line: each module here is a verb, which parses, makes one call, prints and has an
exit code. This is what they share: the program, its options and the words of arguments.

A verb's module has a function of its name (import_ is `import`) whose docstring is its help, and
may have an EXAMPLE. It imports its pipeline inside that function: `--help` answers at once.
"""

from __future__ import annotations

import logging
import pkgutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, cast

import typer
from rich.console import Console
from rich.logging import RichHandler

import granplugin
from granplugin import progress
from granplugin.progress import console
from granplugin.stdout import aside, results, say_json
from granplugin.visible import visible_lines

if TYPE_CHECKING:
    from granplugin.results.parts import Part

ORDER = (
    "init", "convert", "apply", "export", "import", "inspect", "plan", "analyze", "check", "schema", "capabilities",
    "audit", "compare", "report", "runs", "clean", "explain", "doctor",
)  # fmt: skip
"""Of the verbs in the help; the others follow, by name."""

Recipes = Annotated[list[Path], typer.Argument(metavar="RECIPE...", show_default=False)]
OneRecipe = Annotated[Path, typer.Argument(metavar="RECIPE", show_default=False)]
Settings = Annotated[
    Optional[list[str]],
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key, as data.batch_size=8."),
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
    app = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Quantization granularity, layer by layer, for NVIDIA modelopt and TensorRT.",
        epilog="Start with: granplugin apply recipes/digits_mobilenet.yaml",
    )
    app.callback()(options)
    for verb, module in verbs().items():
        found = import_module(module)
        example = getattr(found, "EXAMPLE", None)
        app.command(name=verb, epilog=f"Example: {example}" if example else None)(
            aside(getattr(found, module.rpartition(".")[2]))
        )
    return app


def verbs() -> dict[str, str]:
    """Verb -> its module, in the order of the help."""
    found = {each.name.rstrip("_"): each.name for each in pkgutil.iter_modules(__path__)}
    order = [*(verb for verb in ORDER if verb in found), *sorted(found.keys() - set(ORDER))]
    return {verb: f"{__name__}.{found[verb]}" for verb in order}


def show(value: Part, json_: bool, **options: Any) -> None:
    """A result on stdout: as JSON, or as its view with these options, in colour on a terminal."""
    if json_:
        say_json(value.model_dump_json(indent=1))
        return
    from granplugin.report.show import as_lines

    stdout = Console(file=results(), highlight=False)
    for line in as_lines(value, **options):
        stdout.print(line, soft_wrap=True)


class _Visible(logging.Formatter):
    """A message whose names cannot steer the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return visible_lines(super().format(record))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"granplugin {granplugin.__version__}")
        raise typer.Exit()


def options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell each step.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of every verb."""
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # where the log cannot be written, the run says so itself
    root = logging.getLogger()
    root.handlers.clear()
    root.setLevel(logging.INFO)
    logging.getLogger("granplugin").setLevel(logging.DEBUG)
    for chatty in ("onnxscript", "onnx_ir"):  # they print every node, several times
        logging.getLogger(chatty).setLevel(logging.WARNING)
    handler = RichHandler(
        # The progress bars' console, so that lines go above the bar.
        console=console, show_time=False, show_path=False, show_level=False,
        markup=False, highlighter=None,
    )  # fmt: skip
    least = logging.INFO if verbose or console.is_terminal else logging.WARNING
    handler.addFilter(
        lambda record: (
            record.name.startswith("granplugin")
            and (record.levelno >= least or record.name == progress.__name__)
        )
    )
    handler.setFormatter(_Visible())
    handler.setLevel(logging.INFO)
    root.addHandler(handler)
