"""What modelopt compiles with torch where it is imported is compiled where it is called first.

To ask for a compiled function imports torch's compiler, for a second; nothing here calls modelopt's,
which are those of its own search and of layers that are stored in FP8.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def compiled_late() -> Iterator[None]:
    """Inside, torch.compile of a function takes it, and compiles it when it is called."""
    compile_now = torch.compile

    def late(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if function is None:
            return lambda given: late(given, **options)
        if isinstance(function, torch.nn.Module):
            return compile_now(function, **options)
        made: list[Callable[..., Any]] = []

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            if not made:
                made.append(compile_now(function, **options))
            return made[0](*args, **kwargs)

        return called

    torch.compile = late
    try:
        yield
    finally:
        torch.compile = compile_now
