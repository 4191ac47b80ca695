"""Tensors of a file, computed part by part: the same bits as in one run, and each node run once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from granplugin.graph import reference
from granplugin.graph.read.graph import read
from granplugin.graph.read.in_parts import in_parts
from granplugin.network import onnx_running

X = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)


def network(path, length=8):
    """A chain with a skip connection, an FP8 tensor, a shape, and weights that are dequantized."""
    random = np.random.default_rng(1)
    nodes, constants, last = [], {"scale": np.float32(0.5)}, "x"
    zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0.0])
    for i in range(length):
        constants[f"w{i}"] = random.integers(-9, 9, (6, 6)).astype(np.int8)
        nodes += [
            helper.make_node("DequantizeLinear", [f"w{i}", "scale"], [f"d{i}"], f"d{i}"),
            helper.make_node("MatMul", [last, f"d{i}"], [f"m{i}"], f"m{i}"),
            helper.make_node("QuantizeLinear", [f"m{i}", "scale", "zero"], [f"q{i}"], f"q{i}"),
            helper.make_node("Relu", [f"m{i}"], [f"z{i}"], f"z{i}"),
            helper.make_node("DequantizeLinear", [f"q{i}", "scale", "zero"], [f"r{i}"], f"r{i}"),
            helper.make_node("Shape", [f"r{i}"], [f"s{i}"], f"s{i}"),
            helper.make_node("Reshape", [f"m{max(i - 3, 0)}", f"s{i}"], [f"o{i}"], f"o{i}"),
            helper.make_node("Add", [f"r{i}", f"o{i}"], [f"a{i}"], f"a{i}"),
        ]
        last = f"a{i}"
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", 6])],
        [zero, *(numpy_helper.from_array(array, name) for name, array in constants.items())],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)
    return read(path)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return network(tmp_path_factory.mktemp("parts") / "net.onnx")


@pytest.fixture(scope="module")
def whole(graph):
    names = [node.output[0] for node in graph.nodes if node.op_type != "QuantizeLinear"]
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return dict(zip(names, reference.run(model, names, {"x": X}), strict=True))


@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_parts_compute_what_the_whole_does(graph, whole, data):
    wanted = data.draw(st.lists(st.sets(st.sampled_from([*whole, "x", "w1"])), max_size=5))
    for names, found in zip(wanted, in_parts(graph, {"x": X}, wanted), strict=True):
        assert found.keys() == names
        for name, array in found.items():
            expected = whole.get(name, X if name == "x" else graph.array("w1"))
            assert array.tobytes() == expected.tobytes()


def test_a_node_is_run_once_however_many_parts_there_are(graph, monkeypatch):
    run, counted = reference.run, Counter()

    def counting(model, *args):
        counted.update(node.name for node in model.graph.node)
        return run(model, *args)

    monkeypatch.setattr(reference, "run", counting)
    # FP8 tensors lie where one part ends, and none is left for the next.
    list(in_parts(graph, {"x": X}, [{f"r{i - 1}", f"z{i}"} for i in range(1, 8)]))
    assert set(counted.values()) == {1}
    assert {node.name for node in graph.nodes} - set(counted) == {
        "q7",
        "r7",
        "s7",
        "o7",
        "a7",
        "z0",
    }


def test_constants_are_made_once_and_a_part_at_a_time(graph, whole, monkeypatch):
    made = []

    class Constants(dict):
        def __getitem__(self, name):
            made.append(name)
            return graph.array(name)

    weights = {f"w{i}": 36 for i in range(8)}
    monkeypatch.setattr(onnx_running, "_AT_ONCE", 2 * 36)
    running, opened = onnx_running.Running(graph), []
    open_, running.open = running.open, lambda *of: opened.append(of[0]) or open_(*of)
    (found,) = running.run_in_parts(
        graph.nodes, ["a7"], Constants(weights), weights, {"x": X}
    ).values()
    assert found.tobytes() == whole["a7"].tobytes()
    assert sorted(made) == sorted(weights) and len(opened) == 4
    assert [node.name for part in opened for node in part] == [node.name for node in graph.nodes]
