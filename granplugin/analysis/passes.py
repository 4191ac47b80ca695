"""Passes over data that add figures up: kept on disk, resumed where they ended, in what memory
there is.

A figure is an array of sums over samples, so what is kept does not grow with their number.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from granplugin.calibration.statistics import Statistics
from granplugin.data.batches import Batch
from granplugin.errors import DataError, RunError, UserError
from granplugin.store.whole_file import write_whole

log = logging.getLogger(__name__)

Figures = dict[str, np.ndarray]
Key = TypeVar("Key", bound=Hashable)
_APART = 2.0
"""Seconds between two times that a pass saves what it has: what a kill may cost."""
_SHARE = 0.05
"""The most of a pass's time that may go into saving, which of many wide layers takes long."""


class Kept:
    """Figures by name in a safetensors file, and beside it those of a pass that did not end."""

    def __init__(self, path: Path) -> None:
        self.path, self.partial_path = path, path.with_suffix(".partial.safetensors")
        self.figures, _ = _read(path)

    def add(self, figures: Mapping[str, np.ndarray]) -> None:
        """Keep these too. Raises RunError where they cannot be written; what was there stays."""
        together = {**self.figures, **figures}
        _write(self.path, save(together))
        self.figures = together
        self.partial_path.unlink(missing_ok=True)

    def partial(self, wanted: Collection[str]) -> tuple[Figures, int]:
        """The sums of a pass for these very figures that was interrupted, and its samples done."""
        figures, metadata = _read(self.partial_path)
        same = metadata.get("wanted") == json.dumps(sorted(wanted))
        return (figures, int(metadata["samples"])) if same else ({}, 0)

    def keep_partial(self, wanted: Collection[str], figures: Figures, samples: int) -> None:
        metadata = {"wanted": json.dumps(sorted(wanted)), "samples": str(samples)}
        _write(self.partial_path, save(figures, metadata))


def accumulate(
    kept: Kept,
    wanted: Iterable[Key],
    batches: Iterable[Batch],
    step: Callable[[Batch, frozenset[Key]], Mapping[Key, np.ndarray]],
) -> dict[Key, np.ndarray]:
    """The wanted figures over all batches: those that are kept, by their names (str), and the rest
    by one pass of `step(batch, keys)`, whose figures add up.

    A pass that was interrupted goes on behind its last whole batch, also where batches have
    another size now. Raises DataError where there are no samples, or no memory for half a batch.
    """
    wanted = list(dict.fromkeys(wanted))
    missing = frozenset(key for key in wanted if str(key) not in kept.figures)
    names = frozenset(map(str, missing))
    if missing:
        # One value, so that an interruption never finds the sums of other samples than it says.
        reached = kept.partial(names)
        if reached[1]:
            log.info("resuming behind %d samples", reached[1])
        pace = Pace()
        memory = InMemory()
        end = 0
        try:
            for batch in batches:
                begin, end = end, end + _length(batch)
                totals, done = reached
                if end <= done:
                    continue
                batch = {name: array[max(done - begin, 0) :] for name, array in batch.items()}
                for part in memory.run(lambda part: step(part, missing), batch):
                    found = {str(key): figure for key, figure in part.items()}
                    totals = totals | {
                        n: totals[n] + f if n in totals else f for n, f in found.items()
                    }
                reached = totals, end
                pace.save(lambda: kept.keep_partial(names, *reached))
        except BaseException:
            try:
                if reached[1]:
                    kept.keep_partial(names, *reached)
            except RunError as err:
                log.warning("%s", err)
            raise
        if not reached[1]:
            raise DataError("there are no samples to analyze")
        kept.add(reached[0])
    return {key: kept.figures[str(key)] for key in wanted}


class Pace:
    """When a pass saves what it has."""

    def __init__(self) -> None:
        self.due = time.monotonic() + _APART

    def save(self, write: Callable[[], object]) -> None:
        """Call `write`, if it is time."""
        begun = time.monotonic()
        if begun >= self.due:
            write()
            ended = time.monotonic()
            self.due = ended + max(_APART, (ended - begun) / _SHARE)


def left(kept: Path, key: str) -> tuple[Statistics | None, int]:
    """What an interrupted pass for this key left, and how many batches it had done."""
    try:
        with safe_open(kept, "numpy") as file:
            whose, _, done = (file.metadata() or {}).get("key", "").partition("+")
        if whose != key or not done.isdecimal():
            return None, 0
        log.info("resuming the pass for ranges behind %s batches", done)
        return Statistics.load(kept, f"{key}+{done}"), int(done)
    except (OSError, SafetensorError, UserError):
        return None, 0


class InMemory:
    """Runs batches whole, or in halves from the first one on for which there was no memory."""

    def __init__(self) -> None:
        self.halved = False

    def run(
        self, step: Callable[[Batch], Mapping[Key, np.ndarray]], batch: Batch
    ) -> Iterator[Mapping[Key, np.ndarray]]:
        if not self.halved:
            try:
                found = step(batch)
            except (MemoryError, RuntimeError) as err:
                if not _out_of_memory(err):
                    raise
                self.halved = True
                log.warning("out of memory with %d samples in a batch; halving it", _length(batch))
            else:
                yield found
                return
        half = -(-_length(batch) // 2)
        for part in (slice(None, half), slice(half, None)):
            samples = {name: array[part] for name, array in batch.items()}
            if not _length(samples):
                continue
            try:
                found = step(samples)
            except (MemoryError, RuntimeError) as err:
                if not _out_of_memory(err):
                    raise
                raise DataError(
                    f"out of memory with {_length(samples)} samples in a batch, which is half of "
                    "what was asked for; set data.batch_size lower, or use a machine with more"
                ) from err
            yield found


def _out_of_memory(err: BaseException) -> bool:
    # torch's, which is not imported to tell
    if isinstance(err, MemoryError) or type(err).__name__ == "OutOfMemoryError":
        return True
    # What torch raises on a CPU has no class of its own.
    return "not enough memory" in str(err) or "can't allocate memory" in str(err)


def _length(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _write(path: Path, content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as err:
        raise RunError(f"{path}: cannot be written: {err.strerror or err}; give --out") from err


def _read(path: Path) -> tuple[Figures, dict[str, str]]:
    if not path.is_file():
        return {}, {}
    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (OSError, SafetensorError):  # cut short: as if it were not there
        log.warning("%s cannot be read; measuring again", path)
        return {}, {}
