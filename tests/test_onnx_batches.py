"""ONNX Runtime computes a sample to the same bits in any batch, so what is said of torch's small
batches is not said of files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

from granplugin.graph.read.graph import read_graph
from granplugin.network.onnx_running import Running

RANDOM = np.random.default_rng(0)
NETS = {
    "linear": ([64], ["Gemm"], {"w": (64, 10)}, {}),
    "one column": ([512], ["MatMul"], {"w": (512, 1)}, {}),
    "attention": ([7, 64], ["MatMul"], {"w": (64, 33)}, {}),
    "convolution": ([16, 9, 9], ["Conv"], {"w": (24, 16, 3, 3)}, {}),
    "depthwise": ([16, 9, 9], ["Conv"], {"w": (16, 1, 3, 3)}, {"group": 16}),
    "transposed": ([16, 5, 5], ["ConvTranspose"], {"w": (16, 8, 2, 2)}, {}),
    "norm": ([7, 64], ["LayerNormalization"], {"w": (64,)}, {}),
}


@pytest.mark.parametrize("kind", NETS)
def test_a_sample_has_the_same_bits_in_any_batch(kind):
    shape, (op,), weights, given = NETS[kind]
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node(op, ["x", *weights], ["y"], **given)],
            kind,
            [helper.make_tensor_value_info("x", 1, ["batch", *shape])],
            [helper.make_tensor_value_info("y", 1, None)],
            [
                numpy_helper.from_array(RANDOM.standard_normal(size, np.float32), name)
                for name, size in weights.items()
            ],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    network = Running(read_graph(model, Path("net.onnx")))
    x = RANDOM.standard_normal((32, *shape), np.float32)
    whole = network.outputs({"x": x})["y"]
    for size in (1, 2, 3, 5, 15, 16, 17):
        parts = [network.outputs({"x": x[at : at + size]})["y"] for at in range(0, 32, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
