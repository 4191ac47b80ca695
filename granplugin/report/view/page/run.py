"""What a run came to, for whoever has no time: three sentences, and what makes them mean less."""

from __future__ import annotations

from collections.abc import Iterator

from granplugin.report.schema.run import EngineResult, Interval, Ratio, Report, VariantResult
from granplugin.report.view.coverage import coverage_line
from granplugin.report.view.elements import Block, Item, Paragraph, Section, Sense
from granplugin.report.view.metric_figures import bounds, figure, headline, spec_of
from granplugin.report.view.run_facts import megabytes, ran, ratio_text, warnings
from granplugin.report.view.senses import SENSES
from granplugin.report.view.troubles import troubles


def verdict(report: Report) -> Section:
    """Accuracy, then time and size, then how much is quantized and honoured; and what makes these
    mean less than they seem to."""
    told: list[Block] = [*troubles(report), *warnings(report)]
    fp32 = next((each for each in report.variants if each.name == "fp32"), None)
    for variant, engine in zip(report.variants, report.main_engine, strict=True):
        if variant.kind == "recipe":
            told += (
                *_accuracy(report, variant, engine), *_price(variant, fp32), *_honoured(variant),
            )  # fmt: skip
    told += (item for item in ran(report) if item.sense == "doubtful")
    for limit in report.limits:
        said = f"limit {limit.limit} <= {limit.bound:g} ({limit.variant}): {limit.verdict}; "
        told.append(Item(said + limit.why, sense=SENSES[limit.verdict]))
    return Section("", tuple(told))


def _accuracy(report: Report, variant: VariantResult, engine: EngineResult) -> Iterator[Paragraph]:
    name = headline(list(engine.metrics))
    if name is None:
        return
    found = engine.metrics[name]
    spec = spec_of([found])
    against: Interval | None = found.vs.get("fp32")
    said = f"{variant.name} has {name} {figure(found.value, spec)} {found.unit}".rstrip()
    sense: Sense = "strong"
    wrong = bool(engine.held and engine.held.wrong)
    if wrong:
        said, sense = f"{said} on {engine.engine}, which computes something else", "bad"
    elif against is not None and report.broken_baseline is None:
        said += f" on {engine.engine}, {against.verdict} than fp32" if against.verdict in (
            "better", "worse",
        ) else f" on {engine.engine}: no measurable difference from fp32"  # fmt: skip
        if against.low is not None and against.high is not None:
            said += f" (difference {bounds(against.low, against.high, spec, '+')}, 95 %)"
        sense = SENSES.get(against.verdict, "strong")
    yield Paragraph(f"{said}, on {report.evaluation_samples} samples.", sense)


def _price(variant: VariantResult, fp32: VariantResult | None) -> Iterator[Paragraph]:
    told = [
        f"{_of_fp32s(timed.vs['fp32'])} at batch {timed.batch} on {engine.engine}"
        for engine in variant.engines
        for timed in engine.latency
        if "fp32" in timed.vs
    ]
    size = f"its file has {megabytes(variant.onnx_bytes)} MB"
    if fp32 is not None:
        size += f", fp32's {megabytes(fp32.onnx_bytes)}"
    yield Paragraph(
        f"It takes {', '.join(told)}; {size}." if told else f"No time was measured; {size}."
    )


def _of_fp32s(ratio: Ratio) -> str:
    told = f"{ratio_text(ratio)} of fp32's time"
    return f"{told} (no measurable difference)" if ratio.low <= 1 <= ratio.high else told


def _honoured(variant: VariantResult) -> Iterator[Paragraph]:
    told = [f"It {coverage_line(variant.coverage)}"] if variant.coverage else []
    audited = [engine for engine in variant.engines if engine.verdicts]
    whole = [each.engine for each in audited if each.honoured == len(each.verdicts)]
    if whole:
        verb = "compute" if len(whole) > 1 else "computes"
        told.append(f"{' and '.join(whole)} {verb} all of it as asked")
    told += [
        f"{each.engine} computes {each.honoured} of {len(each.verdicts)} quantized operands as asked"
        for each in audited
        if each.engine not in whole
    ]
    if told:
        yield Paragraph(f"{'; '.join(told)}.")
