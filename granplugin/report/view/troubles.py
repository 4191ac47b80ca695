"""What went wrong on an engine: a file that it refuses, or computes otherwise than it says."""

from __future__ import annotations

from collections.abc import Iterator

from granplugin.report.schema.run import Held, Report, WrongFile
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
                yield Item(
                    f"WRONG: {_apart(engine.engine, variant.name, engine.held)}; its figures are "
                    "the engine's, not the recipe's",
                    sense="bad",
                )
                if engine.traced:
                    yield from _where(engine.traced)
                    yield Item(f"{engine.traced.note} ({engine.traced.builds} builds)", 1)
            elif engine.traced:
                yield Item(
                    f"LEFT FLOAT: {_apart(engine.engine, variant.name, engine.traced.held)}; what "
                    f"it computes wrongly is float in a file of its own, {engine.engine}.onnx, "
                    "whose figures these are:",
                    sense="doubtful",
                )
                yield from _where(engine.traced)


def _apart(engine: str, variant: str, held: Held) -> str:
    return (
        f"{engine} does not compute what the file of {variant} says: its {held.output!r} is "
        f"{held.engine_db:.1f} dB from the float network, the reference's "
        f"{held.reference_db:.1f} (ONNX Runtime on the same file, {held.samples} samples)"
    )


def _where(traced: WrongFile) -> Iterator[Item]:
    """What is computed wrongly, with the way out of each."""
    for parts in traced.sets:
        told = " together with ".join(f"{part.name!r} ({part.where})" for part in parts)
        yield Item(f"{told}: write {parts[-1].write} there", 1)


def _told(report: Report, word: str, field: str) -> Iterator[Item]:
    """A reason that is the same of several variants is told once."""
    for engines in report.by_engine:
        reasons: dict[str, list[str]] = {}
        for variant, engine in zip(report.variants, engines, strict=True):
            if reason := getattr(engine, field):
                reasons.setdefault(reason, []).append(variant.name)
        for reason, variants in reasons.items():
            yield Item(f"{word}: {', '.join(variants)}: {reason}", sense="bad")
