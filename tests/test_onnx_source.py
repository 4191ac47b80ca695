"""A network that is an ONNX file: planned and inspected as its torch model is, without torch."""

from __future__ import annotations

import contextlib
import json
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from conftest import RECIPES, Done, run_main
from onnx import helper, numpy_helper, parser

RULES = [
    {"match": {"trait": "depthwise"}, "weight": "per_tensor", "bn": "keep"},
    {"match": {"trait": "last"}, "input": {"per_channel": {"axis": -1}}},
    {"match": {"trait": "pointwise", "size": ">= 5000"}, "output": {"format": "int8"}},
    {"match": {"spread": ">= 100"}, "weight": "per_channel"},
]
TYPES = {
    "Conv2d": "Conv",
    "Linear": "Gemm",
    "BatchNorm2d": "BatchNormalization",
    "AdaptiveAvgPool2d": "GlobalAveragePool",
}
NAMES = {"layer", "type", "where", "bn_name", "share"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """The digits MobileNet as torch.onnx writes it with batch norms kept, and a recipe of each."""
    import torch

    from granplugin.network.models import build_model
    from granplugin.recipe.load import load_recipe

    folder = tmp_path_factory.mktemp("digits")
    torch_recipe = RECIPES / "digits_mobilenet.yaml"
    values = yaml.safe_load(torch_recipe.read_text("utf-8"))
    model, _ = build_model(load_recipe(torch_recipe).recipe.model, torch.device("cpu"))
    torch.onnx.export(
        model,
        (torch.zeros(2, 1, 32, 32),),
        folder / "digits.onnx",
        dynamo=False,
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        dynamic_axes={"image": {0: "batch"}},
        input_names=["image"],
        opset_version=17,
    )
    images = {"npz": str(RECIPES / "data/digits.npz"), "inputs": {"image": "train_images"}}
    common = {"version": 1, "data": {"calibration": images}, "rules": RULES}
    source = {
        "callable": f"{RECIPES / 'networks.py'}:mobilenet_v2",
        "weights": str(RECIPES / values["model"]["weights"]),
    }
    for name, model in {"torch": source, "onnx": {"onnx": "digits.onnx"}}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**common, "model": model}))
    return folder


def run(verb: str, recipe: Path, *options: str) -> Done:
    return run_main(verb, recipe, *options, "--out", recipe.parent / f"run-{recipe.stem}")


def told(verb: str, recipe: Path) -> dict:
    done = run(verb, recipe, "--json")
    assert done.code == 0, done.stderr
    return json.loads(done.stdout)


def layer_of(row: dict) -> str:
    return row["layer"]


def without_names(rows: list[dict]) -> list[dict]:
    """Rows as they are but for words of the source; layers and tensors numbered as they come."""
    tensors: dict[int, int] = {}
    layers = {name: str(number) for number, name in enumerate(dict.fromkeys(map(layer_of, rows)))}

    def note(text: str | None) -> str | None:
        before, shared, site = (text or "").partition("one Q/DQ with ")
        layer, _, role = site.rpartition(".")
        return f"{before}{shared}{layers[layer]}.{role}" if shared else text

    return [
        {key: value for key, value in row.items() if key not in NAMES}
        | {"type": TYPES.get(row["type"], row["type"]), "note": note(row["note"])}
        | {"tensor": tensors.setdefault(row["tensor"], len(tensors))}
        for row in rows
    ]


def test_a_file_is_planned_as_its_torch_model_is(digits):
    of_torch, of_file = (told("plan", digits / f"{name}.yaml") for name in ("torch", "onnx"))
    assert len(of_file["rows"]) > 200
    assert without_names(of_file["rows"]) == without_names(of_torch["rows"])
    decided = [[use["matched"] for use in plan["rules"]] for plan in (of_torch, of_file)]
    assert decided[0] == decided[1]
    promised = [
        {engine: [*sites.values()] for engine, sites in plan["promises"].items()}
        for plan in (of_torch, of_file)
    ]
    assert promised[0] == promised[1]


