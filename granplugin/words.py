"""Words of any sentence: counts with their noun, sizes, durations, the first few of many names."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def counted(of: int | Collection[object], noun: str) -> str:
    """How many there are.

    >>> counted(1, "layer"), counted(["a", "b"], "layer")
    ('1 layer', '2 layers')
    """
    count = of if isinstance(of, int) else len(of)
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size(count: int) -> str:
    """Bytes, in a unit a person would take.

    >>> size(730), size(12_345), size(113_200_000), size(2_000_000_000)
    ('730 bytes', '12 kB', '113 MB', '2.0 GB')
    """
    if count < 1000:
        return counted(count, "byte")
    value, unit = float(count), ""
    for unit in ("kB", "MB", "GB", "TB"):  # noqa: B007
        value /= 1000
        if value < 999.5:
            break
    return f"{value:.1f} {unit}" if value < 9.95 else f"{value:,.0f} {unit}"


def digits(value: float) -> str:
    """A figure of two digits, and of all that are in front of its point.

    >>> digits(0.0412), digits(99.96), digits(234.0), digits(1.2e9)
    ('0.041', '100', '234', '1.2e+09')
    """
    return f"{value:,.0f}" if 99.5 <= abs(value) < 1e6 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """
    >>> duration(0.2), duration(75.0), duration(7380)
    ('under 1 s', '1 min 15 s', '2 h 3 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s" if rest else "under 1 s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


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
