"""The command line: every verb, through main(argv) and as the installed command."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import subprocess
import time

import jsonschema
import pytest
import yaml
from conftest import ROOT, run_main
from report_values import report

import granplugin
from granplugin.cli import show
from granplugin.cli.telling import Telling
from granplugin.cli.verbs import STEPS, said_of, verbs
from granplugin.report.render.terminal import lines
from granplugin.report.view.elements import Column, Row, Section, Table, cells, columns
from granplugin.stdout import Results, results_to


@pytest.fixture(scope="module")
def schema():
    """Schemas by the name that `granplugin schema` knows them by."""

    def get(name: str) -> dict:
        done = run_main("schema", name)
        assert (done.code, done.stderr) == (0, "")
        return json.loads(done.stdout)

    return get


def test_version_is_one_line():
    assert run_main("--version") == (0, f"granplugin {granplugin.__version__}\n", "")


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_has_help_that_says_what_it_does(verb):
    done = run_main(verb, "--help")
    assert (done.code, done.stderr) == (0, "")
    assert verb in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    "argv",
    [["aply"], ["apply"], ["plan"], ["plan", "a", "b"], ["check", "--jsn"], ["apply", "--set"]],
)
def test_a_command_line_that_is_wrong_exits_2(argv):
    done = run_main(*argv)
    assert (done.code, done.stdout) == (2, "")
    assert "Usage" in done.stderr or "Error" in done.stderr


@pytest.mark.parametrize("name", ["recipe", "report", "inspect", "plan", "why", "check", "doctor"])
def test_schemas_are_json_schema(schema, name):
    jsonschema.Draft202012Validator.check_schema(schema(name))


def test_an_unknown_schema_names_the_known_ones():
    done = run_main("schema", "reciep")
    assert (done.code, done.stdout) == (2, "")
    assert "recipe" in done.stderr


def test_what_verbs_print_as_json_is_what_the_schemas_say(applied, schema):
    recipe, out = applied.folder / "recipe.yaml", ("--out", applied.out, "--json")
    outputs = {
        "report": run_main("apply", recipe, *out),
        "plan": run_main("plan", recipe, *out),
        "why": run_main("plan", recipe, "--why", "head", *out),
        "check": run_main("check", recipe, *out),
        "doctor": run_main("doctor", "--json"),
    }
    for name, done in outputs.items():
        assert (done.code, done.stderr) == (0, ""), name
        jsonschema.validate(json.loads(done.stdout), schema(name))
    jsonschema.validate(json.loads((applied.out / "report.json").read_text()), schema("report"))
    jsonschema.validate(yaml.safe_load(recipe.read_text()), schema("recipe"))


def test_check_tells_bad_recipes_from_good_ones_as_json(applied, schema):
    good, bad = applied.folder / "recipe.yaml", applied.write("bad.yaml", "version: 2\n")
    done = run_main("check", good, bad, "--out", applied.out, "--json")
    told = json.loads(done.stdout)
    jsonschema.validate(told, schema("check"))
    assert done.code == 2
    assert [each["ok"] for each in told["recipes"]] == [True, False]
    assert "bad.yaml:1:" in told["recipes"][1]["errors"][0]


def test_check_uses_the_last_plan_only_where_it_is_of_this_model(applied):
    recipe = applied.recipe(rules=[{"match": "hed", "weight": "per_tensor"}])
    done = run_main("check", recipe, "--out", applied.out)
    assert done.code == 2
    assert "'hed'" in done.stderr
    (applied.folder / "nets.py").write_text("# another one\n")
    done = run_main("check", recipe, "--out", applied.out)
    assert done.code == 0
    assert "another model" in done.stdout


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 99}', "\0"])
def test_check_does_without_a_plan_that_cannot_be_read(applied, content):
    (applied.out / "plan.json").write_text(content)
    done = run_main("check", applied.folder / "recipe.yaml", "--out", applied.out)
    assert (done.code, done.stderr) == (0, "")
    assert "text" in done.stdout


def test_plan_calibrates_nothing_and_names_the_rule_of_every_site(applied):
    recipe = applied.recipe(
        rules=[{"id": "coarse", "match": "conv", "weight": "per_tensor"}],
        variants={"finer": {"set": {"rules.coarse.weight": "per_element"}}},
    )
    done = run_main("plan", recipe, "--out", applied.folder / "elsewhere")
    assert (done.code, done.stderr) == (0, "")
    assert "coarse" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if "yaml" not in line)
    made = {path.name for path in (applied.folder / "elsewhere").iterdir()}
    assert made <= {"plan.json", "plan_log.txt", "cache", ".lock"}
    finer = run_main("plan", recipe, "--variant", "finer", "--out", applied.out)
    assert "per_element" in finer.stdout
    assert "per_element" not in done.stdout


def test_plan_tells_one_layers_story(applied):
    recipe = applied.recipe(
        rules=[
            {"id": "coarse", "match": "*", "weight": "per_tensor"},
            {"id": "fine", "match": "head", "weight": "per_channel"},
        ]
    )
    done = run_main("plan", recipe, "--why", "head", "--out", applied.out)
    assert done.code == 0
    assert done.stdout.index("coarse") < done.stdout.index("fine")
    wrong = run_main("plan", recipe, "--why", "hed", "--out", applied.out)
    assert (wrong.code, wrong.stdout) == (2, "")
    assert "head" in wrong.stderr


def test_plan_prints_a_config_that_modelopt_takes(applied):
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.config import QuantizeConfig

    done = run_main("plan", applied.recipe(), "--modelopt", "--out", applied.out)
    config = json.loads(done.stdout)
    assert QuantizeConfig(**config)
    assert mtq


def test_an_unknown_variant_names_the_nearest(applied):
    recipe = applied.recipe(variants={"finer": {"rules": [{"match": "conv", "bn": "keep"}]}})
    done = run_main("plan", recipe, "--variant", "fine", "--out", applied.out)
    assert (done.code, done.stdout) == (2, "")
    assert "'finer'" in done.stderr


@pytest.mark.parametrize("name", ["fp32", "tensorrt-11", "recipe"])
def test_a_recipe_may_be_called_as_a_baseline_is(applied, name):
    recipe = applied.recipe(name=name)
    assert run_main("plan", recipe, "--out", applied.out).code == 0
    assert applied.apply().code == 0


def test_verbose_tells_each_step_on_stderr(applied):
    recipe = applied.folder / "recipe.yaml"
    quiet = run_main("apply", recipe, "--out", applied.out)
    verbose = run_main("-v", "apply", recipe, "--out", applied.out)
    assert quiet.stderr == ""
    assert "built nets.py:tiny" in verbose.stderr
    assert verbose.stdout == quiet.stdout


def test_the_installed_command_is_quiet_in_a_pipe_and_colourless(applied, command, forks):
    """A process that imports everything itself: what libraries say at import is heard here."""
    applied.recipe(engines=["openvino", "onnxruntime"], latency={"rounds": 6, "seconds": 0.05})
    fresh = ["apply", applied.folder / "recipe.yaml", "--out", applied.folder / "fresh"]
    for done in (
        forks.run(["granplugin", "plan", applied.folder / "recipe.yaml", "--out", applied.out]),
        subprocess.run([command, *fresh], capture_output=True, text=True),
    ):
        assert done.returncode == 0, done.stderr
        # A stage that takes long says so, which says nothing of the code.
        assert not re.sub(r".* after .*\n", "", done.stderr)
        assert "\x1b" not in done.stdout
        # What the exporter, modelopt and torch print or warn of begins with none of these.
        assert "arning" not in done.stdout
        assert "[torch.onnx]" not in done.stdout
    assert done.stdout.startswith("recipe: 64 samples")
    assert re.search(r"^report: .*\n(next: .*\n)*\Z", done.stdout, re.MULTILINE)
    log = (applied.folder / "fresh" / "log.txt").read_text()
    assert "exporting the float model" in log


def test_a_reader_that_goes_away_is_no_error(command):
    with subprocess.Popen([command, "schema"], stdout=-1, stderr=-1) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def shown(monkeypatch):
    """What `show` prints of a value on a terminal of some width, under options of every verb."""

    def show_there(value, columns: int, **asked: bool) -> str:
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", str(columns))
        terminal = Terminal()
        with results_to(Results(terminal)), Telling(**asked).told():
            show(value, json_=False)
        return terminal.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    yield show_there
    Telling().tell()


COLOUR = re.compile(r"\x1b\[(\d+;)*3\dm")


def test_colours_are_for_terminals_that_want_them(shown, monkeypatch):
    assert COLOUR.search(shown(report(), 80))
    assert not COLOUR.search(shown(report(), 80, plain=True))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not COLOUR.search(shown(report(), 80))


def test_a_table_is_as_wide_as_the_terminal_and_sentences_are_not(shown):
    wide, narrow = (re.sub(r"\x1b\[[\d;]*m", "", shown(report(), of)) for of in (160, 80))
    assert max(map(len, narrow.splitlines())) <= 80 < max(map(len, wide.splitlines())) <= 160
    assert len(wide.splitlines()) < len(narrow.splitlines())


def test_plain_says_each_row_with_the_heads_of_its_values():
    of = Table(columns(Column("layer", "name"), "SQNR dB"), (Row(cells("head", "31.2")),))
    assert [line.plain for line in lines(Section("", (of,)), plain=True)] == [
        "layer head, SQNR dB 31.2"
    ]


@pytest.mark.parametrize("argv", [["-q", "check"], ["check", "-q"]])
def test_options_of_every_verb_stand_before_or_behind_it(argv):
    assert run_main(*argv, ROOT / "recipes/digits_mobilenet.yaml").code == 0


def test_help_lists_the_verbs_as_one_works_with_them():
    told = run_main("--help").stdout
    at = [told.index(f"\n  {verb} ") for verb in verbs()]
    assert at == sorted(at) and all(said_of(verb) in told for verb in verbs())
    assert all(f"\n{step}:\n" in told for step in STEPS)
    assert not re.search("[\u2500-\u257f]", told + run_main("plan", "--help").stdout)


def test_quiet_tells_nothing_but_what_is_wrong(caplog):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), Telling(quiet=True).told():
        for level in (logging.INFO, logging.WARNING):
            logging.getLogger("granplugin.runs").log(level, "at %d", level)
        logging.getLogger("granplugin.progress").info("after 5 s")
    Telling().tell()
    assert said.getvalue() == "at 30\n"


def test_the_shell_completes_verbs(command):
    environment = {
        **os.environ,
        "_GRANPLUGIN_COMPLETE": "complete_bash",
        "COMP_WORDS": "granplugin ap",
        "COMP_CWORD": "1",
    }
    done = subprocess.run([command], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["apply"]


def test_a_run_that_is_killed_leaves_the_earlier_report_and_is_resumed(applied, forks):
    """SIGKILL as soon as a stage's file is there, again and again."""
    recipe = applied.recipe()
    assert applied.apply().code == 0
    before = applied.report()
    cache = applied.out / "cache"
    for path in cache.iterdir():
        path.unlink()
    made = {}
    for stage in ("layers", "statistics", "variant"):
        process = forks.start(["granplugin", "apply", recipe, "--out", applied.out])
        while not any(cache.glob(f"{stage}-*")) and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        process.wait()
        made |= {path: path.stat().st_mtime_ns for path in cache.glob(f"{stage}-*")}
        assert applied.report() == before
    done = applied.apply()
    assert done.code == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in made} == made
    after = applied.report()
    assert after.variants[1].onnx_bytes == before.variants[1].onnx_bytes
    for variant in (0, 1):
        metrics = [report.variants[variant].engines[0].metrics for report in (before, after)]
        assert metrics[0] == metrics[1]


def test_capabilities_tells_what_an_engine_has_at_80_columns():
    code, out, _ = run_main("capabilities", "--backend", "openvino")
    assert code == 0
    assert out.startswith("openvino")
    assert "native:" in out and "refused:" in out
    assert max(map(len, out.splitlines())) <= 80
    code, out, _ = run_main("capabilities", "--backend", "tensorrt", "--json")
    assert code == 0
    told = json.loads(out)
    jsonschema.validate(told, json.loads(run_main("schema", "capabilities").stdout))
    assert {row["promise"] for row in told["rows"]} == {"native", "lowered", "simulated", "refused"}
    assert run_main("capabilities", "--backend", "tensorflow").code == 2
