"""Weights of several forms that share zero points: each its own, and INT8 kernels for all."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from test_qdq import model_of, run
from test_unsigned import pair

from granplugin.backends import backend_of
from granplugin.graph.edit.apart_zeros import shared_zeros
from granplugin.graph.edit.forms import asked_forms, in_forms
from granplugin.graph.files import save
from granplugin.graph.read.file_graph import open_file

CHANNELS = 16


def weight(name, array):
    random = np.random.default_rng(len(name))
    scales = random.uniform(0.001, 0.002, CHANNELS).astype(np.float32)
    inputs = [f"{name}/int8", f"{name}/scale", "zeros"]
    node = helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}/DQ", axis=0)
    return [node], {inputs[0]: array.astype(np.int8), inputs[1]: scales}


def patches(linear_of=2):
    """A convolution, whose pixels go through a linear layer, or another 1x1 convolution."""
    random = np.random.default_rng(0)
    kernel = random.integers(-127, 128, (CHANNELS, 3, 1, 1))
    matrix = random.integers(-127, 128, (CHANNELS, CHANNELS) + (1, 1) * (linear_of == 4))
    first, constants = weight("conv.weight", kernel)
    second, more = weight("linear.weight", matrix)
    constants |= more | {
        "s": np.float32(0.03),
        "z": np.int8(0),
        "zeros": np.zeros(CHANNELS, np.int8),
        "shape": np.array([0, CHANNELS, -1]),
    }
    behind = (
        [
            helper.make_node("Reshape", ["c", "shape"], ["r"], name="r"),
            helper.make_node("Transpose", ["r"], ["t"], name="t", perm=[0, 2, 1]),
            *pair("t", "b", "s", "z"),
            helper.make_node("Transpose", ["linear.weight"], ["w"], name="w", perm=[1, 0]),
            helper.make_node("MatMul", ["b", "w"], ["y"], name="linear/MatMul"),
        ]
        if linear_of == 2
        else [
            *pair("c", "b", "s", "z"),
            helper.make_node("Conv", ["b", "linear.weight"], ["y"], name="linear/Conv"),
        ]
    )
    nodes = [
        *pair("x", "a", "s", "z"),
        *first,
        *second,
        helper.make_node("Conv", ["a", "conv.weight"], ["c"], name="conv/Conv"),
        *behind,
    ]
    shape = ["n", 16, CHANNELS] if linear_of == 2 else ["n", CHANNELS, 4, 4]
    return model_of(nodes, {"x": ["n", 3, 4, 4]}, {"y": shape}, constants)


def test_only_weights_of_different_forms_ask_for_it():
    assert asked_forms(patches(), ["apart-zeros"])
    assert not asked_forms(patches(linear_of=4), ["apart-zeros"])


def test_the_numbers_stay_the_same_and_a_reader_finds_the_same_zero_points(tmp_path):
    plain, apart = patches(), in_forms(patches(), ["apart-zeros"])
    assert not shared_zeros(apart)
    x = np.random.default_rng(1).standard_normal((2, 3, 4, 4)).astype(np.float32)
    outputs, zeros = [], []
    for name, model in {"plain.onnx": plain, "apart.onnx": apart}.items():
        save(model, tmp_path / name)
        outputs.append(run(tmp_path / name, {"x": x}, "y")[0].tobytes())
        zeros.append([each.zero.tolist() for each in open_file(tmp_path / name).pairs])
    assert outputs[0] == outputs[1] and zeros[0] == zeros[1]


@pytest.mark.parametrize("mended", [False, True])
def test_openvino_has_int8_kernels_for_them_at_fixed_shapes(tmp_path, mended):
    openvino = backend_of("openvino")
    model = in_forms(patches(), ["apart-zeros"]) if mended else patches()
    save(model, tmp_path / "model.onnx")
    engine = openvino.build(tmp_path / "model.onnx", tmp_path / "engine")
    assert {layer.precision for layer in openvino.layers(engine)} == {"int8"}
    with openvino.open(engine, batch=1) as runner:
        (opened,) = runner.inputs
    assert (opened.shape[0] == 1) == mended, "what loses INT8 at a fixed batch keeps an open one"
