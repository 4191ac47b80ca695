"""A recipe's limits against what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

from granplugin.engines import ENGINES
from granplugin.measures.power import samples_to_tell
from granplugin.recipe.schema import Limits
from granplugin.report.schema.run import (
    EngineResult,
    Interval,
    LimitResult,
    LimitVerdict,
    VariantResult,
)


def limits(
    asked: Limits, result: VariantResult, variants: Sequence[VariantResult], broken: str | None
) -> list[LimitResult]:
    """Each limit of the recipe: met, missed, or what keeps it from being told. `variants` are all
    of the run, baselines too; `broken` says why fp32 is no baseline for accuracy."""
    found = []
    if asked.top1_drop is not None:
        found.append(_top1_drop(asked.top1_drop, result, broken))
    by_name = {each.name: each for each in variants}
    found += [
        _latency(name, bound, result, by_name.get(name)) for name, bound in asked.latency_vs.items()
    ]
    if asked.unhonoured is not None:
        found += _unhonoured(asked.unhonoured, result)
    return found


def _top1_drop(bound: float, result: VariantResult, broken: str | None) -> LimitResult:
    main = result.main_engine
    metric = main.metrics.get("top1")
    interval = metric.vs.get("fp32") if metric else None
    drop = None if interval is None or interval.low is None else -interval.low
    verdict: LimitVerdict = "cannot tell"
    if wrong := _wrong(main):
        why = wrong
    elif broken:
        why = broken
    elif interval is None or drop is None or interval.high is None:
        why = interval.method if interval else _not_measured("top1", result)
    else:
        least = max(-interval.high, 0.0)
        if drop <= bound:
            verdict = "met"
        elif least > bound:
            verdict = "missed"
        why = f"drop of {least:.2f} to {drop:.2f} points (95 %) on {main.engine}"
        if verdict == "met":
            why = f"drop of at most {drop:.2f} points (95 %) on {main.engine}"
        elif verdict == "cannot tell":
            why += _would_tell(interval, bound)
    return LimitResult(
        limit="top1_drop", variant=result.name, bound=bound, measured=drop, verdict=verdict,
        why=why,
    )  # fmt: skip


def _would_tell(interval: Interval, bound: float) -> str:
    """How many samples like these could tell a drop from a bound, both in points."""
    drop, flips = -interval.value, ((interval.gained or 0) + (interval.lost or 0)) / interval.n
    deviation = 100 * math.sqrt(max(flips - (drop / 100) ** 2, 0.0))
    # Were the drop the bound, so many samples at least would be wrong.
    enough = samples_to_tell(
        drop, bound, deviation, max(deviation, math.sqrt(bound * (100 - bound)))
    )
    return f"; some {enough:,} samples like these could tell" if enough else ""


def _not_measured(what: str, result: VariantResult) -> str:
    """Why there is no such figure."""
    refused = [engine.refused for engine in result.engines if engine.refused is not None]
    return f"{what} was not measured" + "".join(f"; {reason}" for reason in refused[:1])


def _wrong(engine: EngineResult) -> str | None:
    """Why nothing that was measured on an engine is a figure of the recipe."""
    if engine.held and engine.held.wrong:
        return f"{engine.engine} does not compute what its file says"
    return None


def _latency(
    baseline: str, bound: float, result: VariantResult, against: VariantResult | None
) -> LimitResult:
    """By the smallest batch of the first engine that measures latency."""
    timed = next((engine for engine in result.engines if engine.latency), None)
    ratio = timed.latency[0].vs.get(baseline) if timed else None
    verdict: LimitVerdict = "cannot tell"
    reasons = (each.refused or each.untimed for each in result.engines)
    why = next(filter(None, reasons), "no engine of this run measures latency")
    if timed and (wrong := _wrong(timed)):
        why = wrong
    elif timed and against and (why_void := _void(timed.engine, against)):
        why = why_void
    elif timed and not ratio:
        why = (
            f"no ratio to {baseline} was measured on {timed.engine}, batch {timed.latency[0].batch}"
        )
    elif timed and ratio:
        if ratio.high <= bound:
            verdict = "met"
        elif ratio.low > bound:
            verdict = "missed"
        why = (
            f"{ratio.value:.2f} (95 % {ratio.low:.2f} to {ratio.high:.2f}) on {timed.engine}, "
            f"batch {timed.latency[0].batch}"
        )
        if baseline == "fp32" and (really := ENGINES[timed.engine].fp32_is):
            why += f"; fp32 is multiplied in {really}"
    return LimitResult(
        limit=f"latency_vs {baseline}", variant=result.name, bound=bound,
        measured=ratio.value if ratio else None, verdict=verdict, why=why,
    )  # fmt: skip


def _void(engine: str, baseline: VariantResult) -> str | None:
    """Why a baseline's latency on an engine is not that of its name."""
    own = next(each for each in baseline.engines if each.engine == engine)
    if ran := baseline.computed_in(own):
        return (
            f"{engine} computes {baseline.name} in {ran}, not in {baseline.precision}: its latency "
            f"is none of {baseline.precision}"
        )
    if wrong := _wrong(own):
        return f"{baseline.name}: {wrong}"
    return None


def _unhonoured(bound: int, result: VariantResult) -> list[LimitResult]:
    """For each targeted engine that says what it did, or where there is none, each that does."""

    def found(verdict: LimitVerdict, bad: int | None, why: str) -> LimitResult:
        return LimitResult(
            limit="unhonoured", variant=result.name, bound=bound, measured=bad, verdict=verdict,
            why=why,
        )  # fmt: skip

    told = [engine for engine in result.engines if engine.verdicts]
    results = []
    for engine in [engine for engine in told if ENGINES[engine.engine].targeted] or told:
        bad = sum(v.verdict in ("degraded", "wrong") for v in engine.verdicts)
        unknown = sum(v.verdict == "unknown" for v in engine.verdicts)
        why = f"{engine.honoured} of {len(engine.verdicts)} rows honoured on {engine.engine}"
        why += f", {unknown} not known" if unknown else ""
        verdict: LimitVerdict = "met" if bad + unknown <= bound else "cannot tell"
        results.append(found("missed" if bad > bound else verdict, bad, why))
    nothing = "no engine of this run says what it did with rows"
    return results or [found("cannot tell", None, nothing)]
