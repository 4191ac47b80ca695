"""Lint findings, those alike together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from granplugin.report.schema.run import LintFinding
from granplugin.report.view.elements import Item
from granplugin.words import counted, with_lines

_OTHERS = 3
"""Of what is wrong in several ways, told beside the first."""


def findings_items(
    findings: Sequence[LintFinding], most: int | None = None, depth: int = 0
) -> Iterator[Item]:
    """An item for each code, of the first `most` codes, and one below it for its layers."""
    groups: dict[str, list[LintFinding]] = {}
    for finding in findings:
        groups.setdefault(finding.code, []).append(finding)
    listed = list(groups.items())
    for code, found in listed[:most]:
        moved = sum(each.bytes for each in found if each.bytes is not None)
        cost = f", {moved / 1e6:.2f} MB" if moved else ""
        head = f"{code} ({counted(found, 'layer')}{cost})"
        yield Item(f"{head}: {found[0].says}; {found[0].instead}", depth)
        others = list(dict.fromkeys(each.says for each in found))[1:]
        if found[0].severity != "advice":  # each is to be mended
            yield from (Item(says, depth + 1) for says in others[:_OTHERS])
        layers = [each.layer for each in found]
        yield Item(with_lines(layers, [each.where for each in found]), depth + 1)
    if most is not None and len(listed) > most:
        rest = sum(len(found) for _, found in listed[most:])
        yield Item(f"and {rest} more: {', '.join(code for code, _ in listed[most:])}", depth)
