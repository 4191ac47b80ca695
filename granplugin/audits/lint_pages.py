"""A page of help for each code of lint: what it is, why it matters, a picture, the way out."""

from __future__ import annotations

from importlib.resources import files

from granplugin.audits.lint import CODES
from granplugin.errors import UserError
from granplugin.suggest import did_you_mean


def page(code: str) -> str:
    """The page of a code, of at most 80 columns. Raises UserError for one that there is not."""
    if code not in CODES:
        raise UserError(f"{code!r} is no code of lint{did_you_mean(code, CODES)}")
    return (files(__package__) / "pages" / f"{code}.txt").read_text(encoding="utf-8")
