"""How much a verb tells, and in which form: the options of every verb."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.text import Text

from granplugin import progress
from granplugin.visible import visible_lines

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only the result, warnings and errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tell each step.")]
Plain = Annotated[
    bool,
    typer.Option(
        "--plain", help="For a screen reader: rows as sentences, no colour, nothing redrawn."
    ),
]


@dataclass(frozen=True)
class Telling:
    """What was asked for; a step that is told beats a run that is quiet."""

    quiet: bool = False
    verbose: bool = False
    plain: bool = False

    def and_(self, other: Telling) -> Telling:
        """What both ask for."""
        return Telling(
            self.quiet or other.quiet, self.verbose or other.verbose, self.plain or other.plain
        )

    @contextmanager
    def told(self) -> Iterator[None]:
        """Tell so what happens meanwhile."""
        self.tell()
        before = _TELLING.set(self)
        try:
            yield
        finally:
            _TELLING.reset(before)

    def tell(self) -> None:
        """Send what is logged to stderr so, from now on."""
        terminal = sys.stderr is not None and sys.stderr.isatty()
        redrawn = None if not (self.plain or self.quiet) else False
        # The progress bars' console, so that lines go above the bar.
        progress.console = progress.console_of(redrawn)
        logging.captureWarnings(True)
        logging.raiseExceptions = False  # where the log cannot be written, the run says so itself
        root = logging.getLogger()
        root.handlers.clear()
        root.setLevel(logging.INFO)
        logging.getLogger("granplugin").setLevel(logging.DEBUG)
        for chatty in ("onnxscript", "onnx_ir"):  # they print every node, several times
            logging.getLogger(chatty).setLevel(logging.WARNING)
        steps = self.verbose or (terminal and not self.quiet)
        least = logging.INFO if steps else logging.WARNING
        lines = self.verbose or not self.quiet
        handler = _Lines(logging.INFO)
        handler.addFilter(
            lambda record: (
                record.name.startswith("granplugin")
                and (record.levelno >= least or (lines and record.name == progress.__name__))
            )
        )
        root.addHandler(handler)


_TELLING: ContextVar[Telling] = ContextVar("telling", default=Telling())  # noqa: B039


def telling() -> Telling:
    """Of the verb that runs."""
    return _TELLING.get()


class _Lines(logging.Handler):
    """Messages on stderr, whose names cannot steer the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            said = Text(visible_lines(self.format(record)))
            # A pipe's reader looks for words in lines, a terminal's for whole words.
            progress.console.print(said, soft_wrap=not progress.console.is_terminal)
        except Exception:
            self.handleError(record)
