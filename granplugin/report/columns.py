"""Columns of text that fit 80 characters: names of layers are cut to what the others leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from granplugin.report.findings_text import WIDTH


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], sides: Sequence[str], named: int = 0
) -> Iterator[str]:
    """Columns as wide as they must be; column `named`, of layers, has what is left, and its names
    are cut to it: first what many begin with, which is said once.

    `sides` has < or > for each column. A column of which nothing is known - all cells are - - is
    left out.
    """
    layers = [row[named] for row in rows]
    columns = zip(sides, heads, *rows, strict=True)
    kept = [(at, c) for at, c in enumerate(columns) if at == named or set(c[2:]) != {"-"}]
    at = [at for at, _ in kept].index(named)
    sides, heads, *rows = zip(*(column for _, column in kept), strict=True)
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    others = sum(widths) - widths[at]
    widths[at] = room = min(widths[at], max(WIDTH - others - len(widths) + 1, 12))
    prefix = _prefix(layers) if max(map(len, layers), default=0) > room else None
    if prefix:
        yield f"~ is {prefix}"
    for cells in (heads, *rows):
        name = cells[at]
        if prefix and name.startswith(f"{prefix}."):
            name = f"~{name[len(prefix) :]}"
        line = zip((*cells[:at], cut(name, room), *cells[at + 1 :]), sides, widths, strict=True)
        yield " ".join(f"{cell:{side}{width}}" for cell, side, width in line).rstrip()


def _prefix(layers: Sequence[str]) -> str | None:
    """What several names begin with, so that without it they are shorter by most letters in all.

    >>> _prefix(["net.stem.conv", "net.stages.0.conv", "net.stages.1.conv"])
    'net.stages'
    """
    parts = [name.split(".") for name in layers]
    counts = Counter(".".join(of[:end]) for of in parts for end in range(1, len(of)))
    shared = [prefix for prefix, count in counts.items() if count > 1]
    return max(shared, key=lambda prefix: counts[prefix] * (len(prefix) - 1), default=None)


def cut(name: str, room: int) -> str:
    """A dotted name whose longest parts lose letters, so that its numbers still tell it.

    >>> cut("encoder.layer.11.attention.query", 24)
    'enc~.lay~.11.atte~.query'
    """
    parts = name.split(".")
    while len(".".join(parts)) > room:
        longest = max(range(len(parts)), key=lambda i: len(parts[i]))
        if len(parts[longest]) < 3:
            return f"~{name[1 - room :]}"
        parts[longest] = f"{parts[longest].removesuffix('~')[:-1]}~"
    return ".".join(parts)
