"""An ONNX file as a network that runs: the same numbers as its torch model, without torch."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from conftest import Done, run_main
from onnx import numpy_helper, parser

RULES = [
    {"match": {"trait": "pointwise"}, "input": {"granularity": "per_tensor", "calibrator": "mse"}},
    {"match": {"trait": "depthwise"}, "weight": "per_tensor", "bn": "keep"},
    {"match": {"trait": "last"}, "input": {"per_channel": {"axis": -1}}, "output": {"format": "int8"}},
]  # fmt: skip
NETS = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.deep = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.wide = nn.Conv2d(channels, channels, 1)
        self.out = nn.BatchNorm2d(channels)

    def forward(self, x):
        y = torch.relu(self.norm(self.deep(x)))
        return x + self.out(self.wide(y))


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.first, self.second = Block(8), Block(8)
        self.head = nn.Linear(8, 5)

    def forward(self, image):
        x = torch.relu(self.norm(self.stem(image)))
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x.mean((2, 3)))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.mix, self.norm = nn.Linear(16, 16, bias=False), nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, ids):
        x = self.embed(ids)
        chances = torch.softmax(self.query(x) @ self.key(x).transpose(1, 2) / 4, -1)
        x = x + self.mix(chances @ self.value(x))
        x = x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))
        return self.head(x.mean(1))


def images():
    return trained(Images())


def words():
    return trained(Words())


def trained(model):
    torch.manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
    return model.eval()
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    """Two networks as torch models and as files of theirs, and a recipe of each."""
    import torch

    folder = tmp_path_factory.mktemp("both")
    (folder / "nets.py").write_text(NETS)
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.standard_normal((48, 1, 10, 10), np.float32),
        "ids": rng.integers(0, 20, (48, 7)),
        "labels": rng.integers(0, 3, 48),
    }
    np.savez(folder / "data.npz", **arrays)
    space: dict = {}
    exec(NETS, space)
    for name, given in (("images", "image"), ("words", "ids")):
        torch.onnx.export(
            space[name](),
            (torch.from_numpy(arrays[given][:2]),),
            folder / f"{name}.onnx",
            dynamo=False,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            dynamic_axes={given: {0: "batch"}},
            input_names=[given],
            opset_version=17,
        )
        source = {"npz": "data.npz", "inputs": {given: given}}
        for kind, model in (
            ("torch", {"callable": f"nets.py:{name}"}), ("onnx", {"onnx": f"{name}.onnx"}),
        ):  # fmt: skip
            recipe = {
                "version": 1,
                "model": model,
                "data": {
                    "calibration": source,
                    "evaluation": {**source, "labels": "labels"},
                    "batch_size": 16,
                },
                "engines": ["onnxruntime"],
                "baselines": ["fp32"],
                "rules": RULES
                if name == "images"
                else [{"match": {"trait": "embedding"}, "format": "int8"}],
            }
            (folder / f"{name}-{kind}.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@contextmanager
def session_of(recipe: Path):
    from granplugin.recipe.load import load_recipe
    from granplugin.runs.session import Session
    from granplugin.store.run_folder import open_run

    with open_run(recipe.with_suffix(".run")) as run:
        yield Session(load_recipe(recipe), run)


def ranges(session, plan) -> list[tuple]:
    """Of each row of an activation that is calibrated its amax, in the plan's order."""
    from granplugin.calibration.statistics import find_amax, needs_of

    rows = [row for row in plan.quantized if row.operand != "weight"]
    seen = session.collect(needs_of(rows))
    return [(row.operand, row.block, find_amax(row, seen)) for row in rows]


