"""What a reader of a run must know besides its figures."""

from __future__ import annotations

from collections.abc import Sequence

from granplugin import backends
from granplugin.data.batches import SAME_BITS, calibration_sizes, same_bits
from granplugin.engines import ENGINES, taking
from granplugin.recipe.build import Build
from granplugin.recipe.schema import Recipe
from granplugin.report.schema.run import VariantResult
from granplugin.results.values import Built
from granplugin.words import first


def notes(
    recipe: Recipe,
    built: Sequence[Built],
    variants: Sequence[VariantResult],
    calibration_samples: int,
) -> list[str]:
    """What was left out, what an engine does without, what stays float, what is wrong."""
    return [
        *_left_out(recipe),
        *_not_for_all(recipe),
        *_batches(recipe, calibration_samples),
        *_of_files(built),
        *_float_part(variants),
        *_wrong(variants),
    ]


def _batches(recipe: Recipe, samples: int) -> list[str]:
    most = recipe.data.batch_size
    if not recipe.model.small_batches_differ or same_bits(samples, most):
        return []
    least = min(calibration_sizes(samples, most))
    return [
        f"calibration had a batch of {least}, since data.batch_size is {most}: below {SAME_BITS} "
        "the last bits of ranges depend on the batch size and the number of threads"
    ]


def _left_out(recipe: Recipe) -> list[str]:
    missing = {name: backends.backend_of(name).unavailable() for name in recipe.optional_engines}
    return [f"engine {name} was left out: {reason}" for name, reason in missing.items() if reason]


def _not_for_all(recipe: Recipe) -> list[str]:
    """Build options that some engine of the run does not have."""
    notes = []
    named = dict.fromkeys([*recipe.engines, *recipe.optional_engines])
    for key in Build.model_fields:
        without = [name for name in named if key in ENGINES[name].without]
        if key in recipe.build.model_fields_set and without:
            notes.append(f"build.{key} is for {', '.join(taking(key))}; {without[0]} does without")
    least = max((shapes.min[0] for shapes in recipe.build.shapes.values()), default=1)
    if least > 1:
        notes.append(f"build.shapes start at {least} samples, so nothing is timed at batch 1 there")
    return notes


def _float_part(variants: Sequence[VariantResult]) -> list[str]:
    """What engines compute float in, where a file or a name says otherwise."""
    notes: dict[str, None] = {}
    for variant in variants:
        for engine in variant.engines:
            if ran := variant.computed_in(engine):
                notes[
                    f"{engine.engine} computes {variant.name} in {ran}, not in "
                    f"{variant.precision}: its latency there is none of {variant.precision}"
                ] = None
            elif (really := ENGINES[engine.engine].fp32_is) and variant.precision == "fp32":
                notes[f"{engine.engine} multiplies fp32 in {really}"] = None
    return list(notes)


def _wrong(variants: Sequence[VariantResult]) -> list[str]:
    return [
        f"{variant.name} on {engine.engine} is WRONG at {verdict.site}: {verdict.detail} "
        f"({verdict.where})"
        for variant in variants
        for engine in variant.engines
        for verdict in engine.verdicts
        if verdict.verdict == "wrong"
    ]


def _of_files(built: Sequence[Built]) -> list[str]:
    notes: dict[str, None] = {}
    for each in built:
        name = each.job.name
        notes |= dict.fromkeys(each.job.plan.notes)
        if each.zero_sites:
            notes[
                f"{name}: saw only zeros, or values up to 2^-24, which modelopt takes for zero, so "
                f"their layers stay float: {first(each.zero_sites)}"
            ] = None
        if each.float32_nodes:
            notes[
                f"{name}: nodes that stay float32, since float16 could overflow there: "
                f"{first(each.float32_nodes)}"
            ] = None
        for engine in each.own:
            if each.job.precision not in ENGINES[engine].precisions:
                notes[
                    f"{name} on {engine} is its float32 graph: {engine} has no {each.job.precision}"
                ] = None
        if each.agreement and each.agreement.oracle_differs:
            notes[
                f"{name}: ONNX Runtime differs from the oracle in {each.agreement.oracle_differs} "
                "values"
            ] = None
    return list(notes)
