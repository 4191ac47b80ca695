"""For users with a script of their own: prepare, modelopt_config, export_onnx."""

from __future__ import annotations

import copy
import re
import runpy
import sys

import modelopt.torch.opt as mto
import modelopt.torch.quantization as mtq
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import RECIPES, ROOT
from onnx import numpy_helper
from safetensors.torch import load_file
from torch import nn

import granplugin
from granplugin.errors import ModelError

RECIPE = RECIPES / "digits_mobilenet.yaml"
CALIBRATION = 256
pytestmark = pytest.mark.xdist_group("quickstart")  # with which its script is compared


@pytest.fixture(scope="module")
def digits():
    with np.load(RECIPES / "data/digits.npz") as data:
        return {name: data[name] for name in data.files}


def network(name: str = "mobilenet_v2", weights: str = "mobilenet_digits") -> torch.nn.Module:
    sys.path.insert(0, str(RECIPES))
    try:
        import networks
    finally:
        sys.path.remove(str(RECIPES))
    model = getattr(networks, name)()
    model.load_state_dict(load_file(RECIPES / f"weights/{weights}.safetensors"))
    return model.eval()


@pytest.fixture(scope="module")
def train(digits):
    """The samples that the recipe calibrates on."""
    from granplugin.data.open import open_data
    from granplugin.recipe.load import load_recipe

    data = load_recipe(RECIPE).recipe.data
    batches = open_data(data.calibration, CALIBRATION, data.seed, "calibration", ("image",))
    return torch.from_numpy(next(iter(batches))["image"])


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """What the script of docs/script.md makes: the model and its file."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "recipes").symlink_to(RECIPES)
    page = (ROOT / "docs/script.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```python\n((?:(?!^```).)*mtq\.quantize.*?)^```$", page, re.M | re.S)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])  # which it adds the recipes to
        made = {"__name__": "__main__"}
        exec(text, made)
    return made["model"], folder / "mobilenet_int8.onnx"


def test_the_script_writes_the_quickstarts_network(script, quickstart):
    written = onnx.load(script[1]).graph
    applied = onnx.load(quickstart.folder / "variants/digits_mobilenet/model.onnx").graph
    # The recipe's float part is float16, but its outputs are float32 as the script's.
    ops = [node.op_type for node in applied.node if node.op_type != "Cast"]
    assert [node.op_type for node in written.node] == ops


def run(path, images) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options).run(None, {"image": images})[0]


def sqnr_db(ours: np.ndarray, theirs: np.ndarray) -> float:
    return 10 * np.log10((theirs**2).sum() / max(((ours - theirs) ** 2).sum(), 1e-30))


def test_the_script_computes_what_apply_built(script, quickstart, digits):
    images = digits["test_images"]
    ours = run(script[1], images)
    applied = run(quickstart.folder / "variants/digits_mobilenet/model.onnx", images)
    assert (ours.argmax(1) == applied.argmax(1)).mean() > 0.99
    assert sqnr_db(ours, applied) > 30


def test_the_script_writes_the_weights_that_apply_wrote(script, quickstart):
    def weights(path) -> dict[str, np.ndarray]:
        tensors = onnx.load(path).graph.initializer
        return {
            t.name: numpy_helper.to_array(t) for t in tensors if t.name.endswith(".weight/int8")
        }

    ours = weights(script[1])
    applied = weights(quickstart.folder / "variants/digits_mobilenet/model.onnx")
    assert len(applied) == 53
    assert ours.keys() == applied.keys()
    for name in applied:
        # Folding in torch and in the graph may differ in the last bit, so a tie may turn.
        assert np.abs(ours[name].astype(int) - applied[name]).max() <= 1, name
        assert (ours[name] != applied[name]).mean() < 1e-3, name


def test_modelopts_network_agrees_with_the_exported_file(script, digits):
    images = digits["test_images"][:256]
    with torch.no_grad():
        fake = script[0](torch.from_numpy(images)).numpy()
    ours = run(script[1], images)
    assert (ours.argmax(1) == fake.argmax(1)).mean() > 0.99
    assert sqnr_db(ours, fake) > 25


RESTORE = """
import sys
import modelopt.torch.opt as mto, torch
import granplugin, granplugin.modelopt_bridge
sys.path.insert(0, ".")
import nets
folder = "."
example = torch.load(folder + "/example.pt")
model = granplugin.prepare(nets.tiny().eval(), sys.argv[1], example)
model = mto.restore(model, folder + "/model.pt")
with torch.no_grad():
    torch.save(model(example), folder + "/restored.pt")
