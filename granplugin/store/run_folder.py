"""A run's folder: one run at a time, files whole or not at all, stages reused by content."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout

from granplugin.errors import LackError, RunError, Unhonoured, UserError
from granplugin.machine import lacking
from granplugin.store.cache import Cache
from granplugin.store.companions import SUFFIX, companions, put_beside
from granplugin.store.whole_file import write_whole


class RunFolder:
    """`runs/<name>`: results on top, and in `cache/` what stages made, named by content.

    What is `kept` in the cache is complete; so an interrupted run resumes where it was. Results are
    put in place all or none (`publishing`): until then they are in `results`, which is the folder
    itself at any other time.
    """

    def __init__(self, path: Path) -> None:
        self.path = self.results = path
        self.cache = path / "cache"
        self.kept = Cache(self.cache)
        self.published: set[Path] = set()

    def publish(self, name: str, content: Path | str) -> Path:
        """Put a result in place: a cached file (copied, with what belongs to it), or text."""
        path = self.results / name
        scratch = path.with_name(f".{path.name}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                scratch.write_text(content, encoding="utf-8")
            else:
                scratch.unlink(missing_ok=True)
                self.published.update(put_beside(content, path))
                shutil.copyfile(content, scratch)
            os.replace(scratch, path)
            self.published |= {path, path.parent}
        except OSError as err:
            scratch.unlink(missing_ok=True)
            shown = self.path / name
            raise RunError(f"{shown}: cannot be written: {err.strerror or err}") from err
        return path

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Whatever is published inside replaces what was there all at once, or not at all: it is
        gathered beside it, with links to what stays, and one rename decides. Whoever is killed
        behind that leaves the rest to the next run, and no report until then."""
        gathered = self.path / _GATHERED
        shutil.rmtree(gathered, ignore_errors=True)
        self.results = gathered / self.path.resolve().name
        try:
            _link(self.path, self.results)
            yield
            _leave_only(self.results, self.published)
            os.replace(self.results, self.path / _DECIDED)
        except OSError as err:
            raise RunError(f"{self.path}: cannot be written: {err.strerror or err}") from err
        finally:
            self.results = self.path
            shutil.rmtree(gathered, ignore_errors=True)
        put_in_place(self.path)

    def forget_unused(self) -> None:
        """Delete what this run neither used nor published, so the folder does not grow."""
        used = self.kept.used | self.published
        for path in (*self.cache.iterdir(), *self.results.glob("variants/*")):
            if path not in used:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        named = {each for file in self.results.glob("*.onnx") for each in companions(file)}
        for path in set(self.results.glob(f"*{SUFFIX}")) - named:
            path.unlink()


ENDING_SECONDS = 2.0
"""How long another run may take to end: a process that was killed holds its lock until it is gone."""

_GATHERED, _DECIDED, _REPLACED = ".publishing", ".published", ".replaced"
_TREE = "variants"
_REPORTS = ("report.", "analysis.")
"""How the names of files begin that speak of the others."""


def put_in_place(path: Path) -> None:
    """Move results that were decided on to where they belong: what speaks of the others is taken
    away first and put back last. Done again after a kill, it goes on where that was. From the first
    change on it renames and unlinks alone, which takes no descriptor."""
    decided, replaced = path / _DECIDED, path / _REPLACED
    if not decided.is_dir():
        return
    try:
        if replaced.exists():
            shutil.rmtree(replaced)
        names = sorted(entry.name for entry in decided.iterdir())
        reports = [name for name in names if name.startswith(_REPORTS)]
        for name in reports:
            (path / name).unlink(missing_ok=True)
        if _TREE in names and (path / _TREE).exists():
            os.replace(path / _TREE, replaced)
        for name in (*(name for name in names if name not in reports), *reports):
            os.replace(decided / name, path / name)
        decided.rmdir()
    except OSError as err:
        raise RunError(f"{path}: cannot be written: {err.strerror or err}") from err
    shutil.rmtree(replaced, ignore_errors=True)  # what cannot be deleted now is by the next run


def _link(path: Path, to: Path) -> None:
    """The results of a folder under other names, which take no room."""
    to.mkdir(parents=True)
    for file in (*path.glob("*"), *path.glob(f"{_TREE}/**/*")):
        if file.is_file() and not file.name.startswith("."):
            linked = to / file.relative_to(path)
            linked.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, linked)
            except OSError:  # a file system without links
                shutil.copyfile(file, linked)


def _leave_only(results: Path, published: set[Path]) -> None:
    """Without links to files on top, which stay as they are."""
    for file in results.glob("*"):
        if file.is_file() and file not in published:
            file.unlink()


def empty_cache(path: Path) -> bool:
    """Delete what stages kept in a run folder; False, and nothing is touched, where a run holds it.
    Raises RunError where it cannot be deleted."""
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    try:
        for kept in (path / "cache").iterdir():
            shutil.rmtree(kept) if kept.is_dir() and not kept.is_symlink() else kept.unlink()
    except OSError as err:
        raise RunError(f"{path}: cannot be emptied: {err.strerror or err}") from err
    finally:
        lock.release()
    return True


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
def look_at(path: Path, log_name: str, stage: str) -> Iterator[RunFolder]:
    """A run folder for who only looks: nothing is locked, and another run may go on in it. What it
    keeps of this stage is read; what is made is kept there, too, where that can be."""
    with TemporaryDirectory(prefix="granplugin-") as name:
        run = RunFolder(Path(name) / (path.name or "run"))
        run.cache.mkdir(parents=True)
        log_file = run.path / log_name
        with suppress(OSError):  # what cannot be read is made again
            for kept in path.glob(f"cache/{stage}-*.json"):
                shutil.copyfile(kept, run.cache / kept.name)
        try:
            with _want_told(path), _logged(log_file):
                yield run
        except UserError as err:
            if "\nTraceback" not in log_file.read_text("utf-8", "replace"):
                raise
            path.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(log_file, path / log_name)
            raise type(err)(f"{err}; traceback: {path / log_name}") from err
        with suppress(OSError):
            (path / "cache").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(log_file, path / log_name)
            for made in run.cache.glob(f"{stage}-*.json"):
                write_whole(path / "cache" / made.name, made.read_bytes())


@contextmanager
def _held(path: Path) -> Iterator[RunFolder]:
    run = RunFolder(path)
    lock = FileLock(path / ".lock")
    try:
        run.cache.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=ENDING_SECONDS)
    except Timeout:
        raise RunError(f"{path}: in use by another run; wait for it, or give --out") from None
    except OSError as err:
        raise RunError(f"{path}: cannot be used: {err.strerror or err}; give --out") from err
    try:
        _clear_left_over(run)
        yield run
    finally:
        lock.release()


def _clear_left_over(run: RunFolder) -> None:
    """What a killed run left half-written."""
    try:
        put_in_place(run.path)
        left_over = (
            run.path / _GATHERED,
            run.path / _REPLACED,
            *run.cache.glob(".making-*"),
            *run.path.rglob(".*.new"),
        )
        for left in left_over:
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(True)
    except OSError as err:
        raise RunError(f"{run.path}: cannot be used: {err.strerror or err}; give --out") from err


@contextmanager
def _want_told(path: Path) -> Iterator[None]:
    """What the machine lacks, whichever library found it lacking."""
    try:
        yield
    except LackError as err:
        raise LackError(f"{err} (run folder: {path})") from err
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
