"""What a reader of a rendered view finds in it: cells by a parser of HTML, and of Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser

from markdown_it import MarkdownIt

from granplugin.report.view.elements import Section, Table
from granplugin.visible import visible

TAGS = {
    "section", "details", "summary", "table", "thead", "tbody", "tr", "th", "td", "p", "ul", "li",
    "dl", "dt", "dd", "pre", "code", "b", "span", *(f"h{level}" for level in range(2, 7)),
}  # fmt: skip


class Page(HTMLParser):
    """The texts of a page's cells, and whether it is whole: only TAGS, each closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert tag in TAGS
        assert {name for name, _ in attrs} <= {"style", "scope", "colspan", "class"}
        assert dict(attrs).get("class", "key") in ("interval", "comment", "string", "key")
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


def tables(view: Section) -> Iterator[Table]:
    """Every table of a view."""
    for block in view.blocks:
        if isinstance(block, Section):
            yield from tables(block)
        elif isinstance(block, Table):
            yield block


def told(view: Section) -> Counter[str]:
    """The texts of all cells and heads, as they are to be seen."""
    of_view = [
        [column.head for column in table.columns]
        + [cell.whole for row in table.rows for cell in row.cells]
        for table in tables(view)
    ]
    return Counter(visible(text) for texts in of_view for text in texts if visible(text))


def markdown_cells(text: str) -> list[str]:
    """The texts of a document's table cells, marks taken for marks."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inside = [
        after for before, after in zip(tokens, tokens[1:], strict=False)
        if before.type in ("td_open", "th_open")
    ]  # fmt: skip
    return [
        "".join(part.content for part in token.children if part.type in ("text", "code_inline"))
        for token in inside
    ]
