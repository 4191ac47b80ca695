"""What CI reads: cases, JUnit's XML, annotations, the hook of pre-commit, the recipe's schema."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import jsonschema
import pytest
import yaml
from conftest import ROOT, run_main
from report_values import HOSTILE, VALUES, report, troubled

from granplugin.errors import RecipeError
from granplugin.report.render import junit
from granplugin.report.render.annotations import ANNOTATIONS, github
from granplugin.report.schema.verbs import AuditOutput, CompareOutput
from granplugin.report.view.cases import Case, Place, cases_of, place_of, refused


def outcomes(value) -> dict[str, str]:
    return {case.name: case.outcome for case in cases_of(value)}


def of_kind(kind):
    return next(each for each in VALUES if isinstance(each, kind))


def test_a_limit_is_a_case_that_fails_where_it_is_missed_and_errs_where_nobody_can_tell():
    made = report("r")
    told = {}
    for verdict in ("met", "missed", "cannot tell"):
        limit = made.limits[0].model_copy(update={"verdict": verdict, "where": "r.yaml:9:3"})
        case = cases_of(made.model_copy(update={"limits": [limit]}))[0]
        told[verdict] = (case.outcome, case.place)
    place = Place("r.yaml", 9, 3)
    assert told == {
        "met": ("passed", place), "missed": ("failed", place), "cannot tell": ("error", place),
    }  # fmt: skip


def test_cases_fail_where_the_exit_code_is_3_and_else_are_skipped():
    rows = [case for case in cases_of(report("r")) if case.name == f"{HOSTILE}.weight"]
    assert [(row.of, row.outcome) for row in rows] == [("r.r.tensorrt_rtx", "failed")]
    wrong = outcomes(troubled("r"))
    assert wrong["takes the file"] == "failed"
    assert wrong["computes what the file says"] == "skipped", "OpenVINO is not targeted"
    assert set(outcomes(of_kind(AuditOutput)).values()) == {"passed", "failed", "error", "skipped"}
    assert set(outcomes(of_kind(CompareOutput)).values()) <= {"passed", "skipped"}


def test_the_baselines_rows_are_no_cases():
    assert not [case for case in cases_of(report("r")) if ".fp32." in case.of]


@pytest.mark.parametrize("value", [each for each in VALUES if type(each).__name__ in (
    "Report", "AuditOutput", "CompareOutput", "CheckOutput"
)], ids=lambda value: type(value).__name__)  # fmt: skip
def test_junit_counts_its_cases_and_is_xml_whatever_names_hold(value):
    cases = [*cases_of(value), Case("\x00\ud800", "]]>&<\x1b", "failed", "\ufffe")]
    root = ET.fromstring(junit.render("granplugin x", cases).encode())
    found = root.findall("testsuite/testcase")
    assert len(found) == len(cases) == int(root.get("tests"))
    for kind, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        told = len(root.findall(f"testsuite/testcase/{kind}"))
        assert told == int(root.get(attribute)) == sum(
            int(suite.get(attribute)) for suite in root
        )  # fmt: skip


def test_annotations_are_a_line_each_whatever_texts_hold():
    place = Place("a,b:c.yaml", 3, 5)
    cases = [Case("x", "a\nb", "failed", "50 %\n::error::x", place), Case("x", "y", "passed")]
    assert list(github(cases)) == [
        "::error file=a%2Cb%3Ac.yaml,line=3,col=5,title=x%3A a b::50 %25 ::error::x"
    ]
    assert set(ANNOTATIONS) == {"github"}


def test_every_line_of_a_refused_recipe_is_a_case():
    told = str(RecipeError("r.yaml:3:5: unknown key\nr.yaml:4:1: no number"))
    found = refused("apply", told)
    assert [(case.place.line, case.told) for case in found] == [
        (3, "unknown key"),
        (4, "no number"),
    ]
    assert refused("apply", "no such\nfile") == [
        Case("apply", "refused", "failed", "no such\nfile")
    ]
    assert place_of("C:a.yaml:12:1") == Place("C:a.yaml", 12, 1)


@pytest.fixture
def recipes(applied):
    good, bad = applied.folder / "recipe.yaml", applied.write("bad.yaml", "version: 1\nrulez: 3\n")
    return applied, good, bad


def test_check_writes_both(recipes):
    project, good, bad = recipes
    file = project.folder / "new" / "junit.xml"
    done = run_main("check", good, bad, "--junit", file, "--annotations", "github")
    root = ET.parse(file).getroot()
    assert (done.code, root.get("tests"), root.get("failures")) == (2, "2", "1"), file.read_text()
    assert re.search(r"^::error file=.*bad.yaml,line=2,col=1,", done.stderr, re.MULTILINE)


def test_a_refusal_is_a_case_and_an_old_file_never_stays(recipes):
    project, _, bad = recipes
    file = project.folder / "junit.xml"
    file.write_text("of another run")
    assert run_main("apply", bad, "--junit", file).code == 2
    root = ET.parse(file).getroot()
    assert root.find("testsuite").get("name") == "apply"
    assert {case.get("line") for case in root.iter("testcase")} >= {"2"}


def test_where_the_file_cannot_be_written_no_work_begins(recipes):
    project, good, _ = recipes
    done = run_main("apply", good, "--junit", project.folder / "data.npz" / "junit.xml")
    assert (done.code, done.stdout) == (2, "") and "junit.xml: cannot be written" in done.stderr


def test_a_run_has_a_case_for_each_limit_and_row(applied):
    applied.recipe(limits={"unhonoured": 0})
    file = applied.folder / "junit.xml"
    done = applied.apply(applied.folder / "recipe.yaml", "--junit", file, "--json")
    found = [case.get("name") for case in ET.parse(file).getroot().iter("testcase")]
    limits = json.loads(done.stdout)["limits"]
    assert len(found) >= len(limits) == 1
    assert re.search(r"recipe.yaml:\d+:3$", limits[0]["where"])


def test_the_hook_is_a_command_that_takes_recipes():
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    own = [str(path.relative_to(ROOT)) for path in (ROOT / "recipes").glob("*.yaml")]
    assert own and all(re.search(hook["files"], path) for path in own)
    words = hook["entry"].split()
    assert (
        words[0] == "granplugin" and run_main(*words[1:], *(ROOT / path for path in own)).code == 0
    )


def test_the_published_schema_takes_the_recipes_and_not_an_unknown_key():
    schema = json.loads((ROOT / "docs" / "recipe.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    for path in (ROOT / "recipes").glob("*.yaml"):
        validator.validate(yaml.safe_load(path.read_text()))
    assert not validator.is_valid({"version": 1, "rulez": 3})


def test_the_commands_of_the_workflow_have_their_options():
    text = (ROOT / "docs" / "ci.md").read_text()
    lines = re.findall(r"- run: granplugin (\w+) (.*)", text)
    assert lines
    for verb, words in lines:
        told = run_main(verb, "--help").stdout
        assert all(word in told for word in words.split() if word.startswith("--"))
