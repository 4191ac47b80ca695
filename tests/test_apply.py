"""apply from recipe to report: what each key of a recipe does to the files and figures of a run."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import ROOT
from onnx import numpy_helper
from PIL import Image
from safetensors.numpy import load_file

COARSE = {"id": "coarse", "match": {"type": "Conv2d"}, "weight": "per_tensor"}


def metrics(project, variant: str = "recipe") -> dict:
    found = next(v for v in project.report().variants if v.name == variant)
    return found.engines[0].metrics


def nodes(model: bytes | str, op_type: str) -> list[onnx.NodeProto]:
    graph = onnx.load_from_string(model).graph
    return [node for node in graph.node if node.op_type == op_type]


def test_the_quickstarts_scales_and_weights_follow_from_its_safetensors(quickstart):
    """Folding and per_channel INT8 of every convolution, in numpy."""
    weights = load_file(ROOT / "recipes/weights/mobilenet_digits.safetensors")
    graph = onnx.load(quickstart.folder / "variants/tensorrt@11/model.onnx").graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    convs = [name.removesuffix(".conv.weight") for name in weights if name.endswith(".conv.weight")]
    for layer in convs:
        bn = {key: weights[f"{layer}.bn.{key}"] for key in ("weight", "running_var")}
        factor = bn["weight"] / np.sqrt(bn["running_var"] + 1e-5)
        folded = weights[f"{layer}.conv.weight"] * factor[:, None, None, None]
        scale = np.abs(folded).max((1, 2, 3)) / 127
        whole = np.clip(np.rint(folded / scale[:, None, None, None]), -127, 127)
        name = f"{layer}.conv.weight"
        np.testing.assert_allclose(stored[f"{name}/scale"], scale, rtol=1e-6)
        differs = stored[f"{name}/int8"] != whole
        # float32 or float64 decide differently only on values halfway between two steps
        assert differs.mean() < 1e-3
        assert np.abs(stored[f"{name}/int8"] - whole).max() <= 1
    assert len(convs) == 52


def test_a_recipe_equal_to_the_default_is_the_default(applied):
    applied.recipe(
        baselines=["fp32", "tensorrt@11"],
        rules=[{"match": {"type": ["Conv2d", "Linear"]}, "weight": "per_channel", "bn": "fold"}],
    )
    assert applied.apply().code == 0
    assert applied.onnx("recipe") == applied.onnx("tensorrt@11")
    for metric in metrics(applied).values():
        assert metric.vs["tensorrt@11"].value == 0
        assert metric.vs["tensorrt@11"].verdict == "no measurable difference"
    assert applied.report().overrides == []


def test_a_second_run_reuses_everything_and_says_the_same(applied, monkeypatch):
    before, made = applied.report(), sorted(applied.out.glob("cache/*"))
    times = [path.stat().st_mtime_ns for path in made]
    applied.recipe()
    monkeypatch.delattr("granplugin.modelopt_bridge.convert")
    assert applied.apply().code == 0
    assert sorted(applied.out.glob("cache/*")) == made
    assert [path.stat().st_mtime_ns for path in made] == times
    assert metrics(applied) == before.variants[1].engines[0].metrics


@pytest.fixture
def collected(monkeypatch) -> list:
    """What was collected over the calibration data since."""
    from granplugin import modelopt_bridge

    convert, seen = modelopt_bridge.convert, []

    def watched(model, needs, *rest):
        seen.extend(needs)
        return convert(model, needs, *rest)

    monkeypatch.setattr(modelopt_bridge, "convert", watched)
    return seen


def test_a_changed_rule_calibrates_nothing_again(applied, collected):
    applied.recipe(rules=[COARSE])
    assert applied.apply().code == 0
    assert collected == []


def test_what_a_run_no_longer_needs_is_deleted(applied):
    applied.recipe(variants={"coarse": {"rules": [COARSE]}})
    assert applied.apply().code == 0
    assert {p.name for p in (applied.out / "variants").iterdir()} == {"fp32", "recipe", "coarse"}
    more = len(list(applied.out.glob("cache/*")))
    applied.recipe()
    assert applied.apply().code == 0
    assert {p.name for p in (applied.out / "variants").iterdir()} == {"fp32", "recipe"}
    assert len(list(applied.out.glob("cache/*"))) < more


def test_variants_set_drop_and_add_rules(applied):
    fine = {"id": "fine", "match": "head", "weight": "per_element"}
    applied.recipe(
        rules=[COARSE, fine],
        variants={
            "dropped": {"drop": "fine"},
            "changed": {"set": {"rules.coarse.weight": "per_channel"}},
            "added": {"rules": [{"match": "head", "weight": "per_tensor"}]},
        },
    )
    assert applied.apply().code == 0
    scales = {v.name: v.scales for v in applied.report().variants}
    inputs, head = 3, 8 * 4
    assert scales == {
        "fp32": 0,
        "recipe": inputs + 1 + 1 + head,
        "dropped": inputs + 1 + 1 + 4,
        "changed": inputs + 8 + 8 + head,
        "added": inputs + 1 + 1 + 1,
    }


def test_set_changes_one_key_of_the_recipe(applied):
    recipe = applied.recipe(rules=[COARSE])
    done = applied.apply(recipe, "--set", "rules.coarse.weight=per_element", "--set", "name=other")
    assert done.code == 0, done.stderr
    assert applied.report().name == "other"
    assert applied.report().variants[-1].scales == 3 + 72 + 72 + 4


def test_two_recipes_are_compared_in_one_run(applied):
    first, second = applied.recipe("a.yaml", rules=[COARSE]), applied.recipe("b.yaml")
    assert applied.apply(first, second).code == 0
    assert [v.name for v in applied.report().variants] == ["fp32", "a", "b"]
    assert applied.onnx("a") != applied.onnx("b")
    other = applied.recipe("b.yaml", metrics=["sqnr_db"])
    done = applied.apply(first, other)
    assert done.code == 2
    assert "b.yaml:" in done.stderr
    assert "metrics" in done.stderr


def test_rules_of_an_extended_recipe_come_first(applied):
    applied.recipe("base.yaml", rules=[COARSE])
    rules = [{"match": "conv", "weight": "per_channel"}]
    child = applied.write("recipe.yaml", json.dumps({"extends": "base.yaml", "rules": rules}))
    assert applied.apply(child).code == 0
    assert applied.report().variants[-1].scales == 3 + 8 + 1 + 4


def test_imported_statistics_give_the_same_bytes_without_calibrating(applied, collected):
    rules = [{"match": "*", "input": {"calibrator": {"percentile": 90}}}]
    applied.recipe(rules=rules, statistics={"export": "amax.json"})
    assert applied.apply().code == 0
    assert any(need.histogram for need in collected)
    exported = applied.onnx()
    collected.clear()
    applied.recipe(rules=rules, statistics={"import": "amax.json"})
    applied.out = applied.folder / "runs" / "importing"
    assert applied.apply().code == 0
    assert applied.onnx() == exported
    # How far the evaluation data reach is looked at all the same.
    assert not any(need.histogram for need in collected)


def test_data_without_labels_is_measured_against_fp32(applied):
    images = {"npz": "data.npz", "inputs": {"image": "images"}}
    applied.recipe(data={"calibration": images}, metrics=["agreement", "sqnr_db"])
    assert applied.apply().code == 0
    assert set(metrics(applied)) == {"agreement", "sqnr_db"}
    assert applied.report().evaluated_on == "calibration"
    applied.recipe(data={"calibration": images})
    done = applied.apply()
    assert done.code == 2
    assert "recipe.yaml:" in done.stderr
    assert "labels" in done.stderr


def test_an_evaluate_function_gets_engine_and_data_and_its_figures_are_reported(applied):
    applied.write(
        "metric.py",
        "import numpy as np\n"
        "def fn(predict, data):\n"
        "    logits = np.concatenate([next(iter(predict(b).values())) for b in data])\n"
        "    hits = (logits.argmax(1) == data.labels()).astype(float)\n"
        "    return {'mine': 100 * hits.mean(), 'plain': 1, 'per_sample': {'mine': 100 * hits}}\n",
    )
    applied.recipe(evaluate="metric.py:fn")
    assert applied.apply().code == 0
    found = metrics(applied)
    assert found["mine"].value == pytest.approx(found["top1"].value)
    assert found["mine"].vs["fp32"].value == pytest.approx(found["top1"].vs["fp32"].value)
    assert found["plain"].vs == {}


def test_data_from_a_callable_is_that_from_the_file(applied):
    applied.write(
        "loader.py",
        "import numpy as np\n"
        "def batches(size):\n"
        "    with np.load(__file__.replace('loader.py', 'data.npz')) as data:\n"
        "        images, labels = data['images'], data['labels']\n"
        "    for i in range(0, len(images), size):\n"
        "        yield images[i:i + size], labels[i:i + size]\n",
    )
    before = metrics(applied)
    source = {"callable": "loader.py:batches", "args": {"size": 5}}
    applied.recipe(data={"calibration": source, "evaluation": source, "batch_size": 16})
    done = applied.apply()
    assert done.code == 0, done.stderr
    assert metrics(applied) == before


def test_a_folder_of_images_is_a_data_source(applied):
    with np.load(ROOT / "recipes/data/digits.npz") as digits:
        images, labels = digits["test_images"][:64], digits["test_labels"][:64] % 4
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = applied.folder / "images" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        gray = np.squeeze(image)
        gray = (255 * (gray - gray.min()) / np.ptp(gray)).astype(np.uint8)
        Image.fromarray(gray).save(folder / f"{index}.png")
    source = {"folder": "images", "input": "image", "grayscale": True, "resize": 8}
    applied.recipe(data={"calibration": source, "evaluation": source, "batch_size": 16})
    done = applied.apply()
    assert done.code == 0, done.stderr
    assert applied.report().evaluation_samples == 64
    assert metrics(applied)["sqnr_db"].value > 20


@pytest.mark.parametrize(
    ("limits", "code", "verdict"),
    [
        ({"top1_drop": 100}, 0, "met"),
        ({"top1_drop": 0}, 4, "cannot tell"),
        ({"latency_vs": {"fp32": 3}}, 0, "met"),
        ({"latency_vs": {"fp32": 0.5}}, 1, "missed"),
        ({"latency_vs": {"fp32": 1}}, 4, "cannot tell"),
        ({"latency_vs": {"fp32": 1}, "top1_drop": 0}, 4, "cannot tell"),
    ],
)
def test_limits_decide_the_exit_code(applied, monkeypatch, limits, code, verdict):
    from granplugin.measures.timing import Latency
    from granplugin.report.build import run
    from granplugin.runs import latency

    def measured(runners, **_):
        uncertain = tuple([0.9] * 10 + [1.1] * 10)
        return {name: Latency(1.0, 1.0, 0.2, 20, (1.0,) * 20) for name in runners} | {
            ("first", "recipe"): Latency(1.0, 1.1, 0.2, 20, uncertain)
        }

    monkeypatch.setattr(latency, "measure_interleaved", measured)
    # The project's labels are random.
    monkeypatch.setattr(run, "broken_baseline", lambda *asked: None)
    applied.recipe(limits=limits, engines=["openvino"])
    done = applied.apply()
    assert done.code == code
    assert verdict in {limit.verdict for limit in applied.report().limits}
    assert verdict in done.stdout


def test_no_drop_is_met_by_a_network_that_guesses(applied):
    applied.recipe(limits={"top1_drop": 100})
    done = applied.apply()
    assert done.code == 4
    assert "cannot be told from chance" in done.stdout
    assert "the recipe has no model.weights" in (applied.out / "report.md").read_text()


def test_a_variant_of_the_defaults_own_file_is_said_to_change_nothing(applied):
    applied.recipe(
        rules=[{"match": {"type": "Conv2d"}, "weight": "per_channel"}],
        baselines=["fp32", "tensorrt@11"],
        engines=["openvino"],
        latency={"rounds": 11},
    )
    done = applied.apply()
    assert done.code == 0, done.stderr
    assert "recipe changes nothing: its file is tensorrt@11's" in done.stdout
    of = {variant.name: variant.engines for variant in applied.report().variants}
    for own, default in zip(of["recipe"], of["tensorrt@11"], strict=True):
        assert own.latency[0].median_ms == default.latency[0].median_ms
        assert own.latency[0].vs["fp32"] == default.latency[0].vs["fp32"]
        assert own.latency[0].vs["tensorrt@11"].value == 1
        assert own.metrics["sqnr_db"].value == default.metrics["sqnr_db"].value


def test_a_variant_of_fp32s_own_file_has_every_metric_that_is_asked(applied):
    applied.recipe(rules=[{"match": {"type": ["Conv2d", "Linear"]}, "format": "float"}])
    done = applied.apply()
    assert done.code == 0, done.stderr
    assert "recipe changes nothing: its file is fp32's" in done.stdout
    found = applied.report().variants[-1].engines[0].metrics
    assert found.keys() == {"top1", "agreement", "sqnr_db"}
    assert (found["agreement"].value, found["sqnr_db"].value) == (100, float("inf"))


def test_a_file_that_is_not_what_the_plan_says_exits_3(applied, monkeypatch):
    from granplugin.runs import variants

    insert = variants.insert

    def halved(model, rows, amax, how):
        return insert(model, rows, {site: value / 2 for site, value in amax.items()}, how)

    monkeypatch.setattr(variants, "insert", halved)
    before = applied.report()
    applied.recipe(rules=[COARSE])
    done = applied.apply()
    assert (done.code, done.stdout) == (3, "")
    assert "not honoured" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert applied.report() == before


def test_a_regressor_has_no_classes_to_agree_on(project):
    project.arrays["a"] = np.random.default_rng(3).standard_normal((64, 6), np.float32)
    project.write("nets.py", "from torch import nn\ndef net():\n    return nn.Linear(6, 1)\n")
    project.recipe(
        model={"callable": "nets.py:net"},
        data={"calibration": {"npz": "data.npz", "inputs": {"input": "a"}}},
        metrics=["sqnr_db"],
    )
    done = project.apply()
    assert done.code == 0, done.stderr
    assert metrics(project)["sqnr_db"].value > 20


TOKENS = """
import torch
from torch import nn


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, image):
        tokens = self.conv(image).flatten(2).transpose(1, 2)
        return self.head(self.mix(tokens).relu().mean(1))
