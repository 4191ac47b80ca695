"""A recipe's limits against what was measured."""

from __future__ import annotations

from granplugin.engines import ENGINES
from granplugin.recipe.schema import Limits
from granplugin.report.schema.run import LimitResult, VariantResult


def limits(asked: Limits, result: VariantResult) -> list[LimitResult]:
    """Each limit of the recipe: met, missed, or what keeps it from being told."""
    found = []
    main = result.main_engine
    if asked.top1_drop is not None:
        interval = main.metrics["top1"].vs.get("fp32") if main else None
        drop = None if interval is None or interval.low is None else -interval.low
        verdict = "cannot tell" if drop is None else "met" if drop <= asked.top1_drop else "missed"
        why = (
            interval.method if drop is None and interval
            else f"drop of at most {drop:.2f} points (95 %) on {main.engine}" if drop is not None
            else "top1 was not measured"
        )  # fmt: skip
        found.append(
            LimitResult(
                limit="top1_drop", variant=result.name, bound=asked.top1_drop, measured=drop,
                verdict=verdict, why=why,
            )
        )  # fmt: skip
    timed = next((engine for engine in result.engines if engine.latency), None)
    for baseline, bound in asked.latency_vs.items():
        ratio = timed.latency[0].vs.get(baseline) if timed else None
        if ratio is None:
            verdict, why = "cannot tell", "no engine of this run measures latency"
        else:
            verdict = (
                "met" if ratio.high <= bound else "missed" if ratio.low > bound else "cannot tell"
            )
            why = (
                f"{ratio.value:.2f} (95 % {ratio.low:.2f} to {ratio.high:.2f}) on {timed.engine}, "
                f"batch {timed.latency[0].batch}"
            )
        found.append(
            LimitResult(
                limit=f"latency_vs {baseline}", variant=result.name, bound=bound,
                measured=ratio.value if ratio else None, verdict=verdict, why=why,
            )
        )  # fmt: skip
    if asked.unhonoured is not None:
        found += _unhonoured(asked.unhonoured, result)
    return found


def _unhonoured(bound: int, result: VariantResult) -> list[LimitResult]:
    """For each targeted engine that says what it did, or where there is none, each that does."""
    told = [engine for engine in result.engines if engine.verdicts]
    found = []
    for engine in [engine for engine in told if ENGINES[engine.engine].targeted] or told:
        bad = sum(v.verdict in ("degraded", "wrong") for v in engine.verdicts)
        unknown = sum(v.verdict == "unknown" for v in engine.verdicts)
        verdict = "missed" if bad > bound else "met" if bad + unknown <= bound else "cannot tell"
        why = f"{engine.honoured} of {len(engine.verdicts)} rows honoured on {engine.engine}"
        why += f", {unknown} not known" if unknown else ""
        found.append((verdict, float(bad), why))
    found = found or [("cannot tell", None, "no engine of this run says what it did with rows")]
    return [
        LimitResult(
            limit="unhonoured", variant=result.name, bound=bound, measured=bad, verdict=verdict,
            why=why,
        )
        for verdict, bad, why in found
    ]  # fmt: skip
