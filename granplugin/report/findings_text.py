"""Lint findings as text of 80 columns, grouped by what is found."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

WIDTH = 80


def finding_lines(
    findings: Sequence[Any], most: int | None = None, indent: str = ""
) -> Iterator[str]:
    """A paragraph for each code, of the first `most` codes."""
    groups: dict[str, list[Any]] = {}
    for finding in findings:
        groups.setdefault(finding.code, []).append(finding)
    told = list(groups.items())
    for code, found in told[:most]:
        known = [each.bytes for each in found if each.bytes is not None]
        count = f"{len(found)} layers" if len(found) > 1 else "1 layer"
        cost = f", {sum(known) / 1e6:.2f} MB" if sum(known) else ""
        yield from wrapped(f"{code} ({count}{cost}): {found[0].says}; {found[0].instead}", indent)
        yield from wrapped(
            names([each.layer for each in found], [f.where for f in found]), f"{indent}  "
        )
    if most is not None and len(told) > most:
        rest = sum(len(found) for _, found in told[most:])
        yield f"{indent}and {rest} more: {', '.join(code for code, _ in told[most:])}"


def names(layers: Sequence[str], where: Sequence[str | None] = ()) -> str:
    """The first three, and how many more there are; the lines that decided them."""
    text = ", ".join(layers[:3])
    if len(layers) > 3:
        text += f" and {len(layers) - 3} more"
    lines = list(dict.fromkeys(filter(None, where)))
    return f"{text} ({', '.join(lines[:2])}{' ...' if len(lines) > 2 else ''})" if lines else text


def wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