def test_a_file_is_inspected_as_its_torch_model_is(digits):
    of_torch, of_file = (told("inspect", digits / f"{name}.yaml") for name in ("torch", "onnx"))
    assert of_file["parameters"] == of_torch["parameters"]
    for layer, same in zip(of_file["layers"], of_torch["layers"], strict=True):
        for key in same.keys() - {"name", "type", "bn", "defaults", "rules"}:
            assert layer[key] == same[key], (layer["name"], key)
        assert (layer["bn"] is None) == (same["bn"] is None)
    printed = [run("inspect", digits / f"{name}.yaml").stdout for name in ("torch", "onnx")]
    heads = [
        [line.split() for line in text.splitlines() if line.startswith("layer")] for text in printed
    ]
    assert heads[0] == heads[1] and len(heads[0]) == 2


def test_one_layer_of_a_file_has_its_story(digits):
    name = "/features/features.1/depthwise/conv/Conv"
    done = run("plan", digits / "onnx.yaml", "--why", name)
    assert done.code == 0 and done.stdout.startswith(name) and "bn: keep" in done.stdout
    missing = run("plan", digits / "onnx.yaml", "--why", name.lower())
    assert missing.code == 2 and f"did you mean {name!r}?" in missing.stderr


def test_a_files_plan_is_no_config_of_modelopts(digits):
    done = run("plan", digits / "onnx.yaml", "--modelopt")
    assert done.code == 2 and not done.stdout and "modelopt takes a torch model" in done.stderr


@pytest.fixture
def project(tmp_path):
    """Writes a graph, and plans or inspects it."""

    def of(text: str, verb: str = "plan", change=None, **recipe):
        model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')
        if change:
            change(model)
        onnx.save(model, tmp_path / "net.onnx")
        return planned(verb, **recipe)

    def planned(verb: str = "plan", **recipe):
        data = {"calibration": {"npz": "none.npz", "inputs": {"x": "x"}}}
        values = {"version": 1, "model": {"onnx": "net.onnx"}, "data": data, **recipe}
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(values))
        return run_main(verb, tmp_path / "r.yaml", "--json", "--out", tmp_path / "run")

    of.again, of.folder = planned, tmp_path
    return of


def rows(done) -> dict[str, dict]:
    assert done.code == 0, done.stderr
    return {f"{row['layer']}.{row['role']}": row for row in json.loads(done.stdout)["rows"]}


def test_a_weight_is_whatever_depends_on_constants_alone(project):
    text = """
    g (float[N, 5, 4] x) => (float[N, 5, 6] y)
    <float[6, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
                      1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[6] b = {1, 1, 1, 1, 1, 1}> {
        turned = Transpose <perm = [1, 0]> (w)
        [fc] product = MatMul (x, turned)
        y = Add (b, product)
    }"""
    found = rows(project(text))
    assert found["fc.weight"]["shape"] == [6, 4] and found["fc.weight"]["block"] == [1, 4]
    assert found["fc.weight"]["granularity"] == "per_channel"
    assert found["fc.output"]["shape"] == [1, 5, 6]
    done = project(text, "inspect")
    assert done.code == 0, done.stderr
    (layer,) = json.loads(done.stdout)["layers"]
    assert layer["parameters"] == 30 and layer["macs"] == 5 * 24
    assert layer["traits"] == ["first", "head", "last"]


ATTENTION = """
g (float[N, 5, 4] x) => (float[N, 5, 4] y) <float[4, 4] w, float[1, 5, 4] places> {
    placed = Add (x, places)
    [q] q = MatMul (placed, w)
    [k] k = MatMul (placed, w)
    turned = Transpose <perm = [0, 2, 1]> (k)
    [scores] scores = MatMul (q, turned)
    chances = Softmax (scores)
    [mix] mixed = MatMul (chances, placed)
    y = Add (mixed, placed)
}"""


def set_weights(model: onnx.ModelProto) -> None:
    """Numbers for what the text only declares."""
    rng = np.random.default_rng(0)
    for value in model.graph.value_info:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        values = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, value.name))
    model.graph.ClearField("value_info")