"""

INPUTS = [
    "per_tensor",
    {"per_channel": {"axis": 1}},
    {"per_block": {"size": 4, "axis": 2}},
    "per_element",
]
WEIGHTS = [
    "per_tensor",
    "per_channel",
    {"per_block": {"size": 4, "axis": 1}},
    {"per_block": {"shape": [2, 4]}},
    "per_element",
]


def test_every_granularity_computes_the_same_at_every_batch_size(project):
    project.write("nets.py", TOKENS)
    rng = np.random.default_rng(1)
    project.arrays["images"] = rng.standard_normal((64, 3, 8, 8), np.float32)
    rules = {
        f"input-{n}": {"match": "mix", "input": said}
        for n, said in enumerate([*INPUTS, "per_token", {"per_token": {"dynamic": True}}])
    }
    rules |= {f"weight-{n}": {"match": "mix", "weight": said} for n, said in enumerate(WEIGHTS)}
    conv = [*INPUTS, {"per_tensor": {"dynamic": True}}]
    rules |= {f"conv-{n}": {"match": "conv", "input": said} for n, said in enumerate(conv)}
    rules["conv-shape"] = {
        "match": "conv",
        "weight": {"per_block": {"shape": [2, 3, 2, 4]}},
        "output": "per_channel",
    }
    project.recipe(
        model={"callable": "nets.py:Tokens"},
        variants={name: {"rules": [rule]} for name, rule in rules.items()},
    )
    done = project.apply()
    assert done.code == 0, done.stderr
    images = project.arrays["images"]
    for variant in project.report().variants:
        assert variant.agreement is None or variant.agreement.oracle_differs == 0
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(project.onnx(variant.name), options)
        whole = session.run(None, {"image": images})[0]
        step = np.abs(whole).max() / 127
        for batch in (1, 7):
            parts = [
                session.run(None, {"image": images[i : i + batch]})[0]
                for i in range(0, len(images), batch)
            ]
            # Another order of summation may flip a value at a rounding boundary, by one step.
            off = np.abs(np.concatenate(parts) - whole)
            assert off.max() <= step, variant.name
            assert np.median(off) < step / 100, variant.name


FORMS = """
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Out:
    logits: torch.Tensor
    features: torch.Tensor


