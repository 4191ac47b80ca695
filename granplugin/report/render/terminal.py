"""A view as lines of text for a terminal: wrapped, in columns, and in colour where it has any."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rich.text import Text

from granplugin.report.render.names import cut, shared, without
from granplugin.report.view.elements import (
    Block,
    Column,
    Item,
    Paragraph,
    Row,
    Section,
    Sense,
    Table,
    Terms,
    Verbatim,
)
from granplugin.visible import visible, visible_line
from granplugin.words import first

WIDTH = 80
READABLE = 100
"""The most that a line of sentences has; tables take what there is."""
STYLES: dict[Sense, str] = {
    "plain": "", "strong": "bold", "good": "green", "bad": "red", "doubtful": "yellow",
}  # fmt: skip
_HALF_STEP = 2
_TERM = 18
"""Where what is known of a term begins, of a short one."""
_LEAST = {"name": 12, "text": 8}
"""What a column of this kind may be narrowed to."""


def render(view: Section, width: int = WIDTH) -> str:
    """The view as plain text of `width` columns; only a word longer than that goes beyond."""
    return "\n".join(line.plain for line in lines(view, width))


def lines(view: Section, width: int = WIDTH, plain: bool = False) -> list[Text]:
    """The same, in colours: a blank line between what has a title and the rest. `plain`, the rows
    of tables are sentences, for who hears them."""
    found = [_line(line, "strong") for line in _flush(view.title, width)] if view.title else []
    behind_section = False
    for block in view.blocks:
        told = list(_block(block, width, plain))
        if found and told and (behind_section or isinstance(block, Section)):
            found.append(Text())
        behind_section = isinstance(block, Section)
        found += told
    return found


def _block(block: Block, width: int, plain: bool) -> Iterator[Text]:
    match block:
        case Section():
            yield from lines(block, width, plain)
        case Paragraph():
            yield from (_line(line, block.sense) for line in _flush(block.text, width))
        case Item():
            yield from (_line(line, block.sense) for line in _item(block, width))
        case Terms():
            yield from map(Text, _terms(block, width))
        case Verbatim():
            yield from (Text(visible_line(line)) for line in block.lines)
        case Table() if plain:
            yield from map(Text, _said(block, width))
        case Table():
            for part in _parts(block, width):
                yield from _table(part, width)


def _line(line: str, sense: Sense) -> Text:
    return Text(line, STYLES[sense])


def _flush(text: str, width: int) -> list[str]:
    return textwrap.wrap(visible(text), min(width, READABLE), break_on_hyphens=False)


def _hanging(text: str, width: int, indent: int, breaking: bool = False) -> list[str]:
    """Words that are longer than a line, as paths, stay whole, so that they can be copied; unless
    `breaking`."""
    return textwrap.wrap(
        visible(text), min(width, READABLE), initial_indent=" " * indent,
        subsequent_indent=" " * (indent + _HALF_STEP), break_long_words=breaking,
        break_on_hyphens=False,
    )  # fmt: skip


def _item(item: Item, width: int) -> list[str]:
    indent = item.depth * _HALF_STEP
    text = item.text
    if item.names:
        text = f"{text} {_fitting(item.names, width - indent - len(visible(text)) - 1)}"
    if item.brief:
        text = textwrap.shorten(visible(text), width - indent, placeholder=" ...")
    return _hanging(text, width, indent, breaking=bool(item.names))


def _fitting(names: Sequence[str], room: int) -> str:
    """As many of the first names as fit on the line, and how many more there are."""
    if len(names) == 1:
        return names[0]
    told = [first(names, most) for most in range(min(len(names), 3), 0, -1)]
    return next((each for each in told if len(visible(each)) <= room), f"{len(names)} layers")


def _terms(terms: Terms, width: int) -> Iterator[str]:
    words = [visible(word) for word, _ in terms.pairs]
    room = max(_TERM, min(max(map(len, words), default=0), width // 3))
    for word, (_, text) in zip(words, terms.pairs, strict=True):
        yield from textwrap.wrap(
            visible(text), min(width, READABLE), initial_indent=f"{word:<{room}} ",
            subsequent_indent=" " * (room + 1), break_long_words=False, break_on_hyphens=False,
        ) or [word]  # fmt: skip


def _said(table: Table, width: int) -> Iterator[str]:
    """Its rows as sentences, each value behind its head; what is not known is not said."""
    under = ""
    for row in table.rows:
        if row.under != under:
            yield from _hanging(row.under, width, 0)
        under = row.under
        told = [
            f"{column.head} {cell.whole}" if column.head else cell.whole
            for column, cell in zip(table.columns, row.cells, strict=True)
            if cell.text
        ]
        yield from _hanging(", ".join(told), width, 0)
        for note in row.notes:
            yield from _hanging(note, width, _HALF_STEP)


def _parts(table: Table, width: int) -> Iterator[Table]:
    """The table, or where its columns do not fit, several with the first column in each."""
    least = [_least(column, of) for column, of in zip(table.columns, _widths(table), strict=True)]
    gap, taken = _gap(table), _indent(table) + least[0]
    part, used = [0], taken
    for at in range(1, len(table.columns)):
        if len(part) > 1 and used + gap + least[at] > width:
            yield table.only(part)
            part, used = [0], taken
        part.append(at)
        used += gap + least[at]
    yield table.only(part)


def _least(column: Column, natural: int) -> int:
    return min(natural, _LEAST.get(column.kind, natural))


def _widths(table: Table) -> list[int]:
    """Of each column's longest text."""
    return [
        max(len(visible(column.head)), *(len(_told(row, at)) for row in table.rows), 1)
        for at, column in enumerate(table.columns)
    ]


