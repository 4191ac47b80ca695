"""What a verb says to do next: lines that can be pasted."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from report_values import VALUES, report, troubled

from granplugin.cli.next_steps import (
    Next,
    after_analysis,
    after_audit,
    after_run,
    say_next,
    typed,
)
from granplugin.cli.telling import Telling
from granplugin.report.schema.analysis import Advice, Analysis
from granplugin.report.schema.verbs import AuditOutput

WORDS = {"a b.yaml": typed(Path("a b.yaml"), ["data.batch_size=8"], Path("out put"))}


def of(recipe: str | None, made=report):
    found = made("mine")
    variants = [each.model_copy(update={"recipe": recipe}) for each in found.variants[1:]]
    return found.model_copy(update={"variants": [found.variants[0], *variants]})


def lines(steps) -> list[str]:
    return [step.line for step in steps]


def test_a_loss_leads_to_analyze_with_the_recipe_as_it_was_typed():
    told = lines(after_run(of("a b.yaml"), Path("run"), WORDS))[-1]
    assert told.startswith(
        "next: granplugin analyze 'a b.yaml' --set data.batch_size=8 --out 'out put'  # "
    )
    assert shlex.split(told.removeprefix("next: "), comments=True)[2] == "a b.yaml"


def test_what_is_not_honoured_or_wrong_leads_to_audit_of_its_file():
    for made in (report, troubled):
        told = lines(after_run(of("a b.yaml", made), Path("run"), WORDS))[0]
        assert told.startswith("next: granplugin audit run/model.onnx --backend tensorrt_rtx "), (
            told
        )


def test_where_nothing_is_wrong_nothing_is_said():
    fine = of(None)
    fp32 = fine.model_copy(update={"variants": fine.variants[:1], "limits": []})
    assert lines(after_run(fp32, Path("run"), WORDS)) == []
    assert not [each for each in lines(after_run(fine, Path("run"), WORDS)) if "analyze" in each]


def test_what_its_limit_allows_or_only_a_variant_loses_is_not_analyzed():
    lost = of("a b.yaml")
    mine = lost.variants[1]
    met = lost.limits[0].model_copy(
        update={"limit": "top1_drop", "variant": mine.name, "verdict": "met"}
    )
    missed, open_ = (met.model_copy(update={"verdict": v}) for v in ("missed", "cannot tell"))
    for limit, kind, told in (
        (met, "recipe", False), (missed, "recipe", True), (open_, "recipe", True),
        (missed, "variant", False),
    ):  # fmt: skip
        variants = [lost.variants[0], mine.model_copy(update={"kind": kind})]
        run = lost.model_copy(update={"limits": [limit], "variants": variants})
        said = [each for each in lines(after_run(run, Path("run"), WORDS)) if "analyze" in each]
        assert bool(said) == told, (limit.verdict, kind)


def test_a_loss_that_cannot_be_judged_leads_nowhere():
    broken = of("a b.yaml").model_copy(update={"broken_baseline": "it guesses"})
    assert not [each for each in lines(after_run(broken, Path("run"), WORDS)) if "analyze" in each]


def test_advice_is_written_and_then_applied():
    found = Analysis.model_construct(
        advice=Advice.model_construct(overrides=["rule"], verdict="above")
    )
    words = ("a b.yaml", "--out", "x")
    assert lines(after_analysis(found, words, None)) == [
        "next: granplugin analyze 'a b.yaml' --out x --write-recipe 'a b_suggested.yaml'"
        "  # a recipe with these rules"
    ]
    assert lines(after_analysis(found, words, Path("s.yaml")))[0].startswith(
        "next: granplugin apply s.yaml  # "
    )


def test_a_recipe_that_changes_nothing_yet_leads_to_analyze_and_a_variant_that_loses_does_not():
    made = of("a b.yaml")
    engines = [each.model_copy(update={"metrics": {}}) for each in made.variants[1].engines]
    idle = made.variants[1].model_copy(update={"same_as": "tensorrt@11", "engines": engines})
    made = made.model_copy(update={"variants": [made.variants[0], idle], "limits": []})
    assert lines(after_run(made, Path("run"), WORDS))[-1].endswith("what each granularity costs")
    other = of("a b.yaml").variants[1].model_copy(update={"kind": "variant"})
    made = made.model_copy(update={"variants": [made.variants[0], other]})
    assert not [each for each in lines(after_run(made, Path("run"), WORDS)) if "analyze" in each]


def test_too_few_samples_lead_to_more_where_the_recipe_takes_some_of_them():
    found = Analysis.model_construct(
        advice=Advice.model_construct(overrides=[], verdict="cannot tell", enough_samples=390)
    )
    told = lines(after_analysis(found, ("a.yaml",), None, "data.calibration.samples"))
    assert told[0].startswith(
        "next: granplugin analyze a.yaml --set data.calibration.samples=390  # "
    )
    assert lines(after_analysis(found, ("a.yaml",), None)) == []


def test_lint_leads_to_the_page_of_its_code():
    found = next(each for each in VALUES if isinstance(each, AuditOutput))
    assert {step.words for step in after_audit(found)} == {("explain", "fp32-output")}


@pytest.mark.parametrize("name", ["-r.yaml", "a'b.yaml", "$(touch x).yaml", "a\nb.yaml"])
def test_names_cannot_be_options_nor_commands(name):
    line = Next(("apply", *typed(Path(name))), "build it").line
    words = shlex.split(line.removeprefix("next: "), comments=True)
    assert words[:2] == ["granplugin", "apply"] and Path(words[2]) == Path(name)
    assert not words[2].startswith("-")


def test_what_is_next_is_said_once_and_not_to_who_wants_quiet(capsys):
    steps = [Next(("plan", "r.yaml"), "what each site gets")] * 2
    with Telling().told():
        say_next(steps)
    with Telling(quiet=True).told():
        say_next(steps)
    Telling().tell()
    assert capsys.readouterr().out == "next: granplugin plan r.yaml  # what each site gets\n"
