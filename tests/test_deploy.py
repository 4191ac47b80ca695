"""The target is another machine: export -> trtexec there -> import gives what apply gives here.

trtexec itself needs a GPU and is in no Python package, so the scripts are run with a stand-in,
fake_trtexec.py, which refuses every flag that trtexec does not have.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Done, Project, run_main
from hypothesis import given
from hypothesis import strategies as st

from granplugin import backends
from granplugin.backends.nvidia import trtexec
from granplugin.backends.nvidia.build import Options
from granplugin.backends.nvidia.plan_reader import (
    inspector_json,
    read_inspector_json,
    read_profile_json,
)
from granplugin.engines import EXPORTED
from granplugin.errors import EngineError
from granplugin.report.schema.run import EngineResult

FORMS = {"run_10.sh": "10", "run_11.sh": "11", "run_rtx.sh": "rtx"}


class Deployed(Project):
    """An applied and exported project, with what came back from three targets in it."""

    def sent(self, engine: str = "tensorrt") -> Path:
        return self.folder / f"to_{engine}"

    def results(self, script: str = "run_11.sh") -> Path:
        return self.folder / "came_back" / script

    def bring(self, *argv: object) -> Done:
        return run_main("import", self.out, *argv)

    def engine(self, variant: str, position: int = -1) -> EngineResult:
        return next(v for v in self.report().variants if v.name == variant).engines[position]

    def run_script(self, script: str, rounds: int) -> subprocess.CompletedProcess:
        sent = self.sent("tensorrt_rtx" if script == "run_rtx.sh" else "tensorrt")
        environment = os.environ | {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "FAKE_FORM": FORMS[script],
            "FAKE_LAYERS": str(self.folder / "layers"),
            "ROUNDS": str(rounds),
        }
        shell = shutil.which("dash") or "sh"
        return subprocess.run(
            [shell, str(sent / script)], env=environment, capture_output=True, text=True, cwd="/"
        )


@pytest.fixture(scope="module")
def _deployed(_tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("deployed")
    shutil.copytree(_tiny, folder, dirs_exist_ok=True)
    project = Deployed(folder)
    images = {"npz": "data.npz", "inputs": {"image": "images"}}
    recipe = project.recipe(
        data={
            "calibration": images,
            "evaluation": {**images, "labels": "labels", "samples": 24},
            "batch_size": 16,
        },
        optional_engines=["tensorrt_rtx"],
        on_unsupported="lower",
        variants={"lowered": {"rules": [{"match": "depthwise", "input": "per_channel"}]}},
    )
    done = project.apply()
    assert done.code == 0, done.stderr
    (folder / "bin").mkdir()
    for name in ("trtexec", "tensorrt_rtx"):
        program = folder / "bin" / name
        fake = Path(__file__).with_name("fake_trtexec.py")
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {fake} "$@"\n')
        program.chmod(0o755)
    (folder / "layers").mkdir()
    for engine in ("tensorrt", "tensorrt_rtx"):
        out = project.sent(engine)
        done = run_main("export", recipe, "--run", project.out, "--out", out, "--engine", engine)
        assert done.code == 0, done.stderr
        for model in out.glob("variants/*/model.onnx"):
            sha = hashlib.sha256(model.read_bytes()).hexdigest()
            layers = folder / "layers" / f"{sha}.json"
            if not layers.exists():
                built = backends.backend_of("tensorrt_rtx").build(
                    model, folder / "engines" / sha, Options(batch=16)
                )
                layers.write_text(
                    inspector_json(backends.backend_of("tensorrt_rtx").engine_plan(built))
                )
    for script, rounds in (("run_10.sh", 1), ("run_11.sh", 7), ("run_rtx.sh", 1)):
        ran = project.run_script(script, rounds)
        assert ran.returncode == 0, ran.stderr
        sent = project.sent("tensorrt_rtx" if script == "run_rtx.sh" else "tensorrt")
        project.results(script).parent.mkdir(exist_ok=True)
        shutil.move(sent / "results", project.results(script))
    return folder


@pytest.fixture
def deployed(_deployed, tmp_path) -> Deployed:
    shutil.copytree(_deployed, tmp_path, dirs_exist_ok=True)
    return Deployed(tmp_path)


@pytest.mark.parametrize("script", FORMS)
def test_what_comes_back_has_the_metrics_that_apply_measured(deployed, script):
    done = deployed.bring(deployed.results(script))
    assert done.code == 0, done.stderr
    lines = done.stdout.partition("report: ")[0].splitlines()
    assert max(map(len, lines)) <= 80
    version = {"10": "10.16.1", "11": "11.4.0", "rtx": "1.7.1"}[FORMS[script]]
    for name in ("fp32", "recipe", "lowered"):
        here, there = deployed.engine(name, 0), deployed.engine(name)
        assert (there.version, there.imported) == (f"{version} (imported)", True)
        assert there.metrics.keys() == here.metrics.keys()
        if name == "lowered":
            continue  # what comes back is of the lowered file
        for metric, value in here.metrics.items():
            # --exportOutput has 6 significant digits.
            assert there.metrics[metric].value == pytest.approx(value.value, rel=1e-3)
            assert there.metrics[metric].vs.keys() == value.vs.keys()


@pytest.mark.parametrize("script", FORMS)
def test_what_comes_back_has_the_verdicts_that_apply_gave(deployed, script):
    assert deployed.bring(deployed.results(script)).code == 0
    for name in ("fp32", "recipe", "lowered"):
        here, there = deployed.engine(name, 1), deployed.engine(name)
        kinds = [[(v.site, v.where, v.verdict) for v in e.verdicts] for e in (here, there)]
        assert kinds[0] == kinds[1]
        assert [x.precision for x in there.layers] == [x.precision for x in here.layers]
        assert (there.kernels, there.moved.total) == (here.kernels, here.moved.total)
    assert any(v.verdict == "honoured" for v in deployed.engine("recipe").verdicts)


def test_latencies_come_with_the_intervals_of_rounds_taken_in_turns(deployed):
    shutil.rmtree(deployed.results() / "lowered")
    done = deployed.bring(deployed.results())
    ratios = done.stdout.rpartition("latency as a multiple")[2].splitlines()[1:3]
    assert [line.split()[-3:] for line in ratios] == [
        ["1", "batch", "16"],
        ["0.50", "[0.50,", "0.50]"],
    ]
    (one, full) = deployed.engine("recipe").latency
    assert (one.batch, full.batch, full.rounds, full.median_ms) == (1, 16, 7, 1.5)
    assert full.vs["fp32"].value == 0.5
    # Rounds that one variant lacks do not pair.
    (deployed.results() / "fp32" / "times-b16-3.json").unlink()
    assert deployed.bring(deployed.results()).code == 0
    assert deployed.engine("recipe").latency[1].rounds == 6
    # One round is a latency, and says nothing of ratios.
    assert deployed.bring(deployed.results(), deployed.results("run_10.sh")).code == 0
    (one, full) = deployed.engine("recipe").latency
    assert (full.rounds, full.vs) == (1, {})
    assert any("one round" in note for note in deployed.report().notes)


def test_the_exported_folder_holds_what_each_engine_is_built_of(deployed):
    manifest = json.loads((deployed.sent() / "manifest.json").read_text())
    assert list(manifest["variants"]) == ["fp32", "recipe", "lowered"]
    for name, told in manifest["variants"].items():
        folder = deployed.sent() / "variants" / name
        assert (
            hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest() == told["onnx_sha256"]
        )
        plain = (folder / "model.onnx").read_bytes() == deployed.onnx(name)
        assert plain == (name != "lowered")
        rows = json.loads((folder / "plan.json").read_text())["variants"]
        assert list(rows) == [name]
    for script in ("run_10.sh", "run_11.sh"):
        assert os.access(deployed.sent() / script, os.X_OK)


def test_the_exported_inputs_are_the_evaluation_samples(deployed):
    counts = json.loads((deployed.sent() / "manifest.json").read_text())["counts"]
    assert counts == [16, 8]
    folders = sorted((deployed.sent() / "inputs").glob("batch-*"))
    samples = np.concatenate(
        [np.fromfile(folder / "image.bin", "<f4").reshape(-1, 1, 8, 8) for folder in folders]
    )
    assert (folders[-1] / "shapes.txt").read_text() == "image:8x1x8x8\n"
    with np.load(deployed.folder / "data.npz") as data:
        drawn = [index for index, image in enumerate(data["images"]) if image in samples]
        np.testing.assert_array_equal(samples, data["images"][drawn])
    assert len(samples) == 24


def test_the_exported_folder_itself_is_told_from_results(deployed):
    done = deployed.bring(deployed.sent("tensorrt"))
    assert done.code == 2
    assert "has no results yet; run its script there" in done.stderr


def test_a_second_import_replaces_the_first(deployed):
    assert deployed.bring(deployed.results("run_10.sh")).code == 0
    assert deployed.bring(deployed.results()).code == 0
    once = deployed.report()
    assert deployed.bring(deployed.results()).code == 0
    assert deployed.report() == once
    assert [e.engine for e in once.variants[0].engines].count("tensorrt") == 1


def test_apply_keeps_what_was_imported_of_the_same_files(deployed):
    assert deployed.bring(deployed.results()).code == 0
    imported = deployed.engine("recipe")
    assert deployed.apply().code == 0
    assert deployed.engine("recipe") == imported
    rule = [{"match": "head", "format": "float"}]
    changed = f"variants.lowered.rules={json.dumps(rule)}"
    assert deployed.apply(deployed.folder / "recipe.yaml", "--set", changed).code == 0
    assert deployed.engine("recipe").imported
    assert deployed.engine("lowered").cannot_run == "nothing of it was imported"


def test_what_did_not_come_back_is_missing_and_not_zero(deployed):
    layers = deployed.results() / "recipe" / "layers.json"
    done = deployed.bring(layers)
    assert done.code == 0, done.stderr
    came, missing = deployed.engine("recipe"), deployed.engine("fp32")
    assert came.honoured == 6
    assert (came.metrics, came.latency, came.engine_bytes, came.build_seconds) == (
        {},
        [],
        None,
        None,
    )
    assert missing.cannot_run == "nothing of it was imported"
    assert (missing.kernels, missing.engine_bytes, missing.metrics) == (None, None, {})
    line = next(x for x in done.stdout.split("(imported)")[1].splitlines() if x[:4] == "fp32")
    assert line.startswith("fp32") and set(line.split()[1:]) == {"-"}
    # Then the outputs, without fp32's: nothing to compare with.
    outputs = sorted((deployed.results() / "recipe").glob("output-*.json"))
    assert deployed.bring(outputs[0]).code == 0
    assert deployed.engine("recipe").metrics == {}
    assert any("1 of 2 batches" in note for note in deployed.report().notes)
    assert deployed.bring(*outputs).code == 0
    assert list(deployed.engine("recipe").metrics) == ["top1"]
    assert deployed.engine("recipe").honoured == 6


def spoil_truncated(results: Path) -> None:
    layers = results / "recipe" / "layers.json"
    layers.write_text(layers.read_text()[:-40])


def spoil_foreign(results: Path) -> None:
    (results / "recipe" / "layers.json").write_text('{"some": "thing"}')


def spoil_verbosity(results: Path) -> None:
    layers = {"Layers": ["conv", "head"], "Bindings": ["image"]}
    (results / "recipe" / "layers.json").write_text(json.dumps(layers))


def spoil_profile(results: Path) -> None:
    profile = results / "recipe" / "profile.json"
    profile.write_text(profile.read_text().replace('"name": "', '"name": "other_', 1))


def spoil_nan(results: Path) -> None:
    output = results / "recipe" / "output-000.json"
    head, _, rest = output.read_text().partition("[ ")
    output.write_text(f"{head}[ -nan, {rest.partition(', ')[2]}".replace("[ -nan", "[ nan"))


def spoil_shape(results: Path) -> None:
    output = results / "recipe" / "output-000.json"
    output.write_text(output.read_text().replace("(16, 4)", "(16, 3)"))


def spoil_batches(results: Path) -> None:
    shutil.copy(results / "recipe/output-001.json", results / "recipe/output-000.json")


def spoil_onnx(results: Path) -> None:
    manifest = json.loads((results / "manifest.json").read_text())
    manifest["variants"]["recipe"]["onnx_sha256"] = "0" * 64
    (results / "manifest.json").write_text(json.dumps(manifest))


def spoil_manifest(results: Path) -> None:
    (results / "manifest.json").write_text("{}")


def spoil_variant(results: Path) -> None:
    (results / "recipe").rename(results / "recipes")


def spoil_all(results: Path) -> None:
    for folder in ("fp32", "recipe", "lowered"):
        shutil.rmtree(results / folder)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoil_truncated, "layers.json: not complete JSON"),
        (spoil_foreign, "none of trtexec's files"),
        (spoil_verbosity, "only layer names"),
        (spoil_profile, "is not in the plan"),
        (spoil_nan, "has NaN, first in sample 0"),
        (spoil_shape, "has 64 values"),
        (spoil_batches, "fewer samples than the 16"),
        (spoil_onnx, "what differs: recipe's ONNX file"),
        (spoil_manifest, "not a manifest"),
        (spoil_variant, "did you mean 'recipe'"),
        (spoil_all, "no results in it"),
    ],
)
def test_results_that_are_not_right_are_left_out_or_one_sentence_and_change_nothing(
    deployed, spoil, told
):
    assert deployed.bring(deployed.results("run_10.sh")).code == 0
    held = {path: path.read_bytes() for path in deployed.out.rglob("*.*") if path.is_file()}
    spoil(deployed.results())
    done = deployed.bring(deployed.results())
    if spoil not in (spoil_onnx, spoil_manifest, spoil_all):
        assert done.code == 0, done.stderr
        (note,) = [each for each in deployed.report().notes if "left out" in each]
        assert told in note and deployed.engine("fp32").imported
        assert deployed.engine("fp32").latency, "what is good of the folder is entered"
        return
    assert (done.code, done.stdout) == (2, "")
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    for path, content in held.items():
        assert path.name == "import_log.txt" or path.read_bytes() == content


def test_a_file_without_a_manifest_needs_the_name_of_its_variant(deployed):
    lone = deployed.folder / "layers.json"
    shutil.copy(deployed.results() / "recipe" / "layers.json", lone)
    (deployed.out / "export-tensorrt_rtx.json").unlink()
    done = deployed.bring(lone)
    assert done.code == 2
    assert "--variant NAME" in done.stderr
    assert deployed.bring(lone, "--variant", "recipe").code == 0
    assert deployed.engine("recipe").honoured == 6


def test_results_of_a_recipe_that_has_changed_since_are_refused(deployed):
    assert deployed.apply(deployed.folder / "recipe.yaml", "--set", "defaults=modelopt@0.47")
    done = deployed.bring(deployed.results())
    assert done.code == 2
    assert "is not the one that was exported; export it again" in done.stderr


def test_export_never_writes_over_what_it_did_not_write(deployed):
    argv = ("export", deployed.folder / "recipe.yaml", "--run", deployed.out, "--out")
    mine = deployed.folder / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    done = run_main(*argv, mine)
    assert done.code == 2
    assert "export did not write it" in done.stderr
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    done = run_main(*argv, mine / "thesis.txt" / "out")
    assert done.code == 2 and "cannot be written" in done.stderr
    (deployed.sent() / "results").mkdir()
    done = run_main(*argv, deployed.sent())
    assert done.code == 2
    assert "has results in it" in done.stderr
    (deployed.sent() / "results").rmdir()
    before = (deployed.sent() / "manifest.json").read_bytes()
    assert run_main(*argv, deployed.sent()).code == 0
    assert (deployed.sent() / "manifest.json").read_bytes() == before
    assert not list(deployed.folder.glob(".export-*"))


def test_fewer_samples_are_exported_when_asked_and_the_report_says_so(deployed):
    recipe = deployed.folder / "recipe.yaml"
    argv = ("export", recipe, "--run", deployed.out, "--out", deployed.sent(), "--samples", 20)
    assert run_main(*argv).code == 0
    assert deployed.run_script("run_11.sh", 1).returncode == 0
    done = deployed.bring(deployed.sent() / "results")
    assert done.code == 0, done.stderr
    assert deployed.engine("recipe").metrics["top1"].vs["fp32"].n == 20
    assert any("first 20 samples" in note for note in deployed.report().notes)


def test_a_variant_that_fails_there_does_not_stop_the_others(deployed):
    (deployed.sent() / "variants" / "recipe" / "model.onnx").write_bytes(b"broken")
    ran = deployed.run_script("run_10.sh", 1)
    assert ran.returncode == 1
    assert "profile failed for recipe" in ran.stderr
    assert (deployed.sent() / "results" / "lowered" / "times-b16-1.json").exists()


def test_a_target_without_the_program_is_told_so(deployed):
    ran = subprocess.run(
        ["sh", str(deployed.sent() / "run_10.sh")],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    assert "there is no program trtexec; say where it is" in ran.stderr
    assert not (deployed.sent() / "results").exists()


NAME = 'it\'s $(touch pwned) "x" `y`'


@pytest.mark.parametrize("program", [p for ps in EXPORTED.values() for p in ps])
def test_build_options_and_any_name_reach_the_command_line(program, tmp_path):
    shapes = {"ids": ((1, 8), (4, 8), (4, 64)), "mask": ((1, 8), (4, 8), (4, 64))}
    options = Options(workspace_mb=64, optimization_level=5)
    text = trtexec.script(program, "a\nb", [NAME], ["ids", "mask"], shapes, [1, 4], options)
    for folder in ("time-b1", "time-b4", "batch-000"):
        (tmp_path / "inputs" / folder).mkdir(parents=True)
        (tmp_path / "inputs" / folder / "shapes.txt").write_text("ids:4x8,mask:4x8\n")
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "run.sh").write_text(text)
    (tmp_path / "trt").write_text(
        '#!/bin/sh\nfor word in "$@"; do echo "$word" >> calls\n'
        'case "$word" in --saveEngine=*) : > "${word#*=}" ;; esac; done\n'
    )
    (tmp_path / "trt").chmod(0o755)
    environment = os.environ | {"TRTEXEC": str(tmp_path / "trt"), "ROUNDS": "1"}
    ran = subprocess.run(["sh", str(tmp_path / "run.sh")], env=environment, capture_output=True)
    assert ran.returncode == 0, ran.stderr
    words = (tmp_path / "calls").read_text().splitlines()
    assert f"--onnx=variants/{NAME}/model.onnx" in words
    assert f"--exportLayerInfo=results/{NAME}/layers.json" in words
    assert "--loadInputs=ids:inputs/batch-000/ids.bin,mask:inputs/batch-000/mask.bin" in words
    assert "--maxShapes=ids:4x64,mask:4x64" in words
    assert {"--memPoolSize=workspace:64", "--builderOptimizationLevel=5"} <= set(words)
    assert ("--stronglyTyped" in words) == (program.script == "run_10.sh")
    assert not (tmp_path / "pwned").exists()


OUTPUT = (
    '[\n  { "name" : "y"\n  , "dimensions" : "(2, 2)"\n  , "values" : [ 1, -2e-05, nan, 4 ]\n}\n]'
)
TIMES = '[\n  { "computeMs" : 0.5, "latencyMs" : 0.75 }\n, { "computeMs" : 0.25 }\n]\n'


@given(text=st.sampled_from([OUTPUT, TIMES]), data=st.data())
def test_a_file_cut_off_anywhere_is_refused(text, data):
    cut = data.draw(st.integers(0, len(text.rstrip()) - 1))
    with pytest.raises(EngineError):
        trtexec.kind_of(text[:cut])


KEYS = [
    "name",
    "dimensions",
    "values",
    "computeMs",
    "count",
    "timeMs",
    "Layers",
    "Bindings",
    "Name",
    "Inputs",
    "Outputs",
]
JSON = st.recursive(
    st.none() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=5)
    | st.sampled_from(["y", "(2, 2)", "9" * 5000]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
)  # fmt: skip


@given(data=JSON)
def test_any_json_is_read_or_refused(data):
    text = json.dumps(data)
    readers = (
        trtexec.kind_of,
        trtexec.read_times,
        lambda text: trtexec.read_outputs(text, {"y": "float32"}),
        read_inspector_json,
        read_profile_json,
    )
    for read in readers:
        with contextlib.suppress(EngineError):
            read(text)


def test_trtexecs_files_are_known_by_their_content():
    assert trtexec.kind_of(OUTPUT) == "output"
    assert trtexec.kind_of(TIMES) == "times"
    assert trtexec.kind_of('[{"count": 3}]') == "profile"
    assert trtexec.kind_of('{"Layers": []}') == "layers"
    assert trtexec.kind_of("[]") is None
    assert trtexec.read_times(TIMES).tolist() == [0.5, 0.25]
    found = trtexec.read_outputs(OUTPUT, {"y": "float32"})["y"]
    np.testing.assert_array_equal(found, np.float32([[1, -2e-5], [np.nan, 4]]))


def test_our_own_engines_leave_the_inspectors_file(deployed):
    for name in ("fp32", "recipe"):
        file = deployed.out / "variants" / name / "tensorrt_rtx" / "layers.json"
        plan = read_inspector_json(file.read_text())
        assert len(plan.kernels) == deployed.engine(name, 1).kernels
        assert plan.moved.total == deployed.engine(name, 1).moved.total
        again = read_inspector_json(inspector_json(plan))
        assert again == plan


def test_export_needs_neither_labels_nor_an_engine(deployed):
    images = {"npz": "data.npz", "inputs": {"image": "images"}}
    recipe = deployed.recipe(data={"calibration": images}, engines=["onnxruntime"])
    out = deployed.folder / "bare"
    done = run_main("export", recipe, "--run", deployed.out, "--out", out)
    assert done.code == 0, done.stderr
    model = onnx.load(out / "variants/recipe/model.onnx")
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)
