"""Words of any sentence: counts with their noun, the first few of many names."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def counted(of: int | Collection[object], noun: str) -> str:
    """How many there are.

    >>> counted(1, "layer"), counted(["a", "b"], "layer")
    ('1 layer', '2 layers')
    """
    count = of if isinstance(of, int) else len(of)
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def first(names: Sequence[str], most: int = 3) -> str:
    """The first of them, and how many more there are.

    >>> first(["a", "b", "c"]), first(["a", "b", "c", "d", "e"])
    ('a, b, c', 'a, b, c and 2 more')
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def with_lines(layers: Sequence[str], where: Sequence[str | None]) -> str:
    """The first layers, and behind them the recipe's lines that decided them.

    >>> with_lines(["a", "b"], ["r.yaml:3:5", None])
    'a, b (r.yaml:3:5)'
    """
    lines = list(dict.fromkeys(filter(None, where)))
    more = " ..." if len(lines) > 2 else ""
    return f"{first(layers)} ({', '.join(lines[:2])}{more})" if lines else first(layers)
