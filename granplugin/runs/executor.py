"""Where tasks run: here, one after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from granplugin.runs.tasks import Task
from granplugin.store.cache import Cache

T = TypeVar("T")


def run_tasks(tasks: Iterable[Task[T]], cache: Cache) -> Iterator[T]:
    """What each task makes, in order; the cache remembers what they used."""
    for task in tasks:
        made, used = perform(task, cache.folder)
        cache.used |= used
        yield made


def perform(task: Task[T], folder: Path) -> tuple[T, set[Path]]:
    """What a task makes in this folder, and the files in it that it used."""
    cache = Cache(folder)
    return task.run(cache), cache.used
