"""What a run, an audit, a comparison or a check decides, one by one, as a gate counts it.

A case has failed where the exit code is 1, 2 or 3 for it, is an error where the exit code is 4 for
it - it cannot be told -, and is skipped where it is not as asked, or not known, and the exit code
does not depend on it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from granplugin.report.schema.check import CheckOutput
from granplugin.report.schema.run import EngineResult, LimitVerdict, Report, VariantResult
from granplugin.report.schema.verbs import AuditOutput, CompareOutput, CompareRunsOutput
from granplugin.results.parts import Part

Outcome = Literal["passed", "failed", "error", "skipped"]

_OF_LIMIT: dict[LimitVerdict, Outcome] = {
    "met": "passed", "missed": "failed", "cannot tell": "error",
}  # fmt: skip
_PLACE = re.compile(
    r"(?P<file>.+?):(?P<line>\d+)(?::(?P<column>\d+))?(?:: (?P<rest>.*))?", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file; 0 where only the file is known."""

    file: str
    line: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """One decision: what it is `of` (the variant and engine, the file), its `name` there, what came
    of it and why, and the line that asked for it."""

    of: str
    name: str
    outcome: Outcome
    told: str = ""
    place: Place | None = None


def place_of(where: str | None) -> Place | None:
    """
    >>> place_of("my r.yaml:25:3")
    Place(file='my r.yaml', line=25, column=3)
    >>> place_of("tensorrt@11") is None
    True
    """
    match = _PLACE.fullmatch(where or "")
    if match is None:
        return None
    return Place(match["file"], int(match["line"]), int(match["column"] or 0))


def refused(verb: str, message: str) -> list[Case]:
    """Of a verb that ended in an error of the user's: a case for each line that names a file's."""
    lines = message.splitlines()
    if lines and all(_PLACE.fullmatch(line) for line in lines):
        return [_refusal(verb, line) for line in lines]
    return [Case(verb, "refused", "failed", message)]


def ended(verb: str, err: BaseException) -> Case:
    """Of a verb that was stopped, or failed by itself."""
    return Case(verb, "ended", "error", f"{type(err).__name__}: {err}".removesuffix(": "))


def _refusal(of: str, line: str) -> Case:
    match = _PLACE.fullmatch(line)
    if match is None or match["rest"] is None:
        return Case(of, "refused", "failed", line)
    place = Place(match["file"], int(match["line"]), int(match["column"] or 0))
    return Case(of, f"line {place.line}", "failed", match["rest"], place)


def cases_of(value: Part) -> list[Case]:
    """The cases of what a verb prints with --json. TypeError for a verb that decides nothing."""
    for kind, of in _CASES.items():
        if isinstance(value, kind):
            return list(of(value))
    raise TypeError(f"a {type(value).__name__} decides nothing")


def _run(report: Report) -> Iterator[Case]:
    for limit in report.limits:
        yield Case(
            f"{report.name}.limits",
            f"{limit.limit} <= {limit.bound:g} of {limit.variant}",
            _OF_LIMIT[limit.verdict],
            limit.why,
            place_of(limit.where),
        )
    for variant in report.variants:
        for engine in variant.engines if variant.kind != "baseline" else ():
            yield from _engine(f"{report.name}.{variant.name}.{engine.engine}", variant, engine)


def _engine(of: str, variant: VariantResult, engine: EngineResult) -> Iterator[Case]:
    """Whether it takes the file and computes what it says, and what it made of each row."""
    ours: Outcome = "failed" if engine.fails else "skipped"
    file = Place(variant.recipe) if variant.recipe else None
    if engine.refused is not None:
        yield Case(of, "takes the file", ours, engine.refused, file)
        return
    if engine.traced is not None or (engine.held is not None and engine.held.wrong):
        yield Case(of, "computes what the file says", ours, _wrong(engine), file)
    elif engine.held is not None:
        yield Case(of, "computes what the file says", "passed")
    broken = {each.site for each in engine.broken_promises}
    for row in engine.verdicts:
        outcome: Outcome = "passed" if row.verdict == "honoured" else "skipped"
        if engine.fails and row.site in broken:
            outcome = "failed"
        yield Case(of, row.site, outcome, f"{row.verdict}: {row.detail}", place_of(row.where))


def _wrong(engine: EngineResult) -> str:
    if engine.traced is None:
        return "it computes something else"
    places = [part.name for part in engine.traced.left_float]
    return f"it computes something else{' with these quantized: ' if places else ''}" + ", ".join(
        places
    )


def _audit(audit: AuditOutput) -> Iterator[Case]:
    of = f"{audit.onnx} on {audit.engine}"
    for finding in (*audit.refusals, *audit.findings):
        outcome: Outcome = "skipped" if finding.severity == "advice" else "failed"
        place = place_of(finding.where) or Place(audit.onnx)
        told = f"{finding.says}; {finding.instead}"
        yield Case(of, f"{finding.code} of {finding.layer}", outcome, told, place)
    outcomes: dict[str | None, Outcome] = {
        "honoured": "passed", "degraded": "failed", "wrong": "failed", "unknown": "error",
        None: "skipped",
    }  # fmt: skip
    for site in audit.sites:
        told = f"{site.verdict or 'no verdict'}: {site.detail}"
        place = place_of(site.where) or Place(audit.onnx)
        yield Case(of, f"{site.layer}.{site.role}", outcomes[site.verdict], told, place)


def _compare(compared: CompareOutput) -> Iterator[Case]:
    """A difference is no fault: `compare` has no verdict but that it was made."""
    for layer in compared.layers:
        told = f"{layer.a.arithmetic} | {layer.b.arithmetic}" if layer.changed else "the same"
        outcome: Outcome = "skipped" if layer.changed else "passed"
        yield Case(f"{compared.a.name} and {compared.b.name}", layer.layer, outcome, told)


def _compare_runs(compared: CompareRunsOutput) -> Iterator[Case]:
    """What is worse in B is told; limits, which decide, are of a run."""
    for each in compared.figures:
        worse = each.difference is not None and each.difference.verdict == "worse"
        told = each.difference.verdict if each.difference else "not known"
        outcome: Outcome = "skipped" if worse or each.difference is None else "passed"
        yield Case(f"{compared.b.run} and {compared.a.run}", f"{each.metric} of {each.variant}",
                   outcome, told)  # fmt: skip


def _check(checked: CheckOutput) -> Iterator[Case]:
    for each in checked.recipes:
        if each.ok:
            yield Case(each.recipe, "good", "passed")
        for line in each.errors:
            yield _refusal(each.recipe, line)


_CASES: dict[type[Part], Callable[[Any], Iterator[Case]]] = {
    Report: _run,
    AuditOutput: _audit,
    CompareOutput: _compare,
    CompareRunsOutput: _compare_runs,
    CheckOutput: _check,
}
