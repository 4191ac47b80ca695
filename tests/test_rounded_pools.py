"""Q/DQ in front of a max pool: the same numbers, and a reader finds what the plan says."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from test_qdq import model_of, row_of, run
from test_unsigned import pair

from granplugin.backends import backend_of
from granplugin.errors import Unhonoured
from granplugin.graph.edit.forms import asked_forms, in_forms
from granplugin.graph.files import save
from granplugin.graph.read.verify import read_back

CHANNELS, SIDE = 8, 7
WEIGHT = (CHANNELS, CHANNELS, 3, 3)
ROWS = [row_of("a.input", (2, CHANNELS, SIDE, SIDE)), row_of("b.input", (2, CHANNELS, 4, 4))]
ROWS += [row_of(f"{layer}.weight", WEIGHT) for layer in "ab"]


def pooled(activation="Relu", first="x", pools=1, other_reader=False):
    """A convolution of what is quantized, an activation, max pools with padding, and another."""
    random = np.random.default_rng(0)
    weights = {f"{name}.weight/q": random.integers(-127, 128, WEIGHT, np.int8) for name in "ab"}
    constants = weights | {
        "s": np.float32(0.02),
        "scale": np.float32(0.001),
        "z": np.int8(0),
    }
    nodes = pair("x", "x/dq", "s", "z") if first == "x" else []
    for name in "ab":
        inputs = [f"{name}.weight/q", "scale", "z"]
        nodes.append(
            helper.make_node("DequantizeLinear", inputs, [f"{name}.weight"], name=f"{name}/W")
        )
    read = "x/dq" if first == "x" else "x"
    conv = {"pads": [1] * 4}
    nodes.append(helper.make_node("Conv", [read, "a.weight"], ["c"], name="a/Conv", **conv))
    nodes.append(helper.make_node(activation, ["c"], ["p0"], name="act/Act"))
    for at in range(pools):
        window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}
        nodes.append(
            helper.make_node("MaxPool", [f"p{at}"], [f"p{at + 1}"], name=f"pool{at}/P", **window)
        )
    nodes += pair(f"p{pools}", "p/dq", "s", "z")
    nodes.append(helper.make_node("Conv", ["p/dq", "b.weight"], ["y"], name="b/Conv", **conv))
    outputs = {"y": ["n", CHANNELS, "h", "w"]}
    if other_reader:
        outputs["p0"] = ["n", CHANNELS, SIDE, SIDE]
    return model_of(nodes, {"x": ["n", CHANNELS, SIDE, SIDE]}, outputs, constants)


@pytest.mark.parametrize(("activation", "pools"), [("Relu", 1), ("LeakyRelu", 2)])
def test_the_numbers_stay_the_same_on_onnxruntime_and_right_on_openvino(
    tmp_path, activation, pools
):
    model = pooled(activation, pools=pools)
    forms = asked_forms(model, ["rounded-pools", "unsigned-nonnegative"])
    assert "rounded-pools" in forms
    moved = in_forms(model, forms)
    order = [node.op_type for node in moved.graph]
    assert order.index("QuantizeLinear", order.index("Conv")) < order.index("MaxPool")
    x = np.random.default_rng(1).standard_normal((2, CHANNELS, SIDE, SIDE)).astype(np.float32)
    outputs = []
    for name, each in {"plain": model, "moved": moved}.items():
        save(each, tmp_path / f"{name}.onnx")
        outputs.append(run(tmp_path / f"{name}.onnx", {"x": x}, "y")[0])
    assert outputs[0].tobytes() == outputs[1].tobytes()
    openvino = backend_of("openvino")
    engine = openvino.build(tmp_path / "moved.onnx", tmp_path / "engine")
    with openvino.open(engine) as runner:
        found = runner.run({"x": x})["y"]
    assert np.abs(found - outputs[0]).max() < 0.01 * np.abs(outputs[0]).max()


def test_what_no_integers_compute_or_others_read_does_not_ask_for_it():
    names = ["rounded-pools"]
    assert not asked_forms(pooled(first="float"), names)
    assert not asked_forms(pooled(other_reader=True), names)
    assert not asked_forms(in_forms(pooled(), names), names)


def test_a_reader_finds_it_behind_the_pool_and_refuses_who_else_reads_it(tmp_path):
    model = in_forms(pooled(), ["rounded-pools"])
    path = tmp_path / "moved.onnx"
    save(model, path)
    scale = np.float32(0.02) * np.float32(127)
    amax = {row.site: np.full(row.grid, scale, np.float32) for row in ROWS[:2]}
    weights = {}
    for name in "ab":
        stored = model.graph.initializers[f"{name}.weight/q"].const_value.numpy()
        weights[name] = stored.astype(np.float32) * np.float32(0.001)
        amax[f"{name}.weight"] = np.full((1, 1, 1, 1), np.float32(0.001) * np.float32(127))
    read_back(path, ROWS, amax, weights)
    with pytest.raises(Unhonoured, match=r"b/Conv: reads .*, and no row says so|quantized, and no"):
        read_back(path, [row for row in ROWS if row.site != "b.input"], amax, weights)
