"""What to do next with what a verb has found: command lines that can be pasted, each with its why."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from granplugin.cli.telling import telling
from granplugin.engines import AUDITED
from granplugin.stdout import say

if TYPE_CHECKING:
    from granplugin.report.schema.analysis import Analysis
    from granplugin.report.schema.run import EngineResult, Report, VariantResult
    from granplugin.report.schema.verbs import AuditOutput

_MOST = 3
"""Steps that are told; further ones wait for these."""


@dataclass(frozen=True)
class Next:
    """Words of a command line behind `granplugin`, and what it would show or do."""

    words: tuple[str, ...]
    why: str

    @property
    def line(self) -> str:
        """
        >>> Next(("analyze", "my net.yaml"), "which layers lose it").line
        "next: granplugin analyze 'my net.yaml'  # which layers lose it"
        """
        return f"next: {shlex.join(('granplugin', *self.words))}  # {self.why}"


def say_next(steps: Iterable[Next]) -> None:
    """Lines of the result, unless it is to be quiet."""
    if telling().quiet:
        return
    for step in list(dict.fromkeys(steps))[:_MOST]:
        say(step.line)


def typed(
    recipe: Path, settings: Sequence[str] | None = None, out: Path | None = None
) -> tuple[str, ...]:
    """A recipe, and what else was given with it, as words for another verb.

    >>> typed(Path("a.yaml"), ["data.batch_size=8"])
    ('a.yaml', '--set', 'data.batch_size=8')
    """
    told = [_path(recipe)]
    for setting in settings or ():
        told += ["--set", setting]
    return (*told, *(("--out", _path(out)) if out else ()))


def _path(path: Path) -> str:
    """One that no parser takes for an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def after_run(report: Report, folder: Path, words: dict[str, tuple[str, ...]]) -> Iterator[Next]:
    """What is wrong or not honoured is audited, a recipe that loses or changes nothing yet is
    analyzed; `words` are each recipe's, as it was typed."""
    for variant in report.variants:
        for engine in variant.engines:
            if engine.engine in AUDITED and _not_as_asked(engine):
                yield _audit(folder, variant, engine)
                break
    for variant in report.variants:
        if variant.recipe not in words:
            continue
        if _loses(report, variant):
            why = "which layers lose it, and what mends it"
        elif variant.kind == "recipe" and variant.same_as and not report.broken_baseline:
            why = "which layers are sensitive, and what each granularity costs"
        else:
            continue
        yield Next(("analyze", *words[variant.recipe]), why)


def _not_as_asked(engine: EngineResult) -> bool:
    wrong = engine.traced is not None or (engine.held is not None and engine.held.wrong)
    return wrong or any(v.verdict in ("degraded", "wrong") for v in engine.verdicts)


def _audit(folder: Path, variant: VariantResult, engine: EngineResult) -> Next:
    built = folder / "variants" / variant.name / f"{engine.engine}.onnx"
    file = built if built.is_file() else folder / variant.onnx
    words = [
        "audit",
        _path(file),
        "--backend",
        engine.engine,
        "--plan",
        _path(folder / "plan.json"),
    ]
    layers = folder / "variants" / variant.name / engine.engine / "layers.json"
    if layers.is_file():
        words += ["--layers", _path(layers)]
    return Next(tuple(words), f"what {engine.engine} made of each site of {variant.name}")


def _loses(report: Report, variant: VariantResult) -> bool:
    """Whether the recipe itself, which is what an analysis is of, loses more than it may: by its
    limit of accuracy, or, where it has none that is judged, measurably against fp32."""
    if report.broken_baseline is not None or variant.kind != "recipe":
        return False
    judged = {
        limit.verdict
        for limit in report.limits
        if limit.variant == variant.name and limit.limit == "top1_drop"
    } - {"cannot tell"}
    if judged:
        return "missed" in judged
    return any(
        value.vs["fp32"].verdict == "worse"
        for value in variant.main_engine.metrics.values()
        if "fp32" in value.vs
    )


def after_analysis(
    analysis: Analysis, words: tuple[str, ...], written: Path | None, samples: str | None = None
) -> Iterator[Next]:
    """Advice is written, and applied; `words` are the recipe's, as it was typed, `samples` the key
    that says how few there are."""
    if written is not None:
        yield Next(("apply", _path(written)), "build and measure the suggested recipe")
    elif analysis.advice.overrides:
        target = Path(words[0]).with_suffix("").name + "_suggested.yaml"
        yield Next(("analyze", *words, "--write-recipe", target), "a recipe with these rules")
    elif analysis.advice.verdict == "within":
        yield Next(("apply", *words), "build and measure it")
    elif analysis.advice.verdict == "cannot tell" and samples and analysis.advice.enough_samples:
        more = f"{samples}={analysis.advice.enough_samples}"
        yield Next(("analyze", *words, "--set", more), "on as many samples as could tell")


def after_audit(audit: AuditOutput) -> Iterator[Next]:
    """The pages of the codes that were found, the worst first."""
    found = (*audit.refusals, *audit.findings)
    ranks = ("refused", "wrong", "advice")
    seen: set[str] = set()
    for finding in sorted(found, key=lambda each: ranks.index(each.severity)):
        if finding.code in seen:
            continue
        seen.add(finding.code)
        yield Next(("explain", finding.code), f"why {finding.layer}, and the way out")
