"""Files that others wrote: opened only where they are files, and read behind one boundary, where
whatever a reader raises becomes one sentence about the file.

A reader of damaged bytes may raise anything - of a class of its own, of its language's, an assertion,
a panic - so nothing is listed here: what is raised inside `reading` is damage, unless it is our own
sentence or the machine's want of something.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from granplugin.errors import Unhonoured, UserError
from granplugin.machine import lacking

MAX_JSON_BYTES = 2**28


def why_unreadable(path: Path, folder: bool = False) -> str | None:
    """Why this is not a regular file (or a folder) one can read, or None. Symbolic links are
    followed; a device or a pipe is no file: reading it may never end."""
    wanted = "folder" if folder else "file"
    try:
        found = path.stat().st_mode
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ENOTDIR):
            return f"no such {wanted}"
        return f"cannot be read: {err.strerror}"
    except ValueError as err:  # a zero byte, or a character that the system's file names have not
        return f"no such {wanted}: {err}"
    if folder != stat.S_ISDIR(found):
        return f"is {'not ' if folder else ''}a folder; a {wanted} is expected here"
    if not folder and not stat.S_ISREG(found):
        return "is not a regular file"
    if not os.access(path, os.R_OK):
        return f"cannot be read: {os.strerror(errno.EACCES)}"
    return None


def check_file(path: Path, error: type[UserError]) -> None:
    """Raises `error` where this is not a regular file one can read."""
    if said := why_unreadable(path):
        raise error(_joined(str(path), said))


def _joined(what: str, said: str) -> str:
    return f"{what} {said}" if said.startswith("is ") else f"{what}: {said}"


@contextmanager
def reading(what: str, error: type[UserError], damage: str = "damaged") -> Iterator[None]:
    """What is raised inside is said as `error`: `what`, and that it is `damage`; an error that is a
    sentence already passes, and what the machine lacks is said as that."""
    try:
        yield
    except (UserError, Unhonoured, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as err:  # a panic of Rust's is no Exception
        if said := lacking(err):
            raise error(f"{what}: cannot be read: {said}") from err
        raise error(_joined(what, damage)) from err


def read_text(path: Path, error: type[UserError], most: int) -> str:
    """A file's text, without a byte order mark. Raises `error`, which names the file: no regular
    file, over `most` bytes, not UTF-8."""
    check_file(path, error)
    with reading(str(path), error, "not UTF-8 text"):
        if path.stat().st_size > most:
            raise error(f"{path}: larger than {most / 1e6:,.0f} MB")
        return path.read_text(encoding="utf-8-sig")


def read_json(path: Path, error: type[UserError], what: str = "complete JSON") -> Any:
    """What a JSON file holds. Raises `error`, which names the file."""
    text = read_text(path, error, MAX_JSON_BYTES)
    return parse_json(text, str(path), error, what)


def parse_json(text: str, where: str, error: type[UserError], what: str = "complete JSON") -> Any:
    """What a JSON text holds: TensorRT's, too, which writes the separators of its metadata
    unescaped. Raises `error`: not JSON, nested too deep, a number of thousands of digits."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError) as err:
        told = "it is nested too deep" if isinstance(err, RecursionError) else str(err)
        if isinstance(err, ValueError) and not isinstance(err, json.JSONDecodeError):
            told = "a number of over 4,300 digits"  # Python's limit, in Python's words
        raise error(f"{where}: not {what}: {told}".removeprefix(": ")) from err
