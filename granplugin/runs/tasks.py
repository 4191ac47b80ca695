"""What a task is: a value that says all it needs, and makes a value of it."""

from __future__ import annotations

from typing import Protocol, TypeVar

from granplugin.store.cache import Cache

T_co = TypeVar("T_co", covariant=True)


class Task(Protocol[T_co]):
    """A frozen value that can be pickled: what it works on are values and paths, so it can run in
    another process, and beside others, wherever those paths lead."""

    def run(self, cache: Cache) -> T_co:
        """Do it; what it makes on the way is kept in the cache, by content. Raises UserError."""
