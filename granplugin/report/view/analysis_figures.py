"""Figures of an analysis with the farther end of their interval, as 90.3±2.0."""

from __future__ import annotations

import math
from collections.abc import Iterable

from granplugin.report.schema.analysis import Share, Sqnr


def db_text(sqnr: Sqnr | None, interval: bool = False) -> str | None:
    """dB with one decimal; `exact` where nothing changed, `none` where there is no signal."""
    if sqnr is None:
        return None
    if sqnr.db is None:
        return "none"
    if sqnr.db == math.inf:
        return "exact"
    return f"{sqnr.db:z.1f}" + (_half(sqnr.db, sqnr.low, sqnr.high, 1) if interval else "")


def share_text(share: Share | None, decimals: int = 2) -> str | None:
    """Percent and points with so many decimals, others with two more digits; the interval."""
    if share is None:
        return None
    if share.unit in ("%", "points"):
        return f"{share.value:z.{decimals}f}{_half(share.value, share.low, share.high, decimals)}"
    told = f"{share.value:.{decimals + 2}g}"
    if share.low is None or share.high is None or not math.isfinite(share.value):
        return told
    return f"{told}±{max(share.high - share.value, share.value - share.low):.2g}"


def _half(value: float, low: float | None, high: float | None, decimals: int) -> str:
    """± and the farther bound, rounded up so that it is never 0."""
    if low is None or high is None or not math.isfinite(value):
        return ""
    half = max(high - value, value - low)
    if not math.isfinite(half):
        return "±inf"
    return f"±{math.ceil(round(half * 10**decimals, 6)) / 10**decimals:.{decimals}f}"


def widest(figures: Iterable[Sqnr]) -> str:
    """The widest interval; empty where there is none."""
    halves = [_half(x.db, x.low, x.high, 1) for x in figures if x.db is not None]
    return max(halves, key=lambda half: float(half[1:] or 0), default="")
