"""Which layers a pattern on the names of quantizers is about.

modelopt matches `fnmatch` patterns with `layer.weight_quantizer`; a recipe matches layers. A
pattern's quotient by that suffix is again a union of patterns.
"""

from __future__ import annotations

import fnmatch
import re

_PARTS = re.compile(r"\*+|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)


def without_suffix(pattern: str, suffix: str) -> frozenset[str]:
    """Patterns such that any of them matches a name where `pattern` matches name + suffix.

    >>> sorted(without_suffix("*weight_quantizer", ".weight_quantizer"))
    ['*']
    >>> sorted(without_suffix("*lm_head*", ".input_quantizer"))
    ['*lm_head*']
    >>> sorted(without_suffix("*input_quantizer", ".weight_quantizer"))
    []
    """
    found: set[str] = set()
    seen: set[tuple[int, int]] = set()
    parts = ["*" if "*" * len(part) == part else part for part in _PARTS.findall(pattern)]

    def back(last: int, left: int) -> None:
        """Parts up to `last` have to match up to `left` characters of the suffix, and a name."""
        if (last, left) in seen:
            return
        seen.add((last, left))
        if left == 0:
            found.add("".join(parts[:last]))
            return
        if last == 0:
            return
        part = parts[last - 1]
        if part == "*":
            # The star takes the last character and stays, or takes no more.
            back(last, left - 1)
            back(last - 1, left)
        elif fnmatch.fnmatchcase(suffix[left - 1], part):
            back(last - 1, left - 1)

    back(len(parts), len(suffix))
    return frozenset(_smallest(found))


def _smallest(patterns: set[str]) -> set[str]:
    """Without those that begin as another one does, which goes on with a star."""
    kept: set[str] = set()
    for each in sorted(patterns, key=lambda pattern: (len(pattern), pattern)):
        if not any(star.endswith("*") and each.startswith(star[:-1]) for star in kept):
            kept.add(each)
    return kept


def as_match(patterns: frozenset[str]) -> str:
    """One name of a recipe's `match` for what any of them matches.

    >>> as_match(frozenset({"*"})), as_match(frozenset({"*lm_head*"}))
    ('**', '**lm_head**')
    >>> as_match(frozenset({"block.?.fc"}))
    're:(?s:block\\\\..\\\\.fc)'
    """
    if len(patterns) == 1:
        (pattern,) = patterns
        # `**.` of a recipe is also nothing, and its ? is no dot.
        if not re.search(r"[?\[]|\*\.", pattern):
            return pattern.replace("*", "**")
    told = [re.sub(r"\\[zZ]$", "", fnmatch.translate(each)) for each in sorted(patterns)]
    # Its atomic groups save Python's matcher work, and match what plain ones do: the first place
    # where a part between stars fits leaves most to the rest.
    return "re:" + "|".join(told).replace("(?>", "(?:")
