"""What `import granplugin` offers: names that editors list and type checkers know, and recipes in
every form."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import yaml
from conftest import run_main

import granplugin
from granplugin import errors

VERBS = ("analyze", "apply", "audit", "inspect", "load", "plan")
SCRIPTS = ("calibration_batches", "export_onnx", "modelopt_config", "prepare", "quantize",
           "run_algorithm")  # fmt: skip
ERRORS = {
    name for name, found in vars(errors).items()
    if isinstance(found, type) and issubclass(found, Exception)
}  # fmt: skip


def test_all_names_are_listed_and_there():
    assert set(granplugin.__all__) == {*VERBS, *SCRIPTS, *ERRORS, "__version__"}
    assert dir(granplugin) == granplugin.__all__ == sorted(granplugin.__all__)
    assert all(getattr(granplugin, name) is getattr(errors, name) for name in ERRORS)
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        granplugin.quantise


@pytest.mark.parametrize("name", [*VERBS, *SCRIPTS])
def test_names_stay_functions_whatever_was_imported(name):
    import granplugin.cli.plan
    import granplugin.pipelines.apply
    from granplugin.runs import session

    assert session
    assert callable(getattr(granplugin, name))
    assert getattr(granplugin, name) is getattr(granplugin, name)
    assert getattr(granplugin, name).__doc__


def test_a_recipe_that_is_refused_is_refused_without_torch():
    script = (
        "import sys, granplugin\n"
        "for verb in ('load', 'plan', 'inspect', 'apply', 'analyze'):\n"
        "    try: getattr(granplugin, verb)('version: 2')\n"
        "    except granplugin.RecipeError as err: assert 'version 2' in str(err), err\n"
        "    else: raise SystemExit(verb)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("False\n", 0), done.stderr


def forms(project, **changes):
    """One recipe in all its forms."""
    path = project.recipe(**changes)
    text = path.read_text()
    return {"path": path, "name": str(path), "text": text, "dict": yaml.safe_load(text)}


def test_every_form_of_a_recipe_gives_one_plan(project, monkeypatch):
    rules = [{"id": "coarse", "match": "conv", "weight": "per_tensor"}]
    variants = {"finer": {"set": {"rules.coarse.weight": "per_element"}}}
    found = forms(project, rules=rules, variants=variants, name="tiny")
    monkeypatch.chdir(project.folder)
    for variant, block in ((None, (8, 1, 3, 3)), ("finer", (1, 1, 1, 1))):
        for form in found.values():
            planned = granplugin.plan(form, variant)
            assert {row.site: row for row in planned.plan.rows}["conv.weight"].block == block
    assert [path.name for path in (project.folder / "runs").iterdir()] == ["tiny"]


def test_a_recipe_in_no_file_is_called_recipe_and_its_paths_start_here(project, monkeypatch):
    text = forms(project)["text"]
    monkeypatch.chdir(project.folder)
    loaded = granplugin.load(text)
    assert loaded.recipe.name == "recipe"
    assert loaded.recipe.model.callable.path == project.folder / "nets.py"
    monkeypatch.chdir("/")
    with pytest.raises(granplugin.RecipeError, match=r"^<recipe>:3:3: no such file: nets\.py"):
        granplugin.load(text)


@pytest.mark.parametrize(
    ("form", "where"),
    [
        ("text", "<recipe>:{line}:{column}: 'hed' matches no layer"),
        ("dict", "<recipe>:rules[1].match: 'hed' matches no layer"),
        ("path", "recipe.yaml:{line}:{column}: 'hed' matches no layer"),
    ],
)
def test_an_error_says_where_in_each_form(project, monkeypatch, form, where):
    rules = [{"match": "conv", "weight": "per_tensor"}, {"match": "hed", "weight": "per_tensor"}]
    found = forms(project, rules=rules)
    lines = found["text"].splitlines()
    line = next(n for n, text in enumerate(lines, 1) if "hed" in text)
    monkeypatch.chdir(project.folder)
    with pytest.raises(granplugin.RecipeError) as caught:
        granplugin.plan(found[form])
    assert where.format(line=line, column=3) in str(caught.value)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"version": 1, "rules": [{"match": "x", "wieght": "float"}]}, "<recipe>:rules[0].wieght:"),
        ({"version": 1, "model": {"args": {"n": {1, 2}}}}, "<recipe>:model.args.n:"),
        ({"version": 1, 2.5: 4}, "<recipe>: a key must be a word, not 2.5"),
        ("version: 1\nrules:\n- {match: x, wieght: float}", "<recipe>:3:14: unknown key"),
        ("{version: 1, rules: [}", "<recipe>:1:22: not YAML"),
        ("a_name_of_a_file", "a_name_of_a_file: no such file"),
        (3, "not of type int"),
    ],
)
def test_what_is_no_recipe_is_refused(form, said):
    with pytest.raises(granplugin.RecipeError, match=r"\A") as caught:
        granplugin.load(form)
    assert said in str(caught.value)


def test_values_that_hold_themselves_are_refused():
    values: dict = {"version": 1}
    values["model"] = values
    with pytest.raises(granplugin.RecipeError, match="nested over 50 levels"):
        granplugin.load(values)


def test_paths_and_tuples_are_values_too(project, monkeypatch):
    values = forms(project, engines=("onnxruntime",))["dict"]
    data = project.folder / "data.npz"
    values["data"]["calibration"]["npz"] = values["data"]["evaluation"]["npz"] = data
    monkeypatch.chdir(project.folder)
    loaded = granplugin.load({**values, "engines": ("onnxruntime",)}, ["data.batch_size=8"])
    assert loaded.recipe.data.calibration.npz == data
    assert loaded.recipe.data.batch_size == 8
    assert loaded.recipe.engines == ["onnxruntime"]


def test_an_analysis_in_a_script_prints_and_writes_its_recipe(project, monkeypatch):
    found = forms(project)
    monkeypatch.chdir(project.folder)
    analyzed = granplugin.analyze(found["path"], costs=False)
    assert str(analyzed).startswith(str(found["path"])) and "<table" in analyzed._repr_html_()
    analyzed.write_recipe("suggested.yaml")
    assert granplugin.load("suggested.yaml").recipe.rules == []
    in_no_file = granplugin.analyze(found["text"], costs=False)
    with pytest.raises(granplugin.UserError, match="which is in no file; write that to one first"):
        in_no_file.write_recipe("other.yaml")
    assert not (project.folder / "other.yaml").exists()


def test_results_print_as_their_verbs_do_and_as_tables_in_a_notebook(applied):
    recipe = applied.recipe(rules=[{"match": "conv", "weight": "per_tensor"}])
    out = applied.out
    found = {
        "plan": granplugin.plan(recipe, out=out),
        "inspect": granplugin.inspect(recipe, out=str(out)),
        "apply": granplugin.apply(recipe, out=out),
    }
    for verb, result in found.items():
        done = run_main(verb, recipe, "--out", out, "--quiet")
        where = f"report: {out / 'report.html'}, and as text report.md\n" if verb == "apply" else ""
        assert f"{result}\n{where}" == done.stdout
        if verb != "apply":  # a report has its date
            done = run_main(verb, recipe, "--out", out, "--json")
            assert result.output().model_dump_json(indent=1) + "\n" == done.stdout
        assert repr(result) == str(result), "what a prompt shows"
        html = result._repr_html_()
        assert "<table" in html and "<script" not in html
    for result, field in zip(found.values(), ("plan", "layers", "report"), strict=True):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(result, field, None)


def test_html_of_results_is_escaped(project):
    rules = [{"match": "conv", "weight": "per_tensor"}]
    planned = granplugin.plan(project.recipe("a<b>bold.yaml", rules=rules), out=project.out)
    assert "a<b>bold.yaml" in str(planned)
    html = planned._repr_html_()
    assert "<b>" not in html and "a&lt;b&gt;bold.yaml" in html
