"""How small a drop the samples of a run can prove, with the flips that were seen in it."""

from __future__ import annotations

from collections.abc import Sequence

from granplugin.measures.power import smallest_provable_drop, smallest_significant_drop
from granplugin.report.schema.run import Provable, VariantResult
from granplugin.results.values import FP32


def provable(samples: int, variants: Sequence[VariantResult]) -> Provable | None:
    """None below 4 samples, which prove nothing."""
    significant = smallest_significant_drop(samples)
    if significant is None:
        return None
    against = (
        metric.vs[FP32]
        for variant in variants
        if variant.kind != "baseline"
        for metric in variant.main_engine.metrics.values()
        if FP32 in metric.vs
    )
    gained = [each.gained or 0 for each in against if each.verdict != "worse"]
    back = 100 * max(gained, default=0) / samples
    return Provable(
        significant_drop=significant,
        drop=smallest_provable_drop(samples),
        back=back,
        drop_with_back=smallest_provable_drop(samples, back),
    )
