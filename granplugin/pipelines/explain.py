"""explain: half a page on a word of recipes and reports, an exit code, or a code of lint."""

from __future__ import annotations

from textwrap import fill

from granplugin import topics
from granplugin.audits import lint_pages as of_lint
from granplugin.audits.lint import CODES
from granplugin.errors import UserError
from granplugin.suggest import did_you_mean


def page(word: str) -> str:
    """The page of a topic, of another word that leads to it, or of a code of lint, in at most 80
    columns. Raises UserError where there is none."""
    wanted = word.lower()
    if wanted in CODES:
        return of_lint.page(wanted)
    if wanted in topics.TOPICS:
        return topics.page(wanted)
    for topic, words in topics.TOPICS.items():
        if wanted in words:
            return topics.page(topic)
    known = [*topics.TOPICS, *(each for words in topics.TOPICS.values() for each in words), *CODES]
    raise UserError(f"there is no page on {word!r}{did_you_mean(wanted, known)}")


def listing() -> str:
    """All pages, by what they are about, in 80 columns."""
    wide = max(map(len, topics.TOPICS))
    words = [_line(f"  {topic:<{wide}}  ", ", ".join(of)) for topic, of in topics.TOPICS.items()]
    codes = [_line(f"  {code:<32}", said) for code, said in _said().items()]
    return "Topics, and other words that lead to them:\n{}\n\nCodes of lint:\n{}\n".format(
        "\n".join(words), "\n".join(codes)
    )


def _line(head: str, text: str) -> str:
    return fill(text, 80, initial_indent=head, subsequent_indent=" " * len(head))


def _said() -> dict[str, str]:
    """The first line of each code's page."""
    return {code: of_lint.page(code).partition("\n")[0] for code in CODES}
