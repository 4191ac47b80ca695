"""Renderers: any view, whatever its texts hold, loses no cell in any form and no line is too long."""

from __future__ import annotations

import textwrap
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rendered import Page, markdown_cells, told
from report_values import HOSTILE, VALUES, report

from granplugin.report.render import RENDERERS, html, markdown, terminal
from granplugin.report.show import VIEWS, WHOLE, as_html, as_lines, as_markdown, as_text, view_of
from granplugin.report.view.elements import (
    Cell,
    Column,
    Item,
    Paragraph,
    Row,
    Section,
    Table,
    Terms,
    Verbatim,
    levels,
)
from granplugin.visible import visible

NASTY = st.sampled_from(
    [
        "<script>alert(1)</script>", "</td>", "&lt;", "&amp", "|", "||", "`", "``", "\\", "\\|",
        "*a*", "**", "_b_", "~~c~~", "[x](javascript:y)", "![x](y)", "# h", "- i", "1. j", "> k",
        "'\"", "\x1b[31m", "\r\n", "\t", "\x00", "\u202e", "<!--", "http://x.y", "a@b.c", "é", "中",
    ]
)  # fmt: skip
texts = st.lists(NASTY | st.text(max_size=8), max_size=4).map("".join)
figures = st.from_regex(r"[+-]?[0-9]{1,4}\.[0-9]{2}( \[[0-9]{1,4}\])?", fullmatch=True)
names = st.lists(st.text("abc_0123456789", min_size=1, max_size=14), min_size=1, max_size=6)
names = names.flatmap(lambda parts: st.sampled_from("./").map(lambda mark: mark.join(parts)))
senses = st.sampled_from(["plain", "strong", "good", "bad", "doubtful"])
CONTENTS = {"text": texts, "figure": figures | st.just(""), "name": names}


@st.composite
def tables(draw, of=CONTENTS):
    kinds = draw(st.lists(st.sampled_from(list(of)), min_size=1, max_size=7))
    some_words = st.text("abc |<", max_size=8)
    columns = [
        Column(draw(some_words), kind, fills=at == 0 and draw(st.booleans()))
        for at, kind in enumerate(kinds)
    ]
    rows = st.builds(
        Row,
        st.tuples(*(st.builds(Cell, of[kind], senses, st.integers(0, 12)) for kind in kinds)),
        under=st.sampled_from(["", "", HOSTILE]),
        notes=st.lists(some_words.filter(str.strip), max_size=1).map(tuple),
    )
    return Table(tuple(columns), tuple(draw(st.lists(rows, max_size=5))), draw(st.booleans()))


def known(table):
    """Cells of which something is told have no others alike where they are not known."""
    rows = [
        Row(
            tuple(cell if visible(cell.text) else Cell("") for cell in row.cells),
            row.under,
            row.notes,
        )
        for row in table.rows
    ]
    return Section("", (Table(table.columns, tuple(rows), table.spaced),))


@settings(max_examples=80, deadline=None)
@given(tables())
def test_html_has_every_cell_as_it_is_and_nothing_but_its_own_marks(table):
    view = known(table)
    page = Page(html.render(view))
    assert told(view) - Counter(page.cells) == Counter()


@settings(max_examples=80, deadline=None)
@given(tables())
def test_markdown_has_every_cell_as_it_is_where_a_parser_reads_it(table):
    view = known(table)
    cells = Counter(map(visible, markdown_cells(markdown.render(view))))
    assert told(view) - cells == Counter()


@settings(max_examples=80, deadline=None)
@given(tables(), st.integers(60, 130))
def test_a_terminal_loses_no_letter_but_of_names_that_are_too_long(table, width):
    view = known(table)
    seen = Counter(terminal.render(view, width))
    for block in view.blocks:
        rows = block.rows
        heads = "".join(visible(column.head) for column in block.columns)
        cells = "".join(
            visible(cell.whole)
            for row in rows
            for cell, column in zip(row.cells, block.columns, strict=True)
            if column.kind != "name"
        )
        wanted = Counter(heads + cells) - Counter({" ": 10**6})
        assert wanted - seen == Counter()


