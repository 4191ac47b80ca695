"""What is found in an ONNX file is what is found in the torch network it was exported from."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from onnx import numpy_helper, parser
from onnx_nets import NETS, Several, make

from granplugin.errors import ModelError
from granplugin.graph.read.graph import ReadGraph, reads
from granplugin.network.onnx_file import float_model, shaped
from granplugin.network.onnx_layers import place_layers
from granplugin.network.onnx_prepared import prepare
from granplugin.network.onnx_products import products_of
from granplugin.network.trace import trace
from granplugin.planning.coverage import coverage
from granplugin.planning.plan import make_plan
from granplugin.quant.layers import Layer
from granplugin.quant.multiplications import Multiplication
from granplugin.recipe.load import load_recipe
from granplugin.recipe.loaded import Loaded
from granplugin.sources.onnx_network import OnnxNetwork

EXPORTERS = ("legacy", "legacy folded", "dynamo", "dynamo folded")
MODES = (torch.onnx.TrainingMode.PRESERVE, torch.onnx.TrainingMode.EVAL)


def graph_of(path: Path) -> ReadGraph:
    return shaped(float_model(path).model, path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("found")


@pytest.fixture(scope="module")
def loaded(folder) -> Loaded:
    """A recipe of defaults alone; which network it names is of no matter here."""
    for name in ("net.onnx", "none.npz"):
        (folder / name).touch()
    data = {"calibration": {"npz": "none.npz", "inputs": {"x": "x"}}}
    text = yaml.safe_dump({"version": 1, "model": {"onnx": "net.onnx"}, "data": data})
    (folder / "r.yaml").write_text(text)
    return load_recipe(folder / "r.yaml")


Found = tuple[tuple[Layer, ...], tuple[Multiplication, ...]]


@pytest.fixture(scope="module")
def found_in(folder) -> dict[tuple[str, str], Found]:
    """(exporter, network) -> the layers and products of the file."""
    nets = {name: make(name) for name in NETS}
    found = {}
    for name, (net, x) in nets.items():
        for folded in (False, True):
            path = folder / f"{name}-{folded}.onnx"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    net,
                    (x,),
                    path,
                    dynamo=False,
                    do_constant_folding=folded,
                    training=MODES[folded],
                    input_names=["x"],
                    dynamic_axes={"x": {0: "batch"}},
                    opset_version=17,
                )
            graph = graph_of(path)
            layers = tuple(each.layer for each in place_layers(graph))
            found[EXPORTERS[folded], name] = layers, products_of(graph, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Several([net for net, _ in nets.values()]),
            tuple(x for _, x in nets.values()),
            dynamo=True,
            optimize=False,
            dynamic_shapes=(tuple({0: torch.export.Dim("batch")} for _ in nets),),
            verbose=False,
        )
    for exporter in EXPORTERS[2:]:
        if exporter == "dynamo folded":
            program.optimize()
        program.save(folder / f"{exporter}.onnx")
        graph = graph_of(folder / f"{exporter}.onnx")
        placed, products = place_layers(graph), products_of(graph, 2)
        for name, output in zip(nets, graph.outputs, strict=True):
            own = nodes_behind(graph, output)
            layers = tuple(each.layer for each in placed if each.node.name in own)
            found[exporter, name] = layers, tuple(each for each in products if each.place in own)
    return found


def nodes_behind(graph: ReadGraph, output: str) -> set[str]:
    found, waiting = set(), [output]
    while waiting:
        node = graph.producer.get(waiting.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            waiting += reads(node)
    return found


def told(layers: tuple[Layer, ...], loaded: Loaded) -> list[tuple]:
    """All that is said of each product, layers and tensors numbered as they come."""
    kinds = {layer.name: layer.kind for layer in layers if not layer.unusable}
    # What is looked up at places that no data change, a file has as a constant.
    products = [each for each in layers if kinds.get(each.name) and each.name != "places"]
    numbers = {layer.name: number for number, layer in enumerate(products)}
    tensors: dict[int, int] = {}

    def note(row) -> str:
        text, shared, site = (row.note or "").partition("one Q/DQ with ")
        layer, _, operand = site.rpartition(".")
        return f"{text}{shared}{numbers[layer]}.{operand}" if shared else text

    def decided(row) -> tuple:
        if not row.quantized:
            return ("float",)
        return row.format, str(row.granularity), row.block, str(row.calibrator)

    def facts(layer: Layer) -> tuple:
        # A batch norm that is folded already is no longer behind it.
        spread = layer.spread and pytest.approx(layer.spread, rel=1e-4)
        return layer.kind, layer.traits - {"call"}, layer.groups, layer.varying, spread

    lines: list[tuple] = [(numbers[layer.name], facts(layer)) for layer in products]
    for row in make_plan(loaded, layers).rows:
        if row.layer in numbers:
            # Of an output, the tensor is that behind a batch norm where that was folded.
            tensor = None if row.operand in ("weight", "output") else row.at.tensor
            tensor = tensor if tensor is None else tensors.setdefault(tensor, len(tensors))
            concat = None if row.operand == "output" else row.at.concat is not None
            site = row.operand, row.shape, row.at.channel_axis, tensor, concat
            lines.append((numbers[row.layer], site, decided(row), note(row)))
    return lines


@pytest.mark.parametrize("name", NETS)
def test_what_is_found_in_a_file_is_what_is_found_in_its_torch_network(name, found_in, loaded):
    traced = trace(*make(name))
    expected = told(traced.layers, loaded)
    assert len(expected) > 5
    for exporter in EXPORTERS:
        layers, _ = found_in[exporter, name]
        assert told(layers, loaded) == expected, exporter
        if "folded" not in exporter:
            assert count_norms(layers) == count_norms(traced.layers)


def count_norms(layers: tuple[Layer, ...]) -> tuple[int, int]:
    norms = sum(layer.type.startswith("BatchNorm") for layer in layers)
    return norms, sum(layer.bn is not None for layer in layers)


# A product of parameters alone is no node of a file that computes it once.
@pytest.mark.parametrize("name", [name for name in NETS if name != "computed"])
def test_coverage_of_a_file_is_that_of_what_torch_dispatches(name, found_in, loaded):
    traced = trace(*make(name))
    expected = covered(traced.products, traced.layers, loaded)
    for exporter in EXPORTERS:
        layers, products = found_in[exporter, name]
        assert covered(products, layers, loaded) == expected, exporter


def covered(products, layers, loaded) -> list:
    found = coverage(products, layers, make_plan(loaded, layers))
    floats = [(each.reason, each.products, each.macs) for each in found.floats]
    return [replace(found, floats=()), floats]


BRANCHES = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[N, 4] x, bool wide) => (float[N, 4] z) <float[4, 4] w> {
    y = MatMul (x, w)
    sizes = Shape (y)
    at = Constant <value = int64[1] {1}> ()
    length = Gather (sizes, at)
    four = Constant <value = int64[1] {4}> ()
    fits = Equal (length, four)
    [shaped] lead = If (fits) <
        then_branch = t () => (float[N, 4] a) { a = Identity (y) },
        else_branch = e () => (float[1, N, 4] b) {
            axes = Constant <value = int64[1] {0}> ()
            b = Unsqueeze (y, axes)
        }
    >
    [fc] f = MatMul (lead, w)
    [chosen] z = If (wide) <
        then_branch = t () => (float[N, 4] c) { [inner] c = MatMul (f, w) },
        else_branch = e () => (float[N, 4] d) { [inner] d = Relu (f) }
    >
}"""


