"""A network that modelopt has quantized already: taken over, to the bit."""

from __future__ import annotations

import copy
import re
import runpy
from types import SimpleNamespace

import modelopt.torch.opt as mto
import modelopt.torch.quantization as mtq
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import Project, run_main
from onnx import numpy_helper

import granplugin
from granplugin.errors import ModelError
from granplugin.network.taken import Quantizers, take
from granplugin.quant.layers import Layer, sites_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def taken(tmp_path_factory) -> SimpleNamespace:
    """A project whose network was quantized by modelopt, trained a little, and saved."""
    project = Project(tmp_path_factory.mktemp("taken"))
    project.recipe()
    images = torch.from_numpy(project.arrays["images"])
    torch.manual_seed(0)
    model = runpy.run_path(str(project.folder / "nets.py"))["tiny"]().eval()
    config = copy.deepcopy(mtq.INT8_DEFAULT_CFG)
    model = mtq.quantize(model, config, lambda model: model(images))
    model.train()
    for parameter, step in zip(model.parameters(), torch.randn(99), strict=False):
        parameter.data += 0.01 * step
    model(images)  # batch norms are updated
    model.depthwise.input_quantizer.amax *= 0.9
    model.eval()
    mto.save(model, project.folder / "trained.pth")
    with torch.no_grad():
        logits = model(images).numpy()
    return SimpleNamespace(project=project, model=model, logits=logits)


def apply(taken: SimpleNamespace, *argv: object) -> Project:
    project = taken.project
    done = run_main("apply", project.folder / "recipe.yaml", *argv, "--out", project.out)
    assert done.code == 0, done.stderr
    return project


def tensors(project: Project, variant: str = "recipe") -> dict[str, np.ndarray]:
    graph = onnx.load_from_string(project.onnx(variant)).graph
    return {each.name: numpy_helper.to_array(each) for each in graph.initializer}


def test_apply_writes_the_checkpoints_ranges_to_the_bit_and_computes_its_logits(taken):
    preset = "baselines=[fp32, tensorrt@11]"  # a baseline finds ranges of its own
    project = apply(taken, "--from", taken.project.folder / "trained.pth", "--set", preset)
    found = tensors(project)
    for name, quantizer in taken.model.named_modules():
        if name.endswith("_quantizer") and quantizer.is_enabled:
            scale = found[f"{name.removesuffix('_quantizer')}/scale"]
            assert (scale == quantizer.amax.reshape(-1).numpy() / np.float32(127)).all(), name
    session = onnxruntime.InferenceSession(project.onnx())
    (logits,) = session.run(None, {"image": project.arrays["images"]})
    np.testing.assert_allclose(logits, taken.logits, atol=1e-5)
    plan = run_main(
        "plan", project.folder / "recipe.yaml", "--from", project.folder / "trained.pth"
    )
    assert plan.stdout.count("as given") == plan.stdout.count("checkpoint") == 6


def test_rules_on_top_change_what_they_name_and_nothing_else(taken):
    taken.project.recipe(
        model={"callable": "nets.py:tiny", "weights": "trained.pth", "quantized": "keep"},
        rules=[
            {"match": "depthwise", "weight": "per_tensor"},
            {"match": "head", "input": {"amax": 3.0}},
            {"match": "conv", "bn": "fold"},
        ],
    )
    found = tensors(apply(taken))
    taken.project.recipe(rules=None, model={"callable": "nets.py:tiny"})
    before = tensors(apply(taken, "--from", taken.project.folder / "trained.pth"))
    changed = {
        name for name, values in before.items()
        if name.endswith("/scale") and not np.array_equal(found[name], values)
    }  # fmt: skip
    assert changed == {"depthwise.weight/scale", "head.input/scale", "conv.weight/scale"}
    assert found["depthwise.weight/scale"].shape == ()


def test_a_live_model_is_taken_over_and_left_alone(taken):
    project, images = taken.project, torch.from_numpy(taken.project.arrays["images"])
    before = {name: values.clone() for name, values in taken.model.state_dict().items()}
    recipe = granplugin.load(
        project.recipe(model=None), ["variants.coarse.set.defaults=tensorrt@11"], model=taken.model
    )
    assert str(granplugin.plan(recipe, out=project.out)).count("as given") == 6
    granplugin.apply(recipe, out=project.out)
    own = granplugin.export_onnx(taken.model, images[:2], project.folder / "own.onnx").read_bytes()
    assert own == project.onnx()
    (logits,) = onnxruntime.InferenceSession(own).run(None, {"image": images.numpy()})
    np.testing.assert_allclose(logits, taken.logits, atol=1e-5)
    after = taken.model.state_dict()
    assert after.keys() == before.keys() and all(after[n].equal(before[n]) for n in before)
    with torch.no_grad():
        np.testing.assert_array_equal(taken.model(images).numpy(), taken.logits)
    project.recipe()


def test_a_quantized_checkpoint_or_model_is_refused_with_its_count_unless_it_is_to_be_kept(taken):
    project = taken.project
    recipe = project.recipe(model={"callable": "nets.py:tiny", "weights": "trained.pth"})
    done = run_main("plan", recipe, "--out", project.out)
    assert done.code == 2 and "6 quantizers of modelopt" in done.stderr
    assert "quantized: keep" in done.stderr
    project.recipe()


