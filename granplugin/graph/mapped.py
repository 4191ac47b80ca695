"""Arrays of files that are mapped into memory: what was read of them need not stay there."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np


def let_go(array: Any) -> None:
    """The pages of the file that an array is a view of are no part of this process's memory from
    here on; read again, they come back. Nothing happens to any other array."""
    held = array
    while isinstance(held, (np.ndarray, memoryview)):
        held = held.base if isinstance(held, np.ndarray) else held.obj
    if isinstance(held, mmap.mmap):
        held.madvise(mmap.MADV_DONTNEED)
