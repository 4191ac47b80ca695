"""modelopt's and torch's prints and warnings, kept for the log."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO

log = logging.getLogger(__name__)

_WARNS = logging.getLogger("torch.utils.cpp_extension")
"""It warns of a CUDA toolkit on a machine without a GPU, which is no fault of a build machine."""


@contextmanager
def quiet() -> Iterator[None]:
    """What is printed or warned about inside goes to this module's logger, at level debug."""
    printed = StringIO()
    _WARNS.addFilter(_kept)
    with warnings.catch_warnings(record=True) as caught, redirect_stdout(printed):
        try:
            yield
        finally:
            _WARNS.removeFilter(_kept)
            for line in printed.getvalue().splitlines():
                log.debug("%s", line)
            for warning in caught:
                log.debug("%s: %s", warning.category.__name__, warning.message)


def _kept(record: logging.LogRecord) -> bool:
    log.debug("%s", record.getMessage())
    return False