@pytest.mark.parametrize("name", ["images", "words"])
def test_a_file_and_its_torch_model_have_the_same_weights_to_the_bit_and_ranges(both, name):
    from granplugin.graph.edit.fold import weights_of
    from granplugin.graph.files import load_float
    from granplugin.network.modules import stored
    from granplugin.planning.plan import make_plan

    with session_of(both / f"{name}-torch.yaml") as session:
        model, plan = session.network.module(), make_plan(session.loaded, session.layers)
        of_torch = ranges(session, plan)
        layers = {layer.name: layer for layer in session.layers}
        of_model = []
        for row in plan.quantized:
            if row.operand == "weight":
                held = stored(model, layers[row.layer])
                folds = row.bn == "fold"
                bn = model.get_submodule(row.bn_name) if folds else None
                of_model.append(held.folded(bn)[0] if folds else held.array)
    with session_of(both / f"{name}-onnx.yaml") as session:
        plan = make_plan(session.loaded, session.layers)
        of_file = ranges(session, plan)
        path = session.run.path / "float.onnx"
        session.network.export(session.layers, session.example, path)
        found = weights_of(load_float(path), plan.rows)
    rows = [row for row in plan.quantized if row.operand == "weight"]
    assert len(rows) == len(of_model) > 5
    for row, theirs in zip(rows, of_model, strict=True):
        assert found[row.layer].tobytes() == np.ascontiguousarray(theirs).tobytes()
    for (operand, block, ours), (other, as_block, theirs) in zip(of_file, of_torch, strict=True):
        assert (operand, block) == (other, as_block)
        # A channel may be the small difference of large numbers.
        assert np.allclose(ours, theirs, rtol=1e-6, atol=1e-6 * theirs.max())


@pytest.mark.parametrize("name", ["images", "words"])
def test_a_file_is_applied_and_computes_what_the_oracle_does(both, name):
    out = both / f"run-{name}"
    done = run_main("apply", both / f"{name}-onnx.yaml", "--out", out)
    assert done.code == 0, done.stderr
    assert "against the oracle's arithmetic" in " ".join(done.stdout.split())
    from granplugin.report.schema.run import Report

    report = Report.model_validate_json((out / "report.json").read_text())
    (variant,) = (each for each in report.variants if each.kind == "recipe")
    agreed = variant.agreement
    assert agreed.oracle_differs == 0 and agreed.modelopt_differs is None
    assert float(agreed.network_sqnr_db) > 100 and agreed.network_agreement == 100


def test_nothing_on_the_way_imports_torch_or_modelopt(both):
    script = """
        import sys

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("torch", "modelopt", "torchvision"):
                    raise ImportError(f"{name} is imported")

        sys.meta_path.insert(0, Blocker())
        from granplugin.__main__ import main
        code = main(["plan", "images-onnx.yaml", "--out", "blocked"])
        code = code or main(["inspect", "images-onnx.yaml", "--out", "blocked"])
        code = code or main(["apply", "images-onnx.yaml", "--out", "blocked"])
        code = code or main(["export", "images-onnx.yaml", "--out", "trt", "--run", "blocked"])
        code = main(["analyze", "images-onnx.yaml", "--no-costs", "--out", "blocked"]) or code
        sys.exit(0 if code == 4 else code)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=both, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_effects_measured_elsewhere_in_parts_are_the_same(both, tmp_path, kind):
    """A layer's effect is a task: it runs from its pickle, of one layer or of a part of samples."""
    from analysis_nets import rounded

    from granplugin.runs.executor import perform

    with session_of(both / f"images-{kind}.yaml") as session:
        stages = rounded(session)
        start = stages.network.start()
        layer = next(iter(start))
        whole = stages.task([start], list(start.items()), [layer])
        parts = [
            stages.task(alone=[(layer, start[layer])]),
            stages.task([start], restored=[layer], numbers=np.arange(16)),
            stages.task([start], restored=[layer], numbers=np.arange(16, 48)),
        ]
        here, files = perform(whole, tmp_path)
        assert {file.parent for file in files} == {tmp_path}
        pickles = [pickle.dumps(part) for part in parts]
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    alone, first, second = (perform(pickle.loads(each), folder)[0] for each in pickles)
    for name, figure in alone.items():
        np.testing.assert_array_equal(figure, here[name])
    for name in first:
        np.testing.assert_allclose(first[name] + second[name], here[name], rtol=1e-9)


