"""What is found in an ONNX file is what is found in the torch network it was exported from."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import yaml
from onnx_nets import NETS, Several, make

from granplugin.graph.read.graph import ReadGraph, reads
from granplugin.network.onnx_file import read_float
from granplugin.network.onnx_layers import Placed, place_layers
from granplugin.network.trace import trace
from granplugin.planning.plan import make_plan
from granplugin.quant.layers import Layer
from granplugin.recipe.load import load_recipe
from granplugin.recipe.loaded import Loaded

EXPORTERS = ("legacy", "legacy folded", "dynamo", "dynamo folded")
MODES = (torch.onnx.TrainingMode.PRESERVE, torch.onnx.TrainingMode.EVAL)


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


@pytest.fixture(scope="module")
def placed(folder) -> dict[tuple[str, str], tuple[Placed, ...]]:
    """(exporter, network) -> what is found in the file."""
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
            found[EXPORTERS[folded], name] = place_layers(read_float(path))
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
        graph = read_float(folder / f"{exporter}.onnx")
        layers = place_layers(graph)
        for name, output in zip(nets, graph.outputs, strict=True):
            own = nodes_behind(graph, output)
            found[exporter, name] = tuple(each for each in layers if each.node.name in own)
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
    products = [layer for layer in layers if layer.kind and not layer.unusable]
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
        return layer.kind, layer.traits, layer.groups, layer.varying, spread

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
def test_what_is_found_in_a_file_is_what_is_found_in_its_torch_network(name, placed, loaded):
    of_torch = trace(*make(name)).layers
    expected = told(of_torch, loaded)
    assert len(expected) > 5
    for exporter in EXPORTERS:
        of_file = tuple(each.layer for each in placed[exporter, name])
        assert told(of_file, loaded) == expected, exporter
        if "folded" not in exporter:
            assert count_norms(of_file) == count_norms(of_torch)


def count_norms(layers: tuple[Layer, ...]) -> tuple[int, int]:
    norms = sum(layer.type.startswith("BatchNorm") for layer in layers)
    return norms, sum(layer.bn is not None for layer in layers)