def test_a_product_of_two_activations_has_an_input_and_another(project):
    found = rows(project(ATTENTION, change=set_weights))
    assert {site for site in found if site.startswith("scores")} == {
        "scores.input", "scores.other", "scores.output",
    }  # fmt: skip
    assert found["scores.other"]["shape"] == [1, 4, 5]
    assert found["q.input"]["format"] == found["scores.other"]["format"] == "int8"
    rule = {"match": {"trait": "attention_scores"}, "format": "float"}
    found = rows(project(ATTENTION, change=set_weights, rules=[rule]))
    assert found["scores.input"]["format"] == found["scores.other"]["format"] == "float"
    assert found["mix.other"]["format"] == "int8"


def test_a_position_embedding_is_no_bias_and_no_skip(project):
    text = """
    g (float[N, 5, 4] x) => (float[N, 5, 4] y) <float[4, 4] w, float[1, 5, 4] places> {
        [fc] product = MatMul (x, w)
        y = Add (product, places)
    }"""
    found = rows(project(text, change=set_weights))
    assert "fc.skip" not in found
    done = project(text, "inspect", change=set_weights)
    told = json.loads(done.stdout)
    assert told["layers"][0]["parameters"] == 16
    assert told["others"] == [{"type": "Add", "modules": 1, "parameters": 20}]


def test_nodes_without_names_are_called_after_their_outputs(project):
    text = """
    g (float[N, 4] x) => (float[N, 4] z) <float[4, 4] w> {
        y = MatMul (x, w)
        z = MatMul (y, w)
    }"""
    layers = {row["layer"] for row in rows(project(text, change=set_weights)).values()}
    assert layers == {"node_of_y", "node_of_z"}
    done = project(
        text, change=set_weights, rules=[{"match": {"type": "MatMul"}, "weight": "int4"}]
    )
    assert rows(done)["node_of_y.weight"]["format"] == "int4"


def test_lengths_that_are_open_are_told_as_one_and_hold_whole_blocks_only(project):
    text = """
    g (float[N, 3, H, W] x) => (float[N, 4, A, B] y) <float[4, 3, 1, 1] w> {
        [conv] y = Conv (x, w)
    }"""
    found = rows(project(text, change=set_weights))
    assert found["conv.input"]["shape"] == [1, 3, 1, 1]
    reshaped = """
    g (float[N, H, 4] x, int64[2] to) => (float[A, B] y) <float[4, 3] w> {
        rows = Reshape (x, to)
        [fc] y = MatMul (rows, w)
    }"""
    assert rows(project(reshaped, change=set_weights))["fc.input"]["shape"] == [1, 4]
    rule = {"match": "conv", "input": {"per_channel": {}}}
    assert rows(project(text, change=set_weights, rules=[rule]))["conv.input"]["scales"] == 3
    assert (
        json.loads(project(text, "inspect", change=set_weights).stdout)["layers"][0]["macs"] is None
    )


def test_a_weight_that_comes_first_is_a_layers_weight(project):
    text = """
    g (float[N, 4, 5] x) => (float[N, 3, 5] y) <float[3, 4] w> { [turn] y = MatMul (w, x) }"""
    found = rows(project(text, change=set_weights))
    assert (found["turn.weight"]["shape"], found["turn.weight"]["scales"]) == ([3, 4], 3)
    assert found["turn.input"]["shape"] == [1, 5, 4]


def written_of_old(model: onnx.ModelProto) -> None:
    """Initializers that are no inputs, where the format's version 3 asks for it, one of them sparse."""
    set_weights(model)
    (dense,) = model.graph.initializer
    values = helper.make_tensor(dense.name, onnx.TensorProto.FLOAT, [2], [1.0, 2.0])
    places = helper.make_tensor("", onnx.TensorProto.INT64, [2], [0, 5])
    model.graph.ClearField("initializer")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, dense.dims))
    model.ir_version = 3


def test_what_few_tools_write_is_read_as_it_is_meant(project):
    found = rows(project(NET, change=written_of_old))
    assert found["fc.weight"]["scales"] == 4