granplugin.export_onnx(model, example, folder + "/restored.onnx")
"""


def test_a_saved_model_restores_bit_for_bit_in_a_fresh_process(project, forks):
    recipe, example = project.recipe(), torch.randn(16, 1, 8, 8)
    model = runpy.run_path(str(project.folder / "nets.py"))["tiny"]().eval()
    model = granplugin.prepare(model, recipe, example)
    config = granplugin.modelopt_config(recipe, model)
    model = mtq.quantize(model, config, lambda model: model(example))
    granplugin.export_onnx(model, example, project.folder / "model.onnx")
    mto.save(model, project.folder / "model.pt")
    torch.save(example, project.folder / "example.pt")
    done = forks.run(["-c", RESTORE, recipe], cwd=project.folder)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        assert torch.equal(torch.load(project.folder / "restored.pt"), model(example))
    restored, made = (project.folder / f"{name}.onnx" for name in ("restored", "model"))
    assert restored.read_bytes() == made.read_bytes()


@pytest.mark.parametrize(
    "recipe",
    [
        "{version: 1, rules: [{match: features.1.*.conv, weight: per_tensor, bn: keep}]}",
        {
            "version": 1,
            "rules": [{"match": "features.1.*.conv", "weight": "per_tensor", "bn": "keep"}],
        },
        {
            "version": 1,
            "model": {"callable": "nowhere.py:net", "weights": "nowhere.safetensors"},
            "data": {"calibration": {"npz": "nowhere.npz", "inputs": {"image": "images"}}},
            "evaluate": "nowhere.py:measure",
            "statistics": {"import": "nowhere.json"},
            "engines": ["tensorrt"],
            "build": {"timing_cache": "nowhere/timing.bin"},
            "rules": [{"match": "features.1.*.conv", "weight": "per_tensor", "bn": "keep"}],
        },
    ],
    ids=["text", "dict", "files that are not here"],
)
def test_a_scripts_recipe_needs_neither_model_nor_data_nor_their_files(recipe, train):
    model = granplugin.prepare(network(), recipe, train[:2])
    sites = granplugin.modelopt_config(recipe, model)["algorithm"]["sites"]
    of_weights = {s["layer"]: s for s in sites if s["role"] == "weight"}
    assert of_weights["features.1.depthwise.conv"]["block"] == [16, 1, 3, 3]
    assert of_weights["features.2.depthwise.conv"]["block"] == [1, 1, 3, 3]
    assert type(model.get_submodule("features.1.depthwise.bn")).__name__ == "BatchNorm2d"


def test_a_model_that_was_not_prepared_is_refused():
    with pytest.raises(ModelError, match=r"call granplugin\.prepare"):
        granplugin.modelopt_config(RECIPE, network())


def test_a_model_prepared_for_a_recipe_that_folds_otherwise_is_refused(train, tmp_path):
    kept = tmp_path / "kept.yaml"
    kept.write_text(
        f"extends: {RECIPE}\nlimits: {{}}\nvariants: {{}}\n"
        "rules: [{match: features.0.conv, bn: keep}]\n"
    )
    model = granplugin.prepare(network(), RECIPE, train[:2])
    with pytest.raises(ModelError, match="features.0.conv is folded"):
        granplugin.modelopt_config(kept, model)


def test_a_config_folds_in_any_model_that_has_the_batch_norms(train):
    config = granplugin.modelopt_config(RECIPE, granplugin.prepare(network(), RECIPE, train[:2]))
    model = mtq.quantize(network(), copy.deepcopy(config), lambda model: model(train[:16]))
    assert isinstance(model.get_submodule("features.1.depthwise.bn"), nn.Identity)
    other = network()
    other.get_submodule("features.1.depthwise").bn = nn.ReLU()
    with pytest.raises(ModelError, match=r"no batch norm 'features.1.depthwise.bn' behind it"):
        mtq.quantize(other, copy.deepcopy(config), lambda model: model(train[:16]))


def test_prepare_leaves_the_model_as_it_is(train):
    model = network()
    with torch.no_grad():
        before = model(train[:16])
        after = granplugin.prepare(model, RECIPE, train[:2])(train[:16])
    assert torch.equal(before, after)


def test_a_model_that_is_not_quantized_is_not_exported(train, tmp_path):
    with pytest.raises(ModelError, match="the model was not quantized"):
        granplugin.export_onnx(network(), train[:2], tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
