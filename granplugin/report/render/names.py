"""Names that are too long for their column: what many begin with is told once, parts are cut."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_PARTS = re.compile(r"[^./]+|[./]")
"""Modules are told apart by dots, ONNX nodes by slashes too."""
_NUMBER = re.compile(r"_?\d+\Z")


def shared(names: Sequence[str]) -> str | None:
    """What several names begin with, so that without it they are shorter by most letters in all.

    >>> shared(["net.stem.conv", "net.stages.0.conv", "net.stages.1.conv"])
    'net.stages'
    """
    counts = Counter(name[: mark.start()] for name in names for mark in re.finditer("[./]", name))
    found = [prefix for prefix, count in counts.items() if count > 1 and len(prefix) > 1]
    return max(found, key=lambda prefix: counts[prefix] * (len(prefix) - 1), default=None)


def without(name: str, prefix: str | None) -> str:
    """The name with ~ for what it shares.

    >>> without("net.stages.1.conv", "net.stages")
    '~.1.conv'
    """
    if prefix and name.startswith((f"{prefix}.", f"{prefix}/")):
        return f"~{name[len(prefix) :]}"
    return name


def cut(name: str, room: int) -> str:
    """A name whose longest parts lose letters, so that its numbers still tell it.

    >>> cut("encoder.layer.11.attention.query", 24), cut("node_convolution_123", 16)
    ('enc~.lay~.11.atte~.query', 'node_convol~_123')
    """
    parts = _PARTS.findall(name)
    while sum(map(len, parts)) > room:
        longest = max(range(len(parts)), key=lambda i: len(parts[i]))
        shorter = _shorter(parts[longest])
        if shorter is None:
            return f"~{name[1 - room :]}"
        parts[longest] = shorter
    return "".join(parts)


def _shorter(part: str) -> str | None:
    """A part with one letter less, in front of its number; None where it has none to lose."""
    stem = _NUMBER.sub("", part)
    number = part[len(stem) :]
    stem = stem.removesuffix("~")[:-1]
    return f"{stem}~{number}" if stem and len(part) > 2 else None