class Pair(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.left, self.right = nn.Linear(6, 16), nn.Linear(4, 16)
        self.head = nn.Linear(16, 4)
        self.form = form

    def forward(self, left, right):
        features = (self.left(left) + self.right(right)).relu()
        logits = self.head(features)
        match self.form:
            case "tuple":
                return logits, features
            case "dict":
                return {"logits": logits, "features": features}
            case "dataclass":
                return Out(logits, features)
"""


@pytest.mark.parametrize("form", ["tuple", "dict", "dataclass"])
def test_models_with_two_inputs_and_outputs_of_any_form(project, form):
    project.write("nets.py", FORMS)
    rng = np.random.default_rng(2)
    project.arrays = {
        "a": rng.standard_normal((64, 6), np.float32),
        "b": rng.standard_normal((64, 4), np.float32),
    }
    source = {"npz": "data.npz", "inputs": {"left": "a", "right": "b"}}
    project.recipe(
        model={"callable": "nets.py:Pair", "args": {"form": form}},
        data={"calibration": source, "batch_size": 16},
        metrics=["agreement", "sqnr_db"],
        classes={"output": "output_0" if form == "tuple" else "logits"},
        engines=["onnxruntime", "openvino"],
        latency={"rounds": 6, "seconds": 0.05},
    )
    done = project.apply()
    assert done.code == 0, done.stderr
    graph = onnx.load_from_string(project.onnx()).graph
    assert [value.name for value in graph.input] == ["left", "right"]
    names = [value.name for value in graph.output]
    assert len(names) == 2
    if form != "tuple":
        assert names == ["logits", "features"]
    for engine in project.report().variants[-1].engines:
        assert engine.metrics["sqnr_db"].value > 25


def test_consumers_of_one_tensor_share_its_quantization(project):
    project.write(
        "nets.py",
        "from transformers import ViTConfig, ViTForImageClassification\n"
        "def vit():\n"
        "    return ViTForImageClassification(ViTConfig(hidden_size=16, num_hidden_layers=1,\n"
        "        num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4,\n"
        "        num_channels=1, num_labels=4))\n",
    )
    images = {"npz": "data.npz", "inputs": {"pixel_values": "images"}}
    project.recipe(
        model={"callable": "nets.py:vit"},
        data={"calibration": images},
        metrics=["agreement", "sqnr_db"],
    )
    done = project.apply()
    assert done.code == 0, done.stderr
    assert metrics(project)["sqnr_db"].value > 20
    graph = onnx.load_from_string(project.onnx()).graph
    source = {output: node for node in graph.node for output in node.output}
    initializers = {tensor.name for tensor in graph.initializer}
    quantized = [
        node.input[0]
        for node in graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in initializers
    ]
    assert max(Counter(quantized).values()) == 1
    readers = Counter(
        name
        for node in graph.node
        for name in node.input
        if name in source and source[name].op_type == "DequantizeLinear"
    )
    assert max(readers.values()) == 3  # q, k and v


# -- precision: what is not quantized -------------------------------------------------------------


def variant(project, name: str = "recipe"):
    return next(v for v in project.report().variants if v.name == name)


def test_a_float16_recipe_computes_in_float16_with_the_scales_it_had(applied):
    before = {name: t for name, t in constants(applied.onnx()).items() if name.endswith("/scale")}
    exact = metrics(applied)["sqnr_db"].value
    applied.recipe(precision="fp16", baselines=["fp32", "fp16"])
    done = applied.apply()
    assert done.code == 0, done.stderr
    after = constants(applied.onnx())
    assert {name: after[name] for name in before} == before
    types = Counter(t.data_type for name, t in after.items() if not name.endswith("/scale"))
    assert not types[onnx.TensorProto.FLOAT] and types[onnx.TensorProto.FLOAT16]
    assert variant(applied).precision == "fp16" and variant(applied, "fp32").precision == "fp32"
    assert metrics(applied)["sqnr_db"].value == pytest.approx(exact, abs=0.5)
    assert metrics(applied, "fp16")["sqnr_db"].value > 55
    assert not nodes(applied.onnx("fp16"), "QuantizeLinear")
    assert not nodes(applied.onnx("fp16"), "BatchNormalization")


def constants(model: bytes) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load_from_string(model).graph.initializer}


def test_an_engine_without_bfloat16_gets_the_float32_graph_and_the_report_says_so(applied):
    before = applied.onnx()
    applied.recipe(precision="bf16")
    assert applied.apply().code == 0
    low = applied.onnx()
    assert (applied.out / "variants/recipe/onnxruntime.onnx").read_bytes() == before != low
    stored = Counter(tensor.data_type for tensor in constants(low).values())
    assert stored[onnx.TensorProto.BFLOAT16]
    (note,) = [note for note in applied.report().notes if "bf16" in note]
    assert note == "recipe on onnxruntime is its float32 graph: onnxruntime has no bf16"


def test_what_could_overflow_in_float16_stays_float32_and_the_report_names_it(applied):
    applied.arrays["images"] *= 3e4
    applied.recipe(precision="fp16")
    assert applied.apply().code == 0
    assert "conv/Conv" in variant(applied).float32_nodes
    assert any("nodes that stay float32" in note for note in applied.report().notes)
    assert metrics(applied)["sqnr_db"].value > 15


def test_precision_is_a_thing_a_variant_can_change(applied):
    applied.recipe(variants={"half": {"set": {"precision": "fp16"}}})
    assert applied.apply().code == 0
    assert [v.precision for v in applied.report().variants] == ["fp32", "fp32", "fp16"]


def test_a_limit_on_rows_that_are_not_honoured_is_judged_by_the_engines_word(applied):
    pytest.importorskip("tensorrt_rtx")
    applied.recipe(engines=["onnxruntime", "tensorrt_rtx"], limits={"unhonoured": 0})
    assert applied.apply().code == 0
    (limit,) = applied.report().limits
    assert (limit.verdict, limit.measured) == ("met", 0)
    applied.recipe(
        engines=["onnxruntime", "tensorrt_rtx"],
        limits={"unhonoured": 0},
        on_unsupported="simulate",
        rules=[{"match": {"type": "Linear"}, "input": "per_element"}],
    )
    assert applied.apply().code == 1
    (limit,) = applied.report().limits
    assert (limit.verdict, limit.measured) == ("missed", 2)
    assert limit.why == "4 of 6 rows honoured on tensorrt_rtx"


def test_a_network_with_a_recurrent_layer_applies(project):
    project.write(
        "nets.py",
        """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, image):
        return self.head(self.lstm(image[:, 0])[0][:, -1])
""",
    )
    project.recipe(model={"callable": "nets.py:Net"})
    done = project.apply()
    assert done.code == 0, done.stderr
    assert nodes(project.onnx(), "QuantizeLinear")
