"""What went wrong on an engine: a file that it refuses, or computes otherwise than it says."""

from __future__ import annotations

from collections.abc import Iterator

from granplugin.report.schema.run import Report
from granplugin.report.view.elements import Item


def troubles(report: Report) -> Iterator[Item]:
    """Of each engine, what keeps its figures from being there, or from being the recipe's."""
    yield from _wrong(report)
    yield from _told(report, "REFUSED", "refused")
    yield from _told(report, "NOT TIMED", "untimed")


def _wrong(report: Report) -> Iterator[Item]:
    for variant in report.variants:
        for engine in variant.engines:
            if engine.held and engine.held.wrong:
                held = engine.held
                yield Item(
                    f"WRONG: {engine.engine} does not compute what the file of {variant.name} says: "
                    f"its {held.output!r} is {held.engine_db:.1f} dB from the float network, the "
                    f"reference's {held.reference_db:.1f} (ONNX Runtime on the same file, "
                    f"{held.samples} samples); its figures are the engine's, not the recipe's",
                    sense="bad",
                )


def _told(report: Report, word: str, field: str) -> Iterator[Item]:
    """A reason that is the same of several variants is told once."""
    for engines in report.by_engine:
        reasons: dict[str, list[str]] = {}
        for variant, engine in zip(report.variants, engines, strict=True):
            if reason := getattr(engine, field):
                reasons.setdefault(reason, []).append(variant.name)
        for reason, variants in reasons.items():
            yield Item(f"{word}: {', '.join(variants)}: {reason}", sense="bad")
