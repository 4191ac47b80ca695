"""Memory that a pass frees and soon asks for again, kept from the operating system meanwhile.

glibc takes blocks above 32 MiB at most from the system and gives them back at once (mallopt(3),
M_MMAP_THRESHOLD), so that activations of convolutions cost a page fault for each of their pages
in each batch: of MobileNetV2 in batches of 16 at 224 that is half of the time on a CPU.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""malloc.h's numbers of them."""
_KEPT, _LARGEST = 2**31 - 1, 2**30
"""Bytes: free memory that stays, and the largest block that is not asked of the system."""
_TRIM_DEFAULT, _MMAP_DEFAULT = 2**17, 2**25
"""The first is glibc's; the second what its own threshold, which grows, does not exceed."""


_keeping: list[None] = []
"""One for each that is inside another: malloc is the whole process's."""


@contextmanager
def kept_heap() -> Iterator[None]:
    """What is freed inside stays with the process until the end; where malloc is not glibc's,
    nothing changes."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    if not _keeping:
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)
    _keeping.append(None)
    try:
        yield
    finally:
        _keeping.pop()
        if not _keeping:
            libc.mallopt(_MMAP_THRESHOLD, _MMAP_DEFAULT)
            libc.mallopt(_TRIM_THRESHOLD, _TRIM_DEFAULT)
            libc.malloc_trim(0)
