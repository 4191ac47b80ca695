"""stdout is for results alone, and what becomes of its reader is no business of the run.

What the user's code and libraries print goes to stderr. A reader that has gone, a full disk, or no
stdout at all end what is written, and never the run: the exit code is the verb's.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from contextvars import ContextVar
from functools import wraps
from typing import Any, TextIO

from granplugin.visible import visible_json, visible_lines


class Results(io.TextIOBase):
    """A stream that raises nothing; `lost` says why not all that was written has arrived."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.lost: OSError | ValueError | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self.stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return self._tried(lambda stream: stream.isatty()) or False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self.stream is None:
            raise io.UnsupportedOperation("there is no stdout")
        return self.stream.fileno()

    def write(self, text: str) -> int:
        self._tried(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._tried(lambda stream: stream.flush())

    def _tried(self, act: Callable[[TextIO], Any]) -> Any:
        if self.stream is None or self.lost is not None:
            return None
        try:
            return act(self.stream)
        except (OSError, ValueError) as err:  # ValueError: of a stream that is closed
            self.lost = err
            self._forget()
        return None

    def _forget(self) -> None:
        """What is buffered goes nowhere: Python would try again at its end, and complain."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)


_RESULTS: ContextVar[Results | None] = ContextVar("results", default=None)


@contextmanager
def results_to(results: Results) -> Iterator[None]:
    """What is written to stdout meanwhile are results, but for what runs `aside`."""
    before = _RESULTS.set(results)
    try:
        with redirect_stdout(results):
            yield
    finally:
        results.flush()
        _RESULTS.reset(before)


def aside(verb: Callable[..., int]) -> Callable[..., int]:
    """The verb, with all that is printed while it runs on stderr, but for its results."""

    @wraps(verb)
    def run(*words: Any, **options: Any) -> int:
        with redirect_stdout(sys.stderr):
            return verb(*words, **options)

    return run


def results() -> TextIO:
    """Where a verb's results go."""
    return _RESULTS.get() or sys.stdout  # type: ignore[return-value]


def say(text: str = "") -> None:
    """Lines of a result."""
    results().write(f"{visible_lines(text)}\n")


def say_json(text: str) -> None:
    """A result that is JSON."""
    results().write(f"{visible_json(text)}\n")


def own_streams() -> Results:
    """Of a process of our own: the results' stream, with the process's stdout turned to stderr, so
    that libraries in C are aside too. What is closed is opened, lest a file take its number."""
    has_stdout = _is_open(1)
    for number in (0, 1, 2):
        if not _is_open(number):
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    if not has_stdout:
        sys.stdout = sys.stderr
        return Results(None)
    own = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    os.dup2(2, 1)
    return Results(own)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
