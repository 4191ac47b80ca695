"""modelopt's and torch's prints and warnings, kept for the log."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO

log = logging.getLogger(__name__)


@contextmanager
def quiet() -> Iterator[None]:
    """What is printed or warned about inside goes to this module's logger, at level debug."""
    printed = StringIO()
    with warnings.catch_warnings(record=True) as caught, redirect_stdout(printed):
        try:
            yield
        finally:
            for line in printed.getvalue().splitlines():
                log.debug("%s", line)
            for warning in caught:
                log.debug("%s: %s", warning.category.__name__, warning.message)
