"""What any renderer does to a text first: control characters are shown, white space is one blank."""

from __future__ import annotations

import re

# C0, DEL and C1, and what turns the direction of a text or hides in it.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def visible(text: str) -> str:
    r"""A text on one line that shows what it holds.

    >>> print(visible("a\x1b[31m  b\nc"))
    a\x1b[31m b c
    """
    return _HIDDEN.sub(lambda found: _escaped(found[0]), " ".join(text.split()))


def visible_line(line: str) -> str:
    """A line with its blanks as they are."""
    return _HIDDEN.sub(lambda found: _escaped(found[0]), line)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
