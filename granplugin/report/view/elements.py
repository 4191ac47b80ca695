"""The elements of a report before it has a form: sections of sentences, items, tables and texts.

They carry meaning - a figure, a name that may be shortened, good, bad, not known - and no marks,
widths or colours, which are a renderer's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Sense = Literal["plain", "strong", "good", "bad", "doubtful"]
"""What a reader should make of a text."""
Kind = Literal["text", "figure", "name"]
"""What a column holds: a text may take several lines; a figure is never cut; a name is of a layer,
a node or a site, and may be cut where the other columns leave no room."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What a table says in one place; `text` is empty where nothing is known. `more` counts others
    alike, which the row stands for too."""

    text: str
    sense: Sense = "plain"
    more: int = 0

    @property
    def whole(self) -> str:
        """The text, and how many more there are."""
        return f"{self.text} +{self.more}" if self.more else self.text


@dataclass(frozen=True, slots=True)
class Column:
    """A column by its head; one that `fills` takes what the others leave of a page."""

    head: str
    kind: Kind = "text"
    fills: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A cell for each column. Rows with the same words `under` stand under these words; `notes`
    are sentences about the row."""

    cells: tuple[Cell, ...]
    under: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of as many cells as there are columns; the first column says what a row is of. A table
    of few columns is `spaced`: they stand further apart."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    spaced: bool = False

    def __post_init__(self) -> None:
        if not self.columns or any(len(row.cells) != len(self.columns) for row in self.rows):
            raise ValueError("each row of a table has a cell for each column")

    @property
    def known(self) -> Table:
        """Without the columns of which nothing is known; the first always stays."""
        kept = [
            at
            for at in range(len(self.columns))
            if at == 0 or any(row.cells[at].text for row in self.rows)
        ]
        return self.only(kept)

    def only(self, kept: list[int]) -> Table:
        """These columns of it."""
        return replace(
            self,
            columns=tuple(self.columns[at] for at in kept),
            rows=tuple(
                replace(row, cells=tuple(row.cells[at] for at in kept)) for row in self.rows
            ),
        )


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Sentences."""

    text: str
    sense: Sense = "plain"


@dataclass(frozen=True, slots=True)
class Item:
    """One of several things that are told one by one; `depth` counts half steps below an item.

    It ends with `names`, of which a reader needs the first and how many there are. The end of a
    `brief` one may be cut.
    """

    text: str
    depth: int = 0
    names: tuple[str, ...] = ()
    brief: bool = False
    sense: Sense = "plain"


@dataclass(frozen=True, slots=True)
class Terms:
    """Words, each with what it means or what is known of it."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Verbatim:
    """Lines to copy as they are, in a `language`."""

    lines: tuple[str, ...]
    language: str = "text"


@dataclass(frozen=True, slots=True)
class Section:
    """Blocks under a title, if it has one. One that stands `aside` is for who wants to know
    more."""

    title: str
    blocks: tuple[Block, ...]
    aside: bool = False


Block = Paragraph | Item | Table | Terms | Verbatim | Section


def cells(*told: str | Cell | None) -> tuple[Cell, ...]:
    """The cells of a row; None is not known.

    >>> cells("a", None) == (Cell("a"), Cell(""))
    True
    """
    return tuple(each if isinstance(each, Cell) else Cell(each or "") for each in told)


def columns(*heads: str | Column) -> tuple[Column, ...]:
    """Columns, of figures where only a head is given.

    >>> columns(Column("layer", "name"), "dB")[1]
    Column(head='dB', kind='figure', fills=False)
    """
    return tuple(each if isinstance(each, Column) else Column(each, "figure") for each in heads)


def items(texts: Iterable[str], depth: int = 0) -> tuple[Item, ...]:
    """Each text as an item."""
    return tuple(Item(text, depth) for text in texts)


def levels(of: Iterable[Item]) -> tuple[int, ...]:
    """How many items each is below, in a list.

    >>> levels(items(["a", "b"]) + items(["c"], 3) + items(["d"], 2) + items(["e"]))
    (0, 0, 1, 1, 0)
    """
    depths: list[int] = []
    found = []
    for item in of:
        while depths and depths[-1] >= item.depth:
            depths.pop()
        found.append(len(depths))
        depths.append(item.depth)
    return tuple(found)
