"""Figures of metrics, with as many decimals as tell them and their intervals apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from granplugin.report.schema.run import Interval, MetricValue

_FIXED = ("%", "points", "dB")
"""Units of which two decimals tell all that samples can."""
NONE_MEASURABLE = "no measurable difference"


def spec_of(found: Iterable[MetricValue]) -> str:
    """The format of a metric's figures in a table: the least of them has two digits or more.

    >>> spec_of([MetricValue(value=0.00512, unit=""), MetricValue(value=3.0, unit="")])
    '.4f'
    >>> spec_of([MetricValue(value=0.00512, unit="%")])
    '.2f'
    """
    found = list(found)
    if all(each.unit in _FIXED for each in found):
        return ".2f"
    told = [abs(x) for each in found for x in _figures(each) if math.isfinite(x) and x]
    if not told:
        return ".2f"
    if min(told) < 1e-5 or max(told) >= 1e7:
        return ".2e"
    return f".{max(2, 1 - math.floor(math.log10(min(told))))}f"


def _figures(value: MetricValue) -> Iterator[float]:
    yield value.value
    for interval in value.vs.values():
        yield interval.value
        if interval.low is not None and interval.high is not None:
            yield interval.high - interval.low


def headline(metrics: Sequence[str]) -> str | None:
    """The one of a run's metrics that stands first; None where there is none."""
    named = (name for name in ("top1", "top5") if name in metrics)
    return next(named, metrics[0] if metrics else None)


def figure(value: float, spec: str) -> str:
    """One value; `equal` where nothing differs at all."""
    return f"{value:{spec}}" if math.isfinite(value) else "equal"


def bounds(low: float, high: float, spec: str, sign: str = "") -> str:
    """An interval."""
    return f"[{low:{sign}{spec}}, {high:{sign}{spec}}]"


def difference(interval: Interval, spec: str) -> str:
    """A difference with its interval, if it has one."""
    told = f"{interval.value:+{spec}}"
    if interval.low is None or interval.high is None:
        return told
    return f"{told} {bounds(interval.low, interval.high, spec, '+')}"