@settings(max_examples=80, deadline=None)
@given(tables(), st.integers(60, 130))
def test_no_line_of_a_table_is_longer_than_the_terminal_is_wide(table, width):
    assert [
        line for line in terminal.render(known(table), width).splitlines() if len(line) > width
    ] == []


def test_a_table_too_wide_for_the_page_goes_on_below_with_the_names_again():
    columns = (Column("layer", "name"), *(Column(f"figure {n}", "figure") for n in range(12)))
    rows = tuple(Row((Cell(f"l{n}"), *(Cell(f"{n}.{m}") for m in range(12)))) for n in range(2))
    lines = terminal.render(Section("", (Table(columns, rows),))).splitlines()
    assert [line.split()[0] for line in lines] == ["layer", "l0", "l1"] * 2
    assert max(map(len, lines)) <= 80


paragraphs = st.builds(Paragraph, texts, senses)
listed = st.builds(Item, texts, st.integers(0, 4), st.lists(texts, max_size=5).map(tuple))
blocks = st.one_of(
    paragraphs, listed, tables(), st.builds(Terms, st.lists(st.tuples(texts, texts)).map(tuple)),
    st.builds(Verbatim, st.lists(texts).map(tuple)),
)  # fmt: skip
views = st.recursive(
    st.builds(Section, texts, st.lists(blocks, max_size=4).map(tuple), st.booleans()),
    lambda inner: st.builds(
        Section, texts, st.lists(blocks | inner, max_size=4).map(tuple), st.booleans()
    ),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None)
@given(views)
def test_every_renderer_takes_any_view_and_html_stays_whole(view):
    for render in RENDERERS.values():
        told = render(view)
        assert "\x1b" not in told and "\x00" not in told
    Page(html.render(view))


@settings(max_examples=60, deadline=None)
@given(st.lists(listed, max_size=8))
def test_an_item_is_at_most_one_level_below_the_one_before(items):
    found = levels(items)
    assert all(b <= a + 1 for a, b in zip((-1, *found), found, strict=False))


def test_every_kind_of_value_is_among_those_that_are_tried_here():
    assert {type(value).__name__ for value in VALUES} | {"Analysis"} == {
        schema.__name__ for schema in VIEWS
    }


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_every_table_of_a_value_is_whole_in_every_form(value):
    for view in (view_of(value, of) for of in (VIEWS, WHOLE) if type(value) in of):
        page = Page(html.render(view))
        assert told(view) - Counter(page.cells) == Counter()
        cells = Counter(map(visible, markdown_cells(markdown.render(view))))
        assert told(view) - cells == Counter()
        text = terminal.render(view)
        assert max(map(len, text.splitlines())) <= 80 or HOSTILE in text


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_text_is_what_a_terminal_gets_and_html_has_no_script(value):
    assert as_text(value) == "\n".join(line.plain for line in as_lines(value))
    assert max(map(len, as_text(value, 200).splitlines())) <= 200
    assert "<script" not in as_html(value) and "onerror" not in as_html(value)


def test_what_is_better_worse_and_chosen_is_told_in_colour_and_in_html():
    styles = {span.style for line in as_lines(report()) for span in line.spans}
    assert {"red", "bold"} <= styles
    assert "firebrick" in as_html(report()) and "<b>" in as_html(report())


def test_a_run_says_the_limits_and_the_overrides_in_both_forms():
    for text in (as_text(report("r")), as_markdown(report("r"))):
        assert "missed" in text and "per_channel -" in text
    assert "conv, conv, conv and 2 more" in as_text(report("r"))


def test_a_value_of_another_class_is_refused_by_name():
    with pytest.raises(TypeError, match="nothing shows a Part"):
        as_text(type(report()).__mro__[1]())


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="a cell for each column"):
        Table((Column("a"),), (Row((Cell("1"), Cell("2"))),))


def test_a_text_column_is_wrapped_in_place():
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    table = Table((Column("a"), Column("b", "figure")), (Row((Cell(words), Cell("1.0"))),))
    lines = terminal.render(Section("", (table,)), 40).splitlines()
    assert [line.rstrip(" .01b") for line in lines[1:]] == textwrap.wrap(words, 36)