@pytest.mark.parametrize("name", ["images", "words"])
def test_an_analysis_of_a_file_has_the_figures_of_its_torch_model(both, name):
    """Layers by their place, since names differ; whole networks only as far as chaos allows."""
    from granplugin.report.schema.analysis import Analysis

    found = []
    for kind in ("torch", "onnx"):
        out = both / f"analysis-{name}-{kind}"
        recipe = both / f"{name}-{kind}.yaml"
        settings = ["--set", "analyze.exact=true", "--set", "analyze.top=2"]
        done = run_main("analyze", recipe, "--no-costs", *settings, "--out", out)
        assert done.code in (0, 4), done.stderr
        found.append(Analysis.model_validate_json((out / "analysis.json").read_text()))
    theirs, ours = found
    figures = [
        sorted(
            (
                setting.setting,
                round(setting.weight.db if setting.weight else 0, 3),
                setting.alone.db,
            )
            for layer in analysis.layers
            for setting in (*layer.weights, *layer.inputs)
            if setting.alone
        )
        for analysis in found
    ]
    assert len(figures[0]) == len(figures[1]) > 20
    for (setting, weight, db), (same, as_weight, as_db) in zip(*figures, strict=True):
        assert (setting, weight) == (same, as_weight) and db == pytest.approx(as_db, abs=0.05)
    alone = [
        sorted(layer.alone.sqnr.db for layer in analysis.layers if layer.alone)
        for analysis in found
    ]
    assert alone[0] == pytest.approx(alone[1], abs=0.5)
    assert ours.start.sqnr.db == pytest.approx(theirs.start.sqnr.db, abs=1.0)


NET = "g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w> { [fc] y = MatMul (x, w) }"


@pytest.fixture
def file(tmp_path):
    """Writes a graph, 8 samples of data, and applies a recipe."""

    def of(text: str, inputs=None, opset: int = 21, **arrays: np.ndarray) -> Done:
        model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
        rng = np.random.default_rng(0)
        for value in model.graph.value_info:
            shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            values = rng.standard_normal(shape).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(values, value.name))
        model.graph.ClearField("value_info")
        onnx.save(model, tmp_path / "net.onnx")
        arrays = arrays or {"x": rng.standard_normal((8, 4), np.float32)}
        np.savez(tmp_path / "data.npz", **arrays)
        source = {"npz": "data.npz", "inputs": inputs or {name: name for name in arrays}}
        recipe = {
            "version": 1,
            "model": {"onnx": "net.onnx"},
            "data": {"calibration": source, "evaluation": source, "batch_size": 8},
            "engines": ["onnxruntime"],
            "baselines": ["fp32"],
        }
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
        return run_main("apply", tmp_path / "r.yaml", "--out", tmp_path / "run")

    return of


def refused(done: Done, *said: str) -> None:
    assert done.code == 2, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "r.yaml:" in line and all(words in line for words in said), line


def test_a_file_fixed_to_one_sample_is_opened_where_that_changes_nothing(file):
    done = file(NET.replace("N", "1"))
    assert done.code == 0, done.stderr
    done = file(
        "g (float[1, 4] x) => (float[4] y) <float[4, 4] w, int64[1] all = {4}> "
        "{ [fc] z = MatMul (x, w)\n y = Reshape (z, all) }"
    )
    refused(done, "exported for one sample", "dynamic_axes={'x': {0: 'batch'}}")
    done = file(
        "g (float[1, 4] x) => (float[1, 4] y) <float[4, 4] w> { [fc] z = MatMul (x, w)\n"
        "m = ReduceMax <keepdims = 0> (z)\n y = Sub (z, m) }"
    )
    refused(done, "another than for each alone")


def test_data_that_a_file_does_not_take_are_refused_in_a_sentence(file):
    x = np.zeros((8, 4), np.float32)
    refused(file(NET, x=x.astype(np.int64)), "input 'x' is float32, and the data have int64")
    two = "g (float[N, 4] x, float[N, 4] b) => (float[N, 4] y) <float[4, 4] w> { z = MatMul (x, w)\n y = Add (z, b) }"
    refused(file(two, x=x), "'b'")
    refused(file(NET, x=np.zeros((8, 5), np.float32)), "takes [any, 4]", "have [2, 5]")
    refused(file(NET.replace("MatMul (x, w)", "other.MatMul (x, w)"), x=x), "own operators")
    noise = "g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w> { z = MatMul (x, w)\n r = RandomNormalLike (z)\n y = Add (z, r) }"
    refused(file(noise, x=x), "another each time it runs")


def test_weights_of_a_gemm_are_told_as_a_linears_whichever_way_they_lie(file):
    done = file(
        "g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w, float[4, 4] v, float[4] b> {"
        " [one] z = Gemm <beta = 0.5> (x, w, b)\n [two] r = Gemm <transB = 1> (z, v)\n"
        " t = Transpose <perm = [1, 0]> (v)\n [three] s = MatMul (r, t)\n y = Add (b, s) }",
        opset=11,
    )
    assert done.code == 0, done.stderr
