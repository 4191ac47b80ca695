"""What a verb decides, for a CI server: --junit and --annotations."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from granplugin.errors import RunError, Unhonoured, UserError

if TYPE_CHECKING:
    from granplugin.report.view.cases import Case
    from granplugin.results.parts import Part


class Server(StrEnum):
    """Whose annotations; report.render.annotations has what each reads."""

    github = "github"


Junit = Annotated[
    Optional[Path],
    typer.Option(metavar="FILE", help="Write each limit and row as a test case, in JUnit's XML."),
]
Annotations = Annotated[
    Optional[Server],
    typer.Option(help="Mark the recipe's lines that failed, on stderr for GitHub."),
]


@dataclass
class Gate:
    """What is asked for of a verb, and what it has decided."""

    verb: str
    junit: Path | None
    annotations: Server | None
    cases: list[Case] = field(default_factory=list)

    def decide(self, value: Part) -> None:
        """Take the cases of what the verb prints with --json."""
        if self.junit is None and self.annotations is None:
            return
        from granplugin.report.view.cases import cases_of

        self.cases += cases_of(value)


@contextmanager
def gate(verb: str, junit: Path | None, annotations: Server | None) -> Iterator[Gate]:
    """Write what the verb decides meanwhile, and why it ended where it is refused. RunError where
    the file cannot be written, which is tried before the work begins."""
    own, began = Gate(verb, junit, annotations), time.monotonic()
    if junit is None and annotations is None:
        yield own
        return
    _write(junit, "")
    try:
        yield own
    except (UserError, Unhonoured) as err:
        from granplugin.report.view.cases import refused

        own.cases += refused(verb, str(err))
        raise
    except BaseException as err:
        from granplugin.report.view.cases import ended

        own.cases.append(ended(verb, err))
        raise
    finally:
        _tell(own, time.monotonic() - began)


def _tell(own: Gate, seconds: float) -> None:
    from granplugin.report.render import junit
    from granplugin.report.render.annotations import ANNOTATIONS

    _write(own.junit, junit.render(f"granplugin {own.verb}", own.cases, seconds))
    if own.annotations is not None:
        for line in ANNOTATIONS[own.annotations](own.cases):
            print(line, file=sys.stderr)


def _write(file: Path | None, text: str) -> None:
    if file is None:
        return
    from granplugin.store.whole_file import write_whole

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, text.encode())
    except OSError as err:
        raise RunError(f"{file}: cannot be written: {err.strerror}") from err
