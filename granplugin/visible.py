"""Text on its way to a terminal or a document: what it hides, or would do to them, is shown."""

from __future__ import annotations

import re

# C0, DEL and C1, and what turns the direction of a text or hides in it.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    r"""A text on one line that shows what it holds.

    >>> print(visible("a\x1b[31m  b\nc"))
    a\x1b[31m b c
    """
    return visible_line(" ".join(text.split()))


def visible_line(line: str) -> str:
    r"""A line with its blanks as they are; a new line in it is shown, too.

    >>> print(visible_line("a  b\nc"))
    a  b\x0ac
    """
    return _HIDDEN.sub(lambda found: _escaped(found[0]), line)


def visible_lines(text: str) -> str:
    """A text of several lines, each as `visible_line` has it."""
    return "\n".join(map(visible_line, text.split("\n")))


def visible_json(text: str) -> str:
    r"""The same JSON, with escapes for what a terminal would act on.

    >>> print(visible_json('{\n "a": "\x9b"\n}').replace("\n", ""))
    { "a": "\u009b"}
    """
    return _HIDDEN.sub(lambda found: _escaped_json(found[0]), text)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _escaped_json(character: str) -> str:
    if character == "\n":  # between values: in a string it is escaped already
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
