"""Reports of earlier schemas as of today's: what was not known then stays unknown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from granplugin.report.schema.run import Report
from granplugin.results.parts import Part

Migration = Callable[[dict[str, Any]], dict[str, Any]]


def _report_1(data: dict[str, Any]) -> dict[str, Any]:
    """Version 1 counted the bytes of activations alone, and told the drop that samples prove by
    another definition."""
    data = {key: value for key, value in data.items() if key != "smallest_provable_drop"}
    variants = [
        variant | {"engines": [_moved(engine) for engine in variant["engines"]]}
        for variant in data["variants"]
    ]
    return data | {"version": 2, "provable": None, "variants": variants}


def _moved(engine: dict[str, Any]) -> dict[str, Any]:
    engine = dict(engine)
    activations = engine.pop("traffic_bytes", None)
    if activations is not None:
        unknown = dict.fromkeys(("weights", "scales", "other", "total"))
        engine["moved"] = {"activations": activations, **unknown}
    return engine


def _report_2(data: dict[str, Any]) -> dict[str, Any]:
    """Version 2 called a latency's interquartile range what inspect.json calls a weight's."""
    variants = [
        variant | {"engines": [_iqr(engine) for engine in variant["engines"]]}
        for variant in data["variants"]
    ]
    return data | {"version": 3, "variants": variants}


def _iqr(engine: dict[str, Any]) -> dict[str, Any]:
    latency = [
        {"iqr" if key == "spread" else key: value for key, value in each.items()}
        for each in engine.get("latency", ())
    ]
    return engine | {"latency": latency}


MIGRATIONS: Mapping[type[Part], Mapping[int, Migration]] = {Report: {1: _report_1, 2: _report_2}}
"""By schema and the version that is read: what makes it one of the next version."""


def migrated(schema: type[Part], data: dict[str, Any]) -> dict[str, Any]:
    """The data in the newest version that a chain of migrations leads to. LookupError, TypeError or
    AttributeError where they are not what their version says."""
    steps = MIGRATIONS.get(schema, {})
    while data.get("version") in steps:
        data = steps[data["version"]](data)
    return data