def test_keep_without_anything_to_keep_is_one_sentence(taken):
    recipe = taken.project.recipe(model={"callable": "nets.py:tiny", "quantized": "keep"})
    done = run_main("plan", recipe, "--out", taken.project.out)
    assert done.code == 2 and "nothing in it is quantized" in done.stderr
    taken.project.recipe()


def test_a_checkpoint_of_another_model_is_one_sentence(taken):
    recipe = taken.project.recipe(model={"callable": "nets.py:tiny", "args": {"classes": 7}})
    done = run_main("plan", recipe, "--from", taken.project.folder / "trained.pth")
    assert done.code == 2 and "the weights do not fit the model" in done.stderr
    assert done.stderr.count("\n") == 1
    taken.project.recipe()


def test_a_state_dict_of_quantizers_says_how_to_save_the_model(taken):
    torch.save(taken.model.state_dict(), taken.project.folder / "state.pth")
    done = run_main(
        "plan", taken.project.folder / "recipe.yaml", "--from", taken.project.folder / "state.pth"
    )
    assert done.code == 2 and "mto.save(model, path)" in done.stderr


FC = Layer("fc", "Linear", sites_of("fc", "Linear", {"weight": (4, 32), "input": (1, 32)}))
ON = {"_disabled": False, "_if_quant": True, "_num_bits": 8, "_axis": None}
ZERO_ROW = np.float32([1, 1, 0, 1])


@pytest.mark.parametrize(
    ("name", "state", "amax", "said"),
    [
        ("fc.weight", {"_axis": 0}, np.ones((5, 1)), "of shape [5, 1] fits no granularity of a"),
        ("fc.weight", {"_axis": 0}, None, "never calibrated"),
        ("fc.weight", {}, np.float32(0), "its amax is zero where its tensor is not"),
        ("fc.weight", {"_axis": 0}, ZERO_ROW, "its amax is zero where its tensor is not"),
        ("fc.input", {}, np.float32(0), "its amax is zero"),
        ("fc.input", {}, np.float32("nan"), "NaN, Inf or a negative number"),
        ("fc.input", {}, np.float32(-1), "NaN, Inf or a negative number"),
        ("fc.input", {"_unsigned": True}, np.float32(1), "unsigned"),
        ("fc.input", {"_num_bits": 16}, np.float32(1), "num_bits 16 is none of the formats"),
        ("fc.input", {"_dynamic": True}, None, "over a whole batch"),
        ("fc.weight", {"_block_sizes": {-1: 24}}, np.ones(8), "do not divide"),
        ("fc.weight", {"is_sequential_quantizer": True}, None, "several quantizers in a row"),
        ("other.weight", {}, np.float32(1), "no site that granplugin knows"),
    ],
)  # fmt: skip
def test_what_no_plan_says_is_refused_with_the_quantizers_name(name, state, amax, said):
    quantizer = f"{name}_quantizer"
    tensors = {} if amax is None else {f"{quantizer}._amax": np.asarray(amax, np.float32)}
    quantizers = Quantizers({quantizer: {**ON, **state}}, tensors, {}, ())
    with pytest.raises(ModelError, match=re.escape(said)) as refused:
        take(quantizers, [FC], lambda layer: np.ones((4, 32), np.float32))
    assert str(refused.value).startswith(quantizer)


@pytest.mark.parametrize(
    ("state", "shape", "granularity"),
    [
        ({}, (), "per_tensor"),
        ({"_axis": 0}, (4, 1), "per_channel"),
        ({"_axis": (1,)}, (1, 32), "per_channel(axis 1)"),
        ({"_block_sizes": {-1: 16, "type": "static"}, "_axis": (0,)}, (8, 1),
         "per_block(size 16, axis 1)"),
        ({"_block_sizes": {-1: None}}, (4, 1), "per_channel"),
        ({"_block_sizes": {0: 2, 1: 8}}, (2, 1, 4, 1), "per_block(shape 2x8)"),
        ({"_block_sizes": {-1: 1}}, (128, 1), "per_element"),
        ({"_axis": (0, 1)}, (4, 32), "per_element"),
    ],
)  # fmt: skip
def test_granularity_is_what_the_attributes_say_and_ranges_are_kept_to_the_bit(
    state, shape, granularity
):
    amax = np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32)
    quantizers = Quantizers(
        {"fc.weight_quantizer": {**ON, **state}}, {"fc.weight_quantizer._amax": amax}, {}, ()
    )
    (layer,), ranges = take(quantizers, [FC], lambda layer: np.ones((4, 32), np.float32))
    assert str(dict(layer.given)["weight"].granularity) == granularity
    assert ranges["fc.weight"].tobytes() == amax.tobytes()


def test_analyze_measures_the_ranges_that_came_with_the_network(taken):
    project = taken.project
    narrow = copy.deepcopy(taken.model)
    narrow.head.input_quantizer.amax *= 1e-4
    mto.save(narrow, project.folder / "narrow.pth")
    recipe, found = project.recipe(), {}
    for name in ("trained", "narrow"):
        saved = project.folder / f"{name}.pth"
        loaded = granplugin.load(recipe, [f"model.weights={saved}", "model.quantized=keep"])
        analyzed = granplugin.analyze(loaded, costs=False, out=project.folder / name)
        found[name] = analyzed.analysis.start.sqnr.db
        for layer in analyzed.analysis.layers:  # beside all else that is tried
            as_it_is = [each.setting for each in layer.weights if each.start]
            assert "as given" in as_it_is[0] and len(layer.weights) > 1
    assert found["trained"] > 20 > found["narrow"]
