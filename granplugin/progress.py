"""What a stage tells while it runs: a bar with the time left on a terminal, lines in a pipe.

In a pipe a stage tells nothing for its first SECONDS, then a line, and others ever further apart.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.console import Console
from rich.default_styles import DEFAULT_STYLES
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.theme import Theme

from granplugin.words import duration

T = TypeVar("T")

_COLOURLESS = Theme(
    {
        **{name: "none" for name in DEFAULT_STYLES if name.startswith("progress.")},
        "bar.back": "grey23",
        **{f"bar.{part}": "grey70" for part in ("pulse", "complete", "finished")},
    }
)  # fmt: skip
"""A colour says good, bad or not known, and a bar is neither."""


def console_of(redrawn: bool | None = None) -> Console:
    """Of stderr; by default bars are `redrawn` where it is a terminal."""
    return Console(stderr=True, theme=_COLOURLESS, force_terminal=redrawn)


console = console_of()
log = logging.getLogger(__name__)

SECONDS = 5.0
"""How long a stage may be silent in a pipe."""
MOST_APART = 60.0
"""The most between two of its lines."""


class Stage(Protocol):
    """A stage that is running."""

    def now(self, doing: str) -> None:
        """Tell what it is at."""

    def done(self, steps: int = 1) -> None:
        """So many more of its steps are done."""


@contextmanager
def stage(what: str, total: int | None = None, drawn: bool = True) -> Iterator[Stage]:
    """A stage of `total` steps, where their number is known; one may run within another. Where it
    is not `drawn`, since that would disturb what is timed, it tells lines on a terminal too."""
    with _bar(what, total) if drawn and console.is_terminal else _told(what, total) as running:
        yield running


def track(
    items: Iterable[T],
    what: str,
    total: int | None = None,
    names: Sequence[str] = (),
) -> Iterator[T]:
    """Iterate, as a stage with a step for each item; `names` say what they are of, where they are
    made one by one."""
    with stage(what, len(names) or total) as running:
        left = iter(names)
        running.now(next(left, ""))
        for item in items:
            yield item
            running.done()
            running.now(next(left, ""))


class _Bar:
    """A task of the bars that are drawn."""

    def __init__(self, bars: Progress, what: str, total: int | None) -> None:
        self.bars, self.what = bars, what
        self.task = bars.add_task(what, total=total)

    def now(self, doing: str) -> None:
        self.bars.update(self.task, description=f"{self.what}: {doing}" if doing else self.what)

    def done(self, steps: int = 1) -> None:
        self.bars.advance(self.task, steps)


_bars: list[Progress] = []
"""Those that are drawn now: a terminal has room for one such, of which a stage within is a line."""


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[Stage]:
    if _bars:
        bar = _Bar(_bars[-1], what, total)
        try:
            yield bar
        finally:
            bar.bars.remove_task(bar.task)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        _bars.append(bars)
        try:
            yield _Bar(bars, what, total)
        finally:
            _bars.remove(bars)


class _Lines:
    """What a thread beside the stage logs of it."""

    def __init__(self, what: str, total: int | None) -> None:
        self.what, self.total, self.steps, self.doing = what, total, 0, ""
        self.began = time.monotonic()
        self.ended = threading.Event()

    def now(self, doing: str) -> None:
        self.doing = doing

    def done(self, steps: int = 1) -> None:
        self.steps += steps

    def run(self) -> None:
        due = SECONDS
        while not self.ended.wait(max(self.began + due - time.monotonic(), 0)):
            log.info("%s", self.line(time.monotonic() - self.began))
            due += min(max(due, SECONDS), MOST_APART)

    def line(self, seconds: float) -> str:
        """
        >>> running = _Lines("local errors", 40)
        >>> running.done(10)
        >>> running.line(15.0)
        'local errors: 10 of 40 after 15 s, about 45 s left'
        >>> _Lines("exporting", None).line(75.0)
        'exporting: after 1 min 15 s'
        """
        at = f"{self.doing} " if self.doing else ""
        if self.total is not None:
            at = f"{self.steps} of {self.total} " + (f"({self.doing}) " if self.doing else "")
        elif self.steps:
            at = f"{self.steps} " + (f"({self.doing}) " if self.doing else "")
        left = ""
        if self.total is not None and 0 < self.steps < self.total:
            left = f", about {duration(seconds * (self.total - self.steps) / self.steps)} left"
        return f"{self.what}: {at}after {duration(seconds)}{left}"


@contextmanager
def _told(what: str, total: int | None) -> Iterator[Stage]:
    running = _Lines(what, total)
    thread = threading.Thread(target=running.run, name=f"progress of {what}", daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.ended.set()
        thread.join()
