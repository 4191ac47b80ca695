"""A run's folder: one run at a time, files whole or not at all, stages reused by content."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from granplugin.errors import RunError, Unhonoured, UserError
from granplugin.machine import lacking
from granplugin.store.cache import Cache

log = logging.getLogger(__name__)


class RunFolder:
    """`runs/<name>`: results on top, and in `cache/` what stages made, named by content.

    What is `kept` in the cache is complete; so an interrupted run resumes where it was, and results
    are put in place only when all of them exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cache = path / "cache"
        self.kept = Cache(self.cache)
        self.published: set[Path] = set()

    def publish(self, name: str, content: Path | str) -> Path:
        """Put a result in place: a cached file (copied), or text."""
        path = self.path / name
        scratch = path.with_name(f".{path.name}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                scratch.write_text(content, encoding="utf-8")
            else:
                scratch.unlink(missing_ok=True)
                shutil.copyfile(content, scratch)
            os.replace(scratch, path)
            self.published |= {path, path.parent}
        except OSError as err:
            scratch.unlink(missing_ok=True)
            raise RunError(f"{path}: cannot be written: {err.strerror or err}") from err
        return path

    def forget_unused(self) -> None:
        """Delete what this run neither used nor published, so the folder does not grow."""
        used = self.kept.used | self.published
        for path in (*self.cache.iterdir(), *self.path.glob("variants/*")):
            if path not in used:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def default_folder(name: str) -> Path:
    """Where the run of a recipe of this name is kept."""
    return Path("runs") / name


@contextmanager
def open_run(path: Path, log_name: str = "log.txt") -> Iterator[RunFolder]:
    """The run folder, made if missing and held against other runs; the log in it tells all of it.

    A user's mistake leaves no folder that was not there before; only the log, if it has the
    traceback of the user's own code. Raises RunError: not writable, full, or in use by another run.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    log_file = path / log_name
    with _held(path) as run:
        try:
            with _want_told(path), _logged(log_file):
                yield run
        except UserError as err:
            told = log_file.is_file() and "\nTraceback" in log_file.read_text("utf-8", "replace")
            if made and not told:
                shutil.rmtree(path, ignore_errors=True)
                _remove_empty(made[1:])
            elif made:
                shutil.rmtree(run.cache, ignore_errors=True)
            if told:
                raise type(err)(f"{err}; traceback: {log_file}") from err
            raise


@contextmanager
def _held(path: Path) -> Iterator[RunFolder]:
    run = RunFolder(path)
    lock = FileLock(path / ".lock")
    try:
        run.cache.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"{path}: in use by another run; wait for it, or give --out") from None
    except OSError as err:
        raise RunError(f"{path}: cannot be used: {err.strerror or err}; give --out") from err
    try:
        # What a killed run left half-written.
        for left in (*run.cache.glob(".making-*"), *path.rglob(".*.new")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield run
    finally:
        lock.release()


@contextmanager
def _want_told(path: Path) -> Iterator[None]:
    """What the machine lacks, whichever library found it lacking."""
    try:
        yield
    except (UserError, Unhonoured):
        raise
    except Exception as err:
        if (said := lacking(err)) is None:
            raise
        raise RunError(f"{path}: {said}") from err


@contextmanager
def _logged(file: Path) -> Iterator[None]:
    """Everything that is logged, chatter of libraries included."""
    try:
        handler = logging.FileHandler(file, mode="w", encoding="utf-8")
    except OSError as err:
        raise RunError(f"{file}: cannot be written: {err.strerror}; give --out") from err
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
