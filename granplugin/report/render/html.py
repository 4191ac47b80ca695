"""A view as HTML: headings, lists and tables, every text escaped; no script, nothing to load."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from granplugin.report.view.elements import (
    Block,
    Cell,
    Column,
    Item,
    Paragraph,
    Row,
    Section,
    Sense,
    Table,
    Terms,
    Verbatim,
    levels,
)
from granplugin.visible import visible, visible_line
from granplugin.words import first

_COLOURS: dict[Sense, str] = {
    "good": "var(--good, green)",
    "bad": "var(--bad, firebrick)",
    "doubtful": "var(--doubtful, darkgoldenrod)",
}
"""A page has its own shades; elsewhere these."""


def render(view: Section) -> str:
    """The view as one element, to stand in a page or below a notebook's cell."""
    return "\n".join(_section(view, 2))


def _section(section: Section, level: int) -> Iterator[str]:
    title = _text(section.title)
    if section.aside:
        yield from ("<details>", f"<summary>{title}</summary>")
    else:
        yield "<section>"
        if title:
            yield f"<h{min(level, 6)}>{title}</h{min(level, 6)}>"
    below = level + bool(title)
    for of_items, blocks in groupby(section.blocks, key=lambda block: isinstance(block, Item)):
        if of_items:
            yield from _items([block for block in blocks if isinstance(block, Item)])
            continue
        for block in blocks:
            yield from _block(block, below)
    yield "</details>" if section.aside else "</section>"


def _block(block: Block, level: int) -> Iterator[str]:
    match block:
        case Section():
            yield from _section(block, level)
        case Paragraph():
            yield f"<p>{_sensed(block.text, block.sense)}</p>"
        case Terms():
            yield "<dl>"
            yield from (f"<dt>{_text(w)}</dt><dd>{_text(t)}</dd>" for w, t in block.pairs)
            yield "</dl>"
        case Verbatim():
            told = _yaml if block.language == "yaml" else escape
            lines = "\n".join(told(visible_line(line)) for line in block.lines)
            yield f"<pre><code>{lines}\n</code></pre>"
        case Table():
            yield from _table(block)


_YAML = re.compile(
    r"(?P<comment>(?:^|(?<=\s))#.*)|(?P<string>\"[^\"]*\"|'[^']*')|(?P<key>(?<![\w.*/-])[\w.*/-]++(?=:(?:\s|$)))"
)


def _yaml(line: str) -> str:
    """A line of YAML with its comments, texts and keys as spans, for a page that colours them."""
    told, at = [], 0
    for found in _YAML.finditer(line):
        told.append(escape(line[at : found.start()]))
        told.append(f'<span class="{found.lastgroup}">{escape(found[0])}</span>')
        at = found.end()
    return "".join((*told, escape(line[at:])))


def _items(items: Sequence[Item]) -> Iterator[str]:
    """A list, with a list in it for items that are below another."""
    before = -1
    for item, level in zip(items, levels(items), strict=True):
        yield "</li></ul>" * (before - level) + ("<ul><li>" if level > before else "</li><li>")
        text = f"{item.text} {first(item.names)}" if item.names else item.text
        yield _sensed(text, item.sense)
        before = level
    yield "</li></ul>" * (before + 1)


def _table(table: Table) -> Iterator[str]:
    span = len(table.columns)
    yield "<table>"
    if any(column.head for column in table.columns):
        heads = (f'<th scope="col"{_side(c)}>{_text(c.head)}</th>' for c in table.columns)
        yield f"<thead><tr>{''.join(heads)}</tr></thead>"
    yield "<tbody>"
    under = ""
    for row in table.rows:
        if row.under != under:
            yield f'<tr><th colspan="{span}"{_LEFT}>{_text(row.under)}</th></tr>'
        under = row.under
        yield from _row(table, row)
    yield "</tbody></table>"


def _row(table: Table, row: Row) -> Iterator[str]:
    pairs = zip(table.columns, row.cells, strict=True)
    yield f"<tr>{''.join(_cell(column, cell) for column, cell in pairs)}</tr>"
    for note in row.notes:
        yield f'<tr><td colspan="{len(table.columns)}"{_LEFT}>{_text(note)}</td></tr>'


def _cell(column: Column, cell: Cell) -> str:
    """An interval behind a figure stands apart, so that a page can put it below."""
    value, opening, interval = cell.whole.partition(" [")
    if column.kind != "figure" or not interval.endswith("]"):
        return f"<td{_side(column)}>{_sensed(cell.whole, cell.sense)}</td>"
    told = f' <span class="interval">{_text(opening[1:] + interval)}</span>'
    return f"<td{_side(column)}>{_sensed(value, cell.sense)}{told}</td>"


_LEFT = ' style="text-align: left"'


def _side(column: Column) -> str:
    return ' style="text-align: right"' if column.kind == "figure" else _LEFT


def _sensed(text: str, sense: Sense) -> str:
    if not text or sense == "plain":
        return _text(text)
    if sense == "strong":
        return f"<b>{_text(text)}</b>"
    return f'<span style="color: {_COLOURS[sense]}">{_text(text)}</span>'


def _text(text: str) -> str:
    return escape(visible(text))
