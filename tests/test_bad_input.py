"""What a user can get wrong: one sentence, exit code 2, no traceback, nothing left behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import run_main
from filelock import FileLock

from granplugin import backends
from granplugin.store import run_folder


def refused(project, *words: str, argv=()) -> str:
    """Apply, which must refuse with these words and leave no trace; the sentence."""
    before = {path for path in project.folder.rglob("*") if "__pycache__" not in path.parts}
    argv = argv or [project.folder / "recipe.yaml"]
    done = run_main("apply", *argv, "--out", project.out)
    after = {path for path in project.folder.rglob("*") if "__pycache__" not in path.parts}
    assert done.code == 2, (done.code, done.stderr)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr
    assert {path.name for path in after - before} <= {"log.txt", "runs", "recipe", "cache", ".lock"}
    if "traceback" not in done.stderr:
        assert after == before
    return done.stderr


def test_a_recipe_that_is_not_there(project):
    refused(project, "none.yaml", argv=[project.folder / "none.yaml"])


def test_a_recipe_that_is_a_folder(project):
    refused(project, argv=[project.folder])


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"callable": "nets.py:tyni"}, ["recipe.yaml:3:", "nets.py", "tiny"]),
        ({"callable": "no_such_module:net"}, ["no_such_module", "install it"]),
        ({"callable": "nets.py:NETS"}, ["recipe.yaml:3:"]),
        ({"callable": "nets.py:tiny", "args": {"clases": 3}}, ["recipe.yaml:3:", "clases"]),
        ({"callable": "nets.py:tiny", "weights": "none.safetensors"}, ["no such file"]),
        ({"callable": "math:sqrt", "args": {}}, ["sqrt"]),
    ],
)
def test_a_model_that_cannot_be_built(project, model, words):
    project.recipe(model=model)
    refused(project, *words)


def test_the_traceback_of_a_callable_that_raises_is_in_the_log(project):
    project.write("nets.py", "def tiny():\n    raise LookupError('no such size')\n")
    project.recipe()
    said = refused(project, "nets.py:2", "LookupError: no such size", "log.txt")
    log = project.out / "log.txt"
    assert str(log) in said
    assert "Traceback" in log.read_text()
    assert "raise LookupError" in log.read_text()


def test_weights_that_do_not_fit(project):
    from safetensors.numpy import save_file

    weights = {"conv.weight": np.zeros((8, 1, 3, 3), np.float32), "tail": np.zeros(3, np.float32)}
    save_file(weights, project.folder / "weights.safetensors")
    project.recipe(model={"callable": "nets.py:tiny", "weights": "weights.safetensors"})
    refused(project, "bn.weight", "tail")


def test_weights_with_nan_name_the_parameter(project):
    nan = "net = Tiny()\n    net.head.weight.data[0, 0] = float('nan')\n    return net\n"
    nets = (project.folder / "nets.py").read_text()
    project.write("nets.py", f"{nets}\n\ndef broken():\n    {nan}")
    project.recipe(model={"callable": "nets.py:broken"})
    refused(project, "head.weight", "NaN")


def test_activations_with_nan_name_the_layer(project):
    nan = "net = Tiny()\n    net.bn.bias.data[3] = 3e38\n    net.bn.weight.data[3] = 3e38\n"
    nets = (project.folder / "nets.py").read_text()
    project.write("nets.py", f"{nets}\n\ndef broken():\n    {nan}    return net\n")
    project.recipe(model={"callable": "nets.py:broken"})
    refused(project, "bn")


@pytest.mark.parametrize(
    ("name", "array", "word"),
    [
        ("images", np.zeros((0, 1, 8, 8), np.float32), "no samples"),
        ("images", np.full((64, 1, 8, 8), np.nan, np.float32), "NaN"),
        ("images", np.zeros((64, 3, 8, 8), np.float32), "forward raised"),
        ("images", np.zeros((64, 8), np.float32), "forward raised"),
        ("images", np.zeros(64, np.float32), "forward raised"),
        ("images", np.array(["a"] * 64), "numbers"),
        ("labels", np.full(64, 4), "out of range"),
        ("labels", np.full(64, -1), "count from 0"),
        ("labels", np.zeros(63, int), "63"),
    ],
)
def test_data_that_cannot_be_used(project, name, array, word):
    project.arrays[name] = array
    if name == "images":
        project.arrays["labels"] = np.zeros(len(array), int)
    project.recipe()
    refused(project, "recipe.yaml:", word)


@pytest.mark.parametrize("role", ["calibration", "evaluation"])
def test_a_data_callable_that_raises(project, role):
    project.write("loader.py", "def batches():\n    yield [[1.0], [2.0]][2]\n")
    images = {"npz": "data.npz", "inputs": {"image": "images"}}
    sources = {"calibration": images, "evaluation": {**images, "labels": "labels"}}
    project.recipe(data={**sources, role: {"callable": "loader.py:batches"}})
    refused(project, "recipe.yaml:", "loader.py:2", "IndexError", "log.txt")


def test_too_few_values_for_a_calibrator(project):
    rule = {"match": "head", "input": {"calibrator": "entropy", "granularity": "per_element"}}
    project.recipe(rules=[rule])
    refused(project, "recipe.yaml:", "entropy", "16,384")


def test_ranges_exported_to_where_a_file_is_in_the_way(applied):
    applied.recipe(statistics={"export": "nets.py/amax.json"})
    refused(applied, "recipe.yaml:", "amax.json", "cannot be written")


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden"])
def test_a_name_that_would_leave_the_folder_of_runs(project, name):
    project.recipe(name=name)
    refused(project, "recipe.yaml:")


def test_an_engine_that_is_not_installed(project, monkeypatch):
    from granplugin import backends

    told = 'openvino is not installed; pip install "granplugin[openvino]"'
    monkeypatch.setattr(backends.backend_of("openvino"), "unavailable", lambda: told)
    project.recipe(engines=["onnxruntime", "openvino"])
    refused(project, "recipe.yaml:", told)


def test_a_run_folder_that_is_a_file(project):
    project.recipe()
    project.write("runs", "")
    refused(project, "cannot be used", "--out")


def test_a_log_that_cannot_be_written(applied):
    log = applied.out / "log.txt"
    log.unlink()
    log.mkdir()
    refused(applied, "log.txt", "cannot be written")


def test_a_run_folder_that_another_run_uses(applied):
    before = applied.report()
    with FileLock(applied.out / ".lock"):
        refused(applied, "in use by another run")
    assert applied.report() == before


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ValueError('no boxes')", ["ValueError: no boxes", "metric.py:2"]),
        ("raise SystemExit(0)", ["SystemExit"]),
        ("return 0.5", ["dict", "float"]),
        ("return {}", ["no metric"]),
        ("return {'map': 'high'}", ["'map'", "not a number"]),
        ("return {'map': float('nan')}", ["'map'", "NaN"]),
        ("return {'map': 1.0, 'per_sample': [1.0]}", ["per_sample"]),
        ("return {'map': 1.0, 'per_sample': {'map': [1.0]}}", ["per_sample", "'map'", "64"]),
        ("return {'map': 1.0, 'per_sample': {'mpa': [1.0] * 64}}", ["'mpa'"]),
        ("return {'top1': 1.0}", ["'top1'"]),
    ],
)
def test_an_evaluate_function_that_raises_or_returns_nonsense(applied, body, words):
    applied.write("metric.py", f"def fn(predict, data):\n    {body}\n")
    applied.recipe(evaluate="metric.py:fn")
    before = applied.report()
    refused(applied, "metric.py:fn", *words)
    assert applied.report() == before


def test_a_full_disk_leaves_the_earlier_results(applied, monkeypatch):
    before = (applied.out / "report.json").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_folder.os, "replace", full)
    applied.recipe(rules=[{"match": "*", "weight": "per_tensor"}])
    done = applied.apply()
    assert done.code == 2
    assert "No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (applied.out / "report.json").read_bytes() == before
    monkeypatch.undo()
    assert applied.apply().code == 0


def test_files_cut_short_by_the_system_leave_the_earlier_results(applied, forks):
    before = (applied.out / "report.json").read_bytes()
    applied.recipe(rules=[{"match": "*", "weight": "per_tensor"}])
    done = forks.run(
        ["granplugin", "apply", applied.folder / "recipe.yaml", "--out", applied.out],
        limits={"RLIMIT_FSIZE": 4000},
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert (applied.out / "report.json").read_bytes() == before


def test_an_interrupt_in_a_stage_exits_130_and_the_next_run_resumes(project, monkeypatch):
    from granplugin.pipelines import apply as pipeline

    def stopped(*_):
        raise KeyboardInterrupt

    project.recipe()
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "measure", stopped)
        done = project.apply()
    assert (done.code, done.stdout) == (130, "")
    assert "interrupted" in done.stderr
    assert not (project.out / "report.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr("granplugin.modelopt_bridge.convert", stopped)
        assert project.apply().code == 0


def test_our_own_failure_exits_70_with_versions_in_a_log(applied, monkeypatch):
    from granplugin.pipelines import apply as pipeline

    def broken(*_):
        raise ZeroDivisionError("by our own fault")

    monkeypatch.setattr(pipeline, "measure", broken)
    done = applied.apply()
    assert done.code == 70
    assert len(done.stderr.splitlines()) == 1
    log = done.stderr.split()[-1]
    with open(log) as file:
        told = file.read()
    os.unlink(log)
    assert "ZeroDivisionError: by our own fault" in told
    assert "torch 2." in told


def test_what_a_hook_of_ours_raises_is_not_told_as_the_models(project, monkeypatch):
    ours = {"__name__": "granplugin.calibration.seen"}
    exec("def add(*_):\n    raise ZeroDivisionError('by our own hook')", ours)
    monkeypatch.setattr("granplugin.calibration.seen.Seen.add", ours["add"])
    project.recipe()
    done = project.apply()
    assert (done.code, done.stdout) == (70, "")
    assert "forward" not in done.stderr and "nets.py" not in done.stderr
    log = Path(done.stderr.split()[-1])
    told = log.read_text()
    log.unlink()
    assert "Traceback" in told and "in hook" in told
    assert "ZeroDivisionError: by our own hook" in told


def test_a_file_that_an_engine_refuses_is_told_by_the_variants_name(applied, monkeypatch):
    pytest.importorskip("openvino")
    backend = backends.backend_of("onnxruntime")  # which quotes the path of what it refuses
    build, refused = backend.build, []

    def damaged(path, out, options=None):
        if not path.name.startswith("variant-"):
            return build(path, out, options)
        model = onnx.load(path)
        next(node for node in model.graph.node if node.op_type == "Conv").op_type = "Unheard"
        (applied.folder / "damaged").mkdir(exist_ok=True)
        refused.append(path.stem)
        onnx.save(model, applied.folder / "damaged" / path.name)
        return build(applied.folder / "damaged" / path.name, out, options)

    monkeypatch.setattr(backend, "build", damaged)
    applied.recipe(engines=["onnxruntime", "openvino"])
    done = applied.apply()
    by_name = {each.name: each for each in applied.report().variants}
    for name in ("fp32", "recipe"):
        told = next(e for e in by_name[name].engines if e.engine == "onnxruntime").refused
        assert told.startswith("onnxruntime refused it: ") and "conv/Conv" in told
        assert f"REFUSED: {name}: onnxruntime refused it: " in done.stdout
    assert "layers 'conv'" in told, "that of the recipe names its layers"
    texts = [done.stdout, done.stderr, (applied.out / "report.md").read_text()]
    assert refused and not any(name in text for name in refused for text in texts)


def test_a_rule_that_matches_nothing_is_refused_before_calibration(project, monkeypatch):
    monkeypatch.delattr("granplugin.pipelines.apply.calibrate")
    project.recipe(rules=[{"match": "hed", "weight": "per_tensor"}])
    refused(project, "recipe.yaml:", "'hed'", "head")