def test_what_outputs_do_not_depend_on_is_told(project):
    text = """
    g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w> {
        [fc] y = MatMul (x, w)
        [dead] z = MatMul (x, w)
        [gram] d = Gemm <transB = 1> (x, y)
    }"""
    told = json.loads(project(text, "inspect", change=set_weights).stdout)
    why = {layer["name"]: layer.get("unusable") for layer in told["layers"]}
    assert why["fc"] is None and "no output" in why["dead"] and "no output" in why["gram"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "g (float[N, 4] x) => (seq(float) y) { y = SplitToSequence <axis = 1> (x) }",
            "a sequence",
        ),
        ("g (float x) => (float[N] y) { y = Relu (x) }", "no shape"),
        ("g (float[N] x) => (string[N] y) { y = Cast <to = 8> (x) }", "'y' is of type string"),
        ("g (float[N] x) => (bfloat16[N] y) { y = Cast <to = 16> (x) }", "of type bfloat16"),
    ],
)
def test_what_comes_and_goes_is_tensors_with_axes(project, text, said):
    def open_rank(model):
        for value in model.graph.input:
            if not value.type.tensor_type.shape.dim:
                value.type.tensor_type.ClearField("shape")

    done = project(text, change=open_rank)
    assert done.code == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1


def quantized(model: onnx.ModelProto) -> None:
    set_weights(model)
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", ["x", "s"], ["q"]))
    model.graph.node.insert(1, helper.make_node("DequantizeLinear", ["q", "s"], ["x2"]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1), "s"))


NET = "g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w> { [fc] y = MatMul (x, w) }"


def refused(done, at: str, *said: str) -> None:
    assert done.code == 2 and not done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert at in line and all(words in line for words in said), line


@pytest.mark.parametrize("verb", ["plan", "inspect"])
def test_a_file_that_cannot_be_planned_is_refused_at_the_recipes_line(project, verb):
    project(NET, verb, change=set_weights)
    net, at = project.folder / "net.onnx", "r.yaml:"
    refused(
        project(NET, verb, change=quantized), at,
        "1 DequantizeLinear, 1 QuantizeLinear", "granplugin audit net.onnx",
    )  # fmt: skip
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\n{NET}')
    set_weights(model)
    onnx.save(model, net, save_as_external_data=True, location="net.data", size_threshold=0)
    assert project.again(verb).code == 0
    (project.folder / "net.data").unlink()
    refused(project.again(verb), at, "net.data")
    net.write_bytes(b"no protobuf at all")
    refused(project.again(verb), at, "not ONNX")
    net.unlink()
    refused(project.again(verb), at, "no such file")


def test_every_kind_of_model_has_its_keys_and_its_source():
    from granplugin.recipe.model import MODELS
    from granplugin.recipe.strict import paths_of

    for section in MODELS.values():
        module, _, name = section.opened_by.partition(":")
        assert hasattr(import_module(module), name)
    assert all(kind in paths_of(section) for kind, section in MODELS.items())


def test_a_model_is_one_kind_of_source(project):
    for model, said in (
        ({"onnx": "net.onnx", "callable": "a:b"}, "a model is callable or onnx, not both"),
        ({"onnx": "net.onnx", "weights": "w"}, "unknown key 'weights'"),
        ({"onx": "net.onnx"}, "did you mean 'onnx'?"),
        ({}, "a model has one of the keys callable and onnx"),
    ):
        refused(project.again(model=model), "r.yaml:", said)


def test_a_recipe_may_take_a_torch_recipes_rules_for_a_file(digits):
    text = "version: 1\nextends: torch.yaml\nmodel: {onnx: digits.onnx}\n"
    (digits / "extending.yaml").write_text(text)
    plans = [told("plan", digits / f"{name}.yaml")["rows"] for name in ("extending", "onnx")]
    assert without_names(plans[0]) == without_names(plans[1])


def test_a_damaged_file_is_told_and_never_a_crash(project):
    from granplugin.errors import ModelError
    from granplugin.network.onnx_file import float_model, shaped
    from granplugin.sources.onnx_network import OnnxNetwork

    project(ATTENTION, change=set_weights)
    net = project.folder / "net.onnx"
    whole, rng = net.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), rng.integers(1, 4)):
            damaged[at] = rng.integers(0, 256)
        net.write_bytes(damaged)
        with contextlib.suppress(ModelError):
            network = OnnxNetwork(shaped(float_model(net).model, net))
            network.facts(network.untraced())
