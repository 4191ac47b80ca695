"""The recipe's `build`, at its line and before calibration; and builds that fail, by layer."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from conftest import run_main
from onnx import TensorProto, helper, numpy_helper

from granplugin import backends
from granplugin.backends import gpu
from granplugin.backends.base import BuildFailed, DeviceRunner, Runner
from granplugin.backends.gpu import Clocks, Gpu
from granplugin.backends.nvidia.build import Options
from granplugin.capabilities import legality
from granplugin.engines import ENGINES
from granplugin.results.values import OnnxFile
from granplugin.runs import build_options, failed_build, latency

pytestmark = pytest.mark.skipif(
    backends.backend_of("tensorrt_rtx").unavailable() is not None,
    reason="tensorrt_rtx has no package for this platform",
)
SHAPES = {"image": {"min": [1, 1, 8, 8], "opt": [8, 1, 8, 8], "max": [16, 1, 8, 8]}}


def line(project, word: str) -> int:
    """The last that has the word."""
    text = (project.folder / "recipe.yaml").read_text().splitlines()
    return max(number for number, each in enumerate(text, 1) if word in each)


@pytest.fixture(scope="module")
def options():
    """One of each, as tensorrt_rtx takes them."""
    return {
        "targets": ["sm86", "sm89"],
        "optimization_level": 1,
        "workspace_mb": 64,
        "seconds": 300.0,
        "memory_mb": 8000,
        "shapes": SHAPES,
    }


def test_what_build_says_is_what_is_built_and_changes_rebuild(applied, options):
    project = applied
    project.recipe(engines=["tensorrt_rtx"], build=options)
    assert (done := project.apply()).code == 0, done.stderr
    (variant,) = project.report().variants[1:]
    cards = {
        card["onnx_sha256"]: card
        for path in project.out.glob("cache/engine-*/engine.json")
        if (card := json.loads(path.read_text()))
    }
    assert len(cards) == 2
    assert len({card["plan"] for card in cards.values()}) == 2
    for card in cards.values():
        assert card["options"]["targets"] == ["sm86", "sm89"]
        assert card["options"]["optimization_level"] == 1
        assert card["options"]["shapes"]["image"][2] == [16, 1, 8, 8]
        assert not {"seconds", "memory_mb"} & card["options"].keys()
    # Of a batch that is not known no bytes are, and none are made up.
    assert variant.engines[0].moved.total is None
    assert "unknown" in done.stdout
    assert "unknown" in (project.out / "report.md").read_text()
    options = {**options, "shapes": {"image": {key: [16, 1, 8, 8] for key in SHAPES["image"]}}}
    project.recipe(engines=["tensorrt_rtx"], build=options)
    done = project.apply()
    assert project.report().variants[1].engines[0].moved.total > 0
    assert "nothing is timed at batch 1" in done.stdout


@pytest.mark.parametrize(
    ("key", "value", "word", "said"),
    [
        ("targets", ["sm98"], "sm98", "unknown target 'sm98'; did you mean 'sm89'?"),
        ("optimization_level", 6, "optimization_level", "less than or equal to 5, not 6"),
        ("seconds", 0.0, "seconds", "greater than 0"),
        ("memory_mb", 1.5, "memory_mb", "a whole number is expected here, not 1.5"),
        ("timing_cache", "cache", "timing_cache", "timing_cache is for tensorrt, and this recipe"),
        ("shapes", {"imag": SHAPES["image"]}, "imag:", "no input 'imag'; did you mean 'image'?"),
        ("shapes", {"image": {**SHAPES["image"], "max": [9, 1]}}, "image:", "one number per axis"),
        (
            "shapes",
            {"image": {**SHAPES["image"], "min": [9, 1, 8, 8]}},
            "opt:",
            "opt [8, 1, 8, 8] is below min [9, 1, 8, 8]",
        ),
        (
            "shapes",
            {"image": {**SHAPES["image"], "max": [16, 1, 8, 9]}},
            "max:",
            "image is [batch, 1, 8, 8], and only its batch can vary",
        ),
        (
            "shapes",
            {"image": {**SHAPES["image"], "max": [8, 1, 8, 8]}},
            "max:",
            "image is built for batches of 1 to 8, and data.batch_size is 16",
        ),
        ("targets", ["sm75"], "- sm75", "'head' and the fp32 baseline need; leave sm75 out"),
    ],
)
def test_a_wrong_option_is_an_error_at_its_line_before_calibration(
    project, key, value, word, said, monkeypatch
):
    project.recipe(engines=["tensorrt_rtx"], build={key: value})
    monkeypatch.setattr("granplugin.pipelines.apply.calibrate", None)
    done = project.apply()
    assert done.code == 2
    assert said in done.stderr
    assert f"recipe.yaml:{line(project, word)}:" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_last_batch_of_the_evaluation_data_must_fit(project):
    project.arrays = {name: array[:61] for name, array in project.arrays.items()}
    shapes = {"image": {**SHAPES["image"], "min": [14, 1, 8, 8], "opt": [16, 1, 8, 8]}}
    project.recipe(engines=["tensorrt_rtx"], build={"shapes": shapes})
    done = project.apply()
    assert done.code == 2
    at = f"recipe.yaml:{line(project, 'min:')}:"
    assert f"{at}7: image is built for batches of 14 to 16, and the last batch is 13" in done.stderr


def test_build_options_that_no_engine_has_are_an_error_and_else_a_note(applied):
    applied.recipe(engines=["openvino", "onnxruntime"], build={"seconds": 60.0})
    done = applied.apply()
    assert done.code == 2
    assert f"recipe.yaml:{line(applied, 'seconds')}:3: seconds is for tensorrt and" in done.stderr
    applied.recipe(
        engines=["onnxruntime", "tensorrt_rtx"],
        optional_engines=["tensorrt"],
        build={"targets": ["sm86"], "timing_cache": "cache"},
    )
    done = applied.apply()
    assert done.code == 0
    assert "build.targets is for tensorrt_rtx; tensorrt does without" in done.stdout
    assert "build.timing_cache is for tensorrt; tensorrt_rtx does without" in done.stdout


def test_targets_decide_which_formats_there_are(applied):
    rules = [{"match": "conv", "format": "fp8", "weight": "per_tensor", "input": "per_tensor"}]
    applied.recipe(engines=["tensorrt_rtx"], rules=rules, build={"targets": ["sm86", "sm89"]})
    done = applied.apply()
    assert done.code == 2
    where = f"recipe.yaml:{line(applied, 'match: conv')}:"
    assert where in done.stderr
    assert "tensorrt_rtx does not have fp8 per_tensor for the weight of 'conv'" in done.stderr
    assert "FP8 needs sm89 or newer" in done.stderr
    applied.recipe(engines=["tensorrt_rtx"], rules=rules, build={"targets": ["sm89"]})
    assert applied.apply().code == 0


def test_tensorrts_target_is_the_gpu_that_is_there(project, monkeypatch):
    from granplugin.recipe.load import load_recipe

    recipe = load_recipe(project.recipe(optional_engines=["tensorrt", "tensorrt_rtx"])).recipe
    monkeypatch.setattr(legality, "gpu", lambda: Gpu("RTX A4000", "570", "sm86"))
    monkeypatch.setattr(legality, "engines_of", lambda recipe: recipe.optional_engines)
    assert legality.targets_of(recipe) == {"tensorrt": ("sm86",), "tensorrt_rtx": ()}


def test_an_engine_for_other_targets_is_audited_and_not_run(project, monkeypatch):
    from granplugin.recipe.load import load_recipe

    loaded = load_recipe(project.recipe(engines=["tensorrt_rtx"], build={"targets": ["sm86"]}))
    rtx = backends.backend_of("tensorrt_rtx")
    monkeypatch.setattr(rtx, "can_run", lambda: None)
    for target, said in [("sm86", None), ("sm89", "built for sm86, and the L4 here is sm89")]:
        monkeypatch.setattr(build_options, "gpu", lambda: Gpu("L4", "570", target))
        reason = build_options.cannot_run(loaded.recipe, rtx)
        assert reason is None if said is None else said in reason


def test_an_input_that_shapes_leave_out_has_the_batch_of_the_others():
    from granplugin.recipe.build import Build, Shapes

    shape = Shapes(min=[1, 3], opt=[2, 3], max=[4, 3])
    recipe = SimpleNamespace(build=Build(shapes={"a": shape}), data=SimpleNamespace(batch_size=2))
    sizes = {"a": ((3,), (3,)), "b": ((5, 7), (5, 7))}
    rtx = backends.backend_of("tensorrt_rtx")
    assert build_options._shapes(recipe, sizes, rtx, False, False) == {
        "a": ((1, 3), (2, 3), (4, 3)),
        "b": ((1, 5, 7), (2, 5, 7), (4, 5, 7)),
    }


# Engines that run on a GPU: ours around a stand-in for one.


@dataclass(frozen=True)
class Stand(DeviceRunner):
    """Around another runner; each call takes `ms` by a clock of its own."""

    inner: Runner
    ms: float

    def _infer(self, feeds):
        return self.inner.run(feeds)

    def repeated(self, feeds):
        self.run(feeds)
        return self

    def __call__(self):
        pass

    def timed(self, calls):
        assert calls > 1
        return self.ms

    def captured(self):
        return replace(self, ms=self.ms / 2)

    def profile(self, feeds, folder):
        for file in ("layers.json", "profile.json"):
            (folder / file).write_text(json.dumps(len(feeds["image"])))


def test_a_gpus_report_has_graphs_the_builds_spread_clocks_and_profiles(applied, monkeypatch):
    openvino, opened = backends.backend_of("openvino"), backends.backend_of("openvino").open

    @contextmanager
    def on_gpu(engine, threads=None, batch=None):
        with opened(engine, threads, batch) as runner:
            ms = 1.1 if engine.path.name.endswith("-again") else 1.0
            yield Stand(engine, runner.inputs, runner, ms)

    monkeypatch.setattr(openvino, "open", on_gpu)
    facts = replace(ENGINES["openvino"], device="gpu", builds_vary=True)
    monkeypatch.setitem(ENGINES, "openvino", facts)
    monkeypatch.setattr(latency, "clocks", lambda: Clocks(1980.0, 2619.0, 41.0, None))
    applied.recipe(engines=["openvino"])
    assert (done := applied.apply()).code == 0, done.stderr
    timed = applied.report().variants[1].engines[0].latency
    assert [(each.batch, each.median_ms, each.graph_ms) for each in timed] == [
        (1, 1.0, 0.5),
        (16, 1.0, 0.5),
    ]
    # What two builds differ by is no difference between variants.
    ratio = timed[0].vs["fp32"]
    assert (ratio.value, ratio.low, ratio.high) == (1.0, pytest.approx(1 / 1.1), pytest.approx(1.1))
    assert [clocks.sm_mhz for clocks in timed[0].clocks] == [1980.0, 1980.0]
    for text in (done.stdout, (applied.out / "report.md").read_text()):
        told = " ".join(text.split())
        assert "openvino, batch 16, ms as a CUDA graph: fp32 0.500, recipe 0.500" in told
        assert "differ by up to 10.0 %" in told
        assert "1980 MHz, 2619 MHz memory, 41 C; 1980 MHz" in told
    for variant in ("fp32", "recipe"):
        folder = applied.out / "variants" / variant / "openvino"
        assert {"layers.json", "profile.json"} < {path.name for path in folder.iterdir()}
    assert applied.apply().code == 0
    assert (folder / "profile.json").read_text() == "16"


def smi(tmp_path, monkeypatch, script):
    """nvidia-smi in the PATH, as this shell script."""
    path = tmp_path / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    gpu.gpu.cache_clear()


@pytest.fixture
def forgotten():
    yield
    gpu.gpu.cache_clear()


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_the_gpu_is_what_nvidia_smi_says(tmp_path, monkeypatch, forgotten):
    smi(tmp_path, monkeypatch, """
        case "$1" in
          *name*) echo "NVIDIA H200, 570.86.15, 9.0"; echo "NVIDIA T4, 570.86.15, 7.5";;
          *) echo "1980, 2619, 41, [N/A]";;
        esac""")  # fmt: skip
    assert gpu.gpu() == Gpu("NVIDIA H200", "570.86.15", "sm90")
    assert gpu.trouble() is None
    assert gpu.clocks() == Clocks(1980.0, 2619.0, 41.0, None)
    assert "NVIDIA H200 (sm90), driver 570.86.15" in run_main("doctor").stdout


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
@pytest.mark.parametrize("visible", ["", "-1"])
def test_a_gpu_that_is_hidden_is_not_there(tmp_path, monkeypatch, forgotten, visible):
    smi(tmp_path, monkeypatch, "echo 'NVIDIA H200, 570.86.15, 9.0'")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu.gpu() is None and gpu.clocks() is None
    assert gpu.trouble() == "CUDA_VISIBLE_DEVICES hides it"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    gpu.gpu.cache_clear()
    assert gpu.gpu() == Gpu("NVIDIA H200", "570.86.15", "sm90")


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_a_driver_that_does_not_work_is_told_in_its_words(tmp_path, monkeypatch, forgotten):
    said = "Failed to initialize NVML: Driver/library version mismatch"
    smi(tmp_path, monkeypatch, f"echo '{said}'; exit 18")
    assert gpu.gpu() is None
    assert gpu.trouble() == said
    assert gpu.clocks() is None
    done = run_main("doctor")
    assert done.code == 0
    assert f"none; {said}" in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 80


# Builds that fail.


@pytest.fixture
def unpromised(monkeypatch):
    """As if nothing were known of the engine, so that what it cannot build reaches it."""
    monkeypatch.setattr(legality.capabilities, "backends", dict)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (
            {"match": "conv", "weight": "per_element"},
            "refused it: node conv.weight/DequantizeLinear (DequantizeLinear): ",
        ),
        (
            {"match": "head", "weight": {"per_block": {"size": 4, "axis": 1}}},
            "CHECK(is_constant()) failed",
        ),
    ],
    ids=["parser", "builder"],
)
def test_what_the_library_refuses_names_variant_layer_and_rule(
    applied, unpromised, monkeypatch, rule, said
):
    before = {
        path: path.read_bytes() for path in applied.out.rglob("*") if path.name.startswith("report")
    }
    applied.recipe(engines=["tensorrt_rtx"], baselines=["fp32", "tensorrt@11"], rules=[rule])
    done = applied.apply()
    assert done.code == 2
    told = done.stderr.splitlines()[-1]
    assert told.startswith("variant recipe: tensorrt_rtx refused it: ")
    assert said in told
    where = f"layer '{rule['match']}' ({applied.folder / 'recipe.yaml'}:{line(applied, 'match:')}:"
    assert where in told
    assert told.endswith("write format: float for it")
    # What was there before still is, and no scratch is left.
    assert {path: path.read_bytes() for path in before} == before
    assert not list(applied.out.rglob(".making-*"))


def test_a_build_over_its_limits_is_one_line(applied):
    for key, value, said in [
        ("seconds", 0.01, "it took more than 0.01 s; raise build.seconds, or build less"),
        ("memory_mb", 20, "MB of memory, and 20 MB is the limit"),
    ]:
        applied.recipe(engines=["tensorrt_rtx"], build={key: value})
        done = applied.apply()
        assert done.code == 2
        assert len(done.stderr.splitlines()) == 1
        assert "variant fp32: tensorrt_rtx could not build it: " in done.stderr
        assert said in done.stderr


class Planted:
    """A backend whose builds crash where all layers of a group are quantized."""

    name = "planted"

    def __init__(self, *groups):
        self.groups, self.builds = groups, 0

    def build(self, onnx, out, options):
        self.builds += 1
        kept = set(onnx.read_text().split())
        if any(group <= kept for group in self.groups):
            raise BuildFailed("planted could not build it: the compiler crashed (SIGSEGV)")


@pytest.fixture
def explained(tmp_path, monkeypatch):
    layers = [f"features.{n}" for n in range(50)]
    rows = [
        SimpleNamespace(layer=name, site=f"{name}.{role}", rule=rule, where=f"r.yaml:{at}:3")
        for n, name in enumerate(layers)
        for role, rule, at in [("weight", "mine", n + 10), ("input", "tensorrt@11", 1)]
    ]
    built = SimpleNamespace(
        job=SimpleNamespace(name="recipe"),
        quantized_for=lambda engine: rows,
        file=lambda engine: OnnxFile(tmp_path / "v.onnx", "key"),
    )

    onnx.save(helper.make_model(helper.make_graph([], "v", [], [])), tmp_path / "v.onnx")

    def write(built, engine, kept, path):
        path.write_text(" ".join(kept))

    monkeypatch.setattr(failed_build, "write_quantized", write)

    def explain(*groups, nodes=()):
        backend = Planted(*groups)
        failed = BuildFailed("planted could not build v.onnx: the compiler crashed", nodes)
        said = failed_build.explain(built, backend, Options(), tmp_path, failed)
        return str(said), backend.builds

    return explain


def test_a_crash_is_traced_to_its_layer_and_rule_in_few_builds(explained):
    said, builds = explained({"features.3"})
    assert said == (
        "variant recipe: planted could not build it: the compiler crashed; it builds without "
        "layer 'features.3' (r.yaml:13:3): write format: float for it"
    )
    assert builds <= 2 + 6 + 1 + 1


def test_two_layers_that_only_crash_together_are_both_named(explained):
    said, builds = explained({"features.3", "features.41"})
    assert said.endswith(
        "it fails where layers 'features.3' (r.yaml:13:3) and 'features.41' (r.yaml:51:3) are all "
        "quantized: write format: float for one of them"
    )
    assert builds <= 2 * (1 + 6) + 2


def test_a_layer_that_is_not_the_only_one_is_said_to_be_one_of_several(explained):
    said, _ = explained({"features.3"}, {"features.41"})
    assert "layer 'features.3' (r.yaml:13:3) is enough for it, and there are others" in said


def test_a_crash_with_nothing_quantized_is_no_layers_fault(explained):
    said, builds = explained(set())
    assert said.endswith("it fails with nothing quantized, too")
    assert builds == 1


def test_a_search_that_takes_too_long_tells_how_far_it_came(explained, monkeypatch):
    monkeypatch.setattr(failed_build, "SEARCH_SECONDS", 0)
    said, builds = explained({"features.3"})
    assert "50 layers from 'features.0' to 'features.49' are enough for it" in said
    assert builds == 1


def test_a_named_node_needs_no_search(explained):
    for node in ("features.4/Conv", "features.4.input/QuantizeLinear"):
        said, builds = explained(nodes=[node])
        assert "that is of layer 'features.4' (r.yaml:14:3): write format: float for it" in said
        assert builds == 0


def crashing_net(path, kept):
    """A chain of five products; each is int8 if it is kept, but `blocks.2` FP4 with one static
    scale for its input, on which TensorRT-RTX 1.7.1 dies of SIGSEGV."""
    fp4, rng = TensorProto.FLOAT4E2M1, np.random.default_rng(0)
    constants, nodes, x = {"scale": np.asarray(0.1, np.float32)}, [], "x"
    for n in range(5):
        layer = f"blocks.{n}"
        constants[f"{layer}/w"] = rng.standard_normal((64, 64)).astype(np.float32)
        operands = [x, f"{layer}/w"]
        for at, role in enumerate(("input", "weight") if layer in kept else ()):
            kind = fp4 if n == 2 else TensorProto.INT8
            blocks = {"axis": 1, "block_size": 64} if n == 2 and role == "weight" else {}
            scale = f"{layer}.{role}/scale"
            constants[scale] = np.full((64, 1) if blocks else (), 0.1, np.float32)
            pair = f"{layer}.{role}/QuantizeLinear", f"{layer}.{role}/DequantizeLinear"
            nodes += [
                helper.make_node(
                    "QuantizeLinear",
                    [operands[at], scale],
                    pair[:1],
                    name=pair[0],
                    output_dtype=kind,
                    **blocks,
                ),
                helper.make_node("DequantizeLinear", [pair[0], scale], pair[1:], pair[1], **blocks),
            ]
            operands[at] = pair[1]
        x = f"{layer}/MatMul"
        nodes.append(helper.make_node("MatMul", operands, [x], name=x))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 64])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, [4, 64])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11), path
    )


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_real_crash_of_the_compiler_is_traced_to_its_layer(tmp_path, monkeypatch):
    rtx = backends.backend_of("tensorrt_rtx")
    layers = [f"blocks.{n}" for n in range(5)]
    path = tmp_path / "net.onnx"
    crashing_net(path, layers)
    try:
        rtx.build(path, tmp_path / "engine", Options(batch=4))
    except BuildFailed as err:
        failed = err
    else:
        pytest.skip(f"tensorrt_rtx {rtx.version()} builds it")
    assert "the compiler crashed (SIGSEGV)" in str(failed)
    rows = [
        SimpleNamespace(layer=name, site=f"{name}.weight", rule="mine", where=f"r.yaml:{n}:3")
        for n, name in enumerate(layers)
    ]
    built = SimpleNamespace(
        job=SimpleNamespace(name="recipe"),
        quantized_for=lambda engine: rows,
        file=lambda engine: OnnxFile(path, "key"),
    )
    monkeypatch.setattr(
        failed_build, "write_quantized", lambda built, engine, kept, path: crashing_net(path, kept)
    )
    said = str(failed_build.explain(built, rtx, Options(batch=4), tmp_path, failed))
    assert said == (
        "variant recipe: tensorrt_rtx could not build it: the compiler crashed (SIGSEGV); it "
        "builds without layer 'blocks.2' (r.yaml:2:3): write format: float for it"
    )
