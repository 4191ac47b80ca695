"""How much of a network is quantized: in one line, and the list of what stays float."""

from __future__ import annotations

from collections.abc import Iterator

from granplugin.report.schema.parts import Coverage
from granplugin.report.view.elements import Item

_KINDS = 4
"""Kinds of products that stay float which the line names."""


def coverage_line(covered: Coverage) -> str:
    """The shares of products, multiply-accumulates and weights, and what stays float."""
    told = f"quantizes {covered.quantized} of {covered.products} products"
    if covered.half:
        told += f" ({covered.half} of them one operand alone)"
    if covered.macs:
        told += f", {_percent(covered.quantized_macs, covered.macs)} of multiply-accumulates"
    if covered.weights:
        told += f", {_percent(covered.quantized_weights, covered.weights)} of weights"
    kinds = [f"{each.products} {each.what} ({each.reason})" for each in covered.floats[:_KINDS]]
    more = sum(each.products for each in covered.floats[_KINDS:])
    kinds += [f"{more} more"] if more else []
    return f"{told}; float: {', '.join(kinds)}" if kinds else told


def coverage_items(covered: Coverage) -> Iterator[Item]:
    """What stays float, kind by kind, with all its places."""
    for each in covered.floats:
        share = (
            f", {_percent(each.macs, covered.macs)} of multiply-accumulates" if covered.macs else ""
        )
        told = f"float: {each.products} {each.what} ({each.reason}){share}:"
        yield Item(told, 1, tuple(each.places))


def _percent(part: int, whole: int) -> str:
    """Never 100 % of what is not all, nor 0 % of what is some.

    >>> [_percent(part, 1000) for part in (0, 1, 610, 999, 1000)]
    ['0 %', 'under 1 %', '61 %', 'over 99 %', '100 %']
    """
    share = 100 * part / whole
    if 0 < share < 1:
        return "under 1 %"
    return "over 99 %" if 99 < share < 100 else f"{share:.0f} %"