def test_products_in_bodies_are_listed_with_the_reason_and_shapes_choose_branches(folder, loaded):
    model = parser.parse_model(BRANCHES)
    model.graph.ClearField("value_info")
    model.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    onnx.save(model, folder / "branches.onnx")
    graph = graph_of(folder / "branches.onnx")
    layers = {each.layer.name: each.layer for each in place_layers(graph)}
    assert list(layers) == ["node_of_y", "fc", "chosen/then_branch/inner"]
    assert layers["fc"].shape("input") == (1, 4) and not layers["fc"].unusable
    assert "(If)" in layers["chosen/then_branch/inner"].unusable
    found = coverage(products_of(graph, 2), layers.values(), make_plan(loaded, [*layers.values()]))
    assert (found.products, found.quantized) == (3, 2)
    assert [(each.products, each.places) for each in found.floats] == [
        (1, ("chosen/then_branch/inner",))
    ]


ADDED = """
<ir_version: 8, opset_import: ["" : 13]>
g (float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] z)
<float[1, 2, 1, 1] b = {1, 2}, float[2] one = {1, 1}, float[2] nought = {0, 0}> {
    w = Constant <value = float[2, 2, 1, 1] {1, 2, 3, 4}> ()
    [conv] c = Conv (x, w, one)
    y = Add (b, c)
    z = BatchNormalization (y, one, nought, nought, one)
}"""


def test_a_batch_norm_folds_behind_a_constant_that_is_added_to_a_convolution(folder, loaded):
    onnx.save(parser.parse_model(ADDED), folder / "added.onnx")
    graph = graph_of(folder / "added.onnx")
    conv, norm = place_layers(graph)
    assert conv.layer.bn == norm.layer.name and conv.output == "y"
    assert graph.array(conv.node.input[2]).tolist() == [2, 3]


OWN = """
<ir_version: 8, opset_import: ["" : {opset}, "{domain}" : 1]>
g (float[N, 4] x) => (float[N, 4] y)
<float[4, 4] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7}}> {{
    [a] p = MatMul (x, w)
    [own] q = {domain}.{op} (p)
    [b] y = MatMul (q, w)
}}"""


def test_behind_an_operator_that_onnx_does_not_know_only_the_shape_is_missing(folder):
    model = parser.parse_model(OWN.format(opset=13, domain="com.microsoft", op="Gelu"))
    onnx.save(model, folder / "own.onnx")
    network = OnnxNetwork(graph_of(folder / "own.onnx"))
    assert network.alone().open
    samples = np.zeros((2, 4), np.float32)
    assert [each.unusable for each in network.traced({"x": samples}, 2).layers] == [None, None]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (OWN.format(opset=13, domain="my.ops", op="Swish"), r"1 node .*\(my\.ops\.Swish\)"),
        (
            '<ir_version: 3, opset_import: ["" : 8]> g (float[2, 4] x) => (float[2, 4] y) {'
            "n = Shape (x) [c] z = ConstantOfShape (n) y = Add (x, z) }",
            r"opset 8, and 1 node of ConstantOfShape \(c\) cannot be written in 21",
        ),
    ],
)
def test_nodes_that_a_file_cannot_run_with_are_named(folder, text, said):
    with pytest.raises(ModelError, match=said):
        prepare(parser.parse_model(text), folder / "net.onnx")