def _told(row: Row, at: int) -> str:
    return visible(row.cells[at].whole) or "-"


def _gap(table: Table) -> int:
    return 2 if table.spaced else 1


def _indent(table: Table) -> int:
    return _HALF_STEP if any(row.under for row in table.rows) else 0


def _table(table: Table, width: int) -> Iterator[Text]:
    """The table in columns that fit; names are cut and texts wrapped to what is left."""
    widths, gap, indent = _widths(table), _gap(table), _indent(table)
    left = width - indent - gap * (len(widths) - 1) - sum(widths)
    least = [_least(column, room) for column, room in zip(table.columns, widths, strict=True)]
    for kind in ("name", "text"):
        of_kind = [at for at, column in enumerate(table.columns) if column.kind == kind]
        while left < 0 and (wide := [at for at in of_kind if widths[at] > least[at]]):
            widths[max(wide, key=lambda at: widths[at])] -= 1
            left += 1
    for at, column in enumerate(table.columns):
        # On a wide terminal a row's figures stay near its name.
        if (spare := left - max(width - WIDTH, 0)) > 0 and column.fills:
            widths[at], left = widths[at] + spare, 0
    prefixes = [_prefix(table, at, room) for at, room in enumerate(widths)]
    for prefix in filter(None, prefixes):
        yield Text(f"~ is {prefix}")
    if any(column.head for column in table.columns):
        heads = [[visible(column.head)] for column in table.columns]
        yield from _row(table, heads, ["strong"] * len(heads), widths, indent)
    under = ""
    for row in table.rows:
        if row.under != under:
            yield from map(Text, _hanging(row.under, width, 0))
        under = row.under
        told = [_cell(table, row, at, room, prefixes[at]) for at, room in enumerate(widths)]
        yield from _row(table, told, [cell.sense for cell in row.cells], widths, indent)
        for note in row.notes:
            yield from map(Text, _hanging(note, width, 2 * _HALF_STEP))


def _prefix(table: Table, at: int, room: int) -> str | None:
    names = [visible(row.cells[at].text) for row in table.rows]
    if table.columns[at].kind != "name" or all(len(_told(row, at)) <= room for row in table.rows):
        return None
    return shared(names)


def _cell(table: Table, row: Row, at: int, room: int, prefix: str | None) -> list[str]:
    """A cell's lines."""
    cell, told = row.cells[at], _told(row, at)
    match table.columns[at].kind:
        case "name" if cell.text:
            more = f" +{cell.more}" if cell.more else ""
            return [cut(without(visible(cell.text), prefix), room - len(more)) + more]
        case "text" if len(told) > room:
            return textwrap.wrap(told, room, break_on_hyphens=False)
    return [told]


def _row(
    table: Table,
    told: Sequence[Sequence[str]],
    senses: Sequence[Sense],
    widths: Sequence[int],
    indent: int,
) -> Iterator[Text]:
    for at in range(max(map(len, told))):
        line = Text(" " * indent)
        for column, cell, sense, room in zip(table.columns, told, senses, widths, strict=True):
            text = cell[at] if at < len(cell) else ""
            side = ">" if column.kind == "figure" else "<"
            blanks = (
                " " * _gap(table) if len(line) > indent or column is not table.columns[0] else ""
            )
            line.append(blanks).append(f"{text:{side}{room}}", STYLES[sense])
        line.rstrip()
        yield line
