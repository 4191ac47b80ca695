"""A view as Markdown (CommonMark with GitHub's tables); whatever it says is told as it is."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from granplugin.report.view.elements import (
    Block,
    Cell,
    Item,
    Kind,
    Paragraph,
    Section,
    Sense,
    Table,
    Terms,
    Verbatim,
    levels,
)
from granplugin.visible import visible, visible_line
from granplugin.words import first

_MARKS = re.compile(r"[\\`*<~]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])|&(?=#?\w+;)")
"""What Markdown would take for marks; underscores within words are none."""
_START = re.compile(r"^(?:[#>+=|-]|\d+(?=[.)]))")
"""What at the start of a block is a mark."""
_SENSES: dict[Sense, str] = {"strong": "**"}


def render(view: Section) -> str:
    """The view as a document that ends with a new line."""
    return "\n".join(_section(view, 1)).strip("\n") + "\n"


def _section(section: Section, level: int) -> Iterator[str]:
    if section.title and not section.aside:
        yield from ("", f"{'#' * min(level, 6)} {escaped(section.title)}")
    if section.aside:
        yield from ("", "<details>", f"<summary>{html.escape(visible(section.title))}</summary>")
    below = level + bool(section.title)
    for of_items, blocks in groupby(section.blocks, key=lambda block: isinstance(block, Item)):
        if of_items:
            yield ""
            yield from _items([block for block in blocks if isinstance(block, Item)])
            continue
        for block in blocks:
            yield from _block(block, below)
    if section.aside:
        yield from ("", "</details>")


def _block(block: Block, level: int) -> Iterator[str]:
    match block:
        case Section():
            yield from _section(block, level)
        case Paragraph():
            yield from ("", _block_text(block.text))
        case Terms():
            yield ""
            yield from (f"- **{escaped(word)}**: {escaped(text)}" for word, text in block.pairs)
        case Verbatim():
            lines = list(map(visible_line, block.lines))
            fence = _longer_than("`", "\n".join(lines), 3)
            yield from ("", f"{fence}{block.language}", *lines, fence)
        case Table():
            yield ""
            yield from _table(block)


def _items(items: Sequence[Item]) -> Iterator[str]:
    for item, level in zip(items, levels(items), strict=True):
        text = f"{item.text} {first(item.names)}" if item.names else item.text
        yield f"{'  ' * level}- {_block_text(text)}"


def _table(table: Table) -> Iterator[str]:
    """Notes and the words that rows stand under have columns of their own."""
    under = any(row.under for row in table.rows)
    notes = any(row.notes for row in table.rows)
    heads = [escaped(column.head) for column in table.columns]
    yield _row([*[""] * under, *heads, *[""] * notes])
    sides = ["---:" if column.kind == "figure" else "---" for column in table.columns]
    yield f"|{'|'.join([*['---'] * under, *sides, *['---'] * notes])}|"
    for row in table.rows:
        told = [_cell(c, of.kind) for c, of in zip(row.cells, table.columns, strict=True)]
        told_under = [escaped(row.under)] * under
        yield _row([*told_under, *told, *["<br>".join(map(escaped, row.notes))] * notes])


def _row(told: Sequence[str]) -> str:
    """A pipe is escaped in code too, where tables are concerned."""
    piped = (cell.replace("|", "\\|") for cell in told)
    return f"| {' | '.join(piped)} |"


def _cell(cell: Cell, kind: Kind) -> str:
    if not cell.text:
        return ""
    if kind == "name":
        return _code(cell.text) + (f" +{cell.more}" if cell.more else "")
    mark = _SENSES.get(cell.sense, "")
    return f"{mark}{escaped(cell.whole)}{mark}"


def escaped(text: str) -> str:
    """A text within a line, without marks.

    >>> print(escaped("a*b <x> per_channel _y_"))
    a\\*b \\<x> per_channel \\_y\\_
    >>> print(escaped("__0__"))
    \\_\\_0\\_\\_
    """
    return _MARKS.sub(r"\\\g<0>", visible(text))


def _block_text(text: str) -> str:
    r"""A text that starts a block.

    >>> print(_block_text("1. - a"), _block_text("- a"))
    1\. - a \- a
    """
    told = escaped(text)
    start = _START.match(told)
    if start is None:
        return told
    number = start[0] if start[0].isdigit() else ""
    return f"{number}\\{told[len(number) :]}"


def _code(name: str) -> str:
    """A name as code, whatever it holds.

    >>> print(_code("a`b"))
    `` a`b ``
    """
    name = visible(name)
    if "`" not in name:
        return f"`{name}`"
    fence = _longer_than("`", name, 1)
    return f"{fence} {name} {fence}"


def _longer_than(mark: str, text: str, least: int) -> str:
    runs = re.findall(f"{re.escape(mark)}+", text)
    return mark * max(least, 1 + max(map(len, runs), default=0))
