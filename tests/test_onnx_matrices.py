"""Of a file, a weight that is the first factor, one of several matrices, a Gemm of activations and what
came after opset 21 become nodes that multiply as layers do, with the same results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from granplugin.network.onnx_file import shaped
from granplugin.network.onnx_layers import place_layers
from granplugin.network.onnx_matrices import as_layers
from granplugin.network.onnx_spelled import spelled_out

CASES = {
    "weight first": ("MatMul", (5, 4), (2, 4, 3), 0, {}, [(5, 4)]),
    "of several matrices": ("MatMul", (2, 3, 6, 4), (3, 4, 5), 1, {}, [(5, 4)] * 3),
    "the same rows": ("MatMul", (2, 1, 6, 4), (1, 3, 4, 5), 1, {}, [(5, 4)] * 3),
    "fewer axes of rows": ("MatMul", (6, 4), (2, 1, 4, 5), 1, {}, [(5, 4)] * 2),
    "both": ("MatMul", (3, 5, 4), (2, 3, 4, 6), 0, {}, [(5, 4)] * 3),
    "a Gemm of two activations": (
        "Gemm", (4, 6), (5, 4), None, {"transA": 1, "transB": 1, "alpha": 0.5}, [None],
    ),
    "a Gemm whose input is transposed": ("Gemm", (4, 6), (4, 5), 1, {"transA": 1}, [(5, 4)]),
}  # fmt: skip


def made(op: str, shapes: dict[str, tuple[int, ...]], stored: str, said: dict, opset: int = 21):
    """A file of one node, and what it is fed."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
        for name, array in arrays.items()
        if name not in stored
    ]
    node = helper.make_node(op, list(arrays), ["y"], name="said", **said)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    held = [numpy_helper.from_array(arrays[name], name) for name in stored]
    graph = helper.make_graph([node], "g", inputs, [output], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return model, {name: array for name, array in arrays.items() if name not in stored}


@pytest.mark.parametrize("what", CASES)
def test_a_product_is_laid_out_as_layers_are(what):
    op, first, second, constant, said, weights = CASES[what]
    stored = "" if constant is None else "ab"[constant]
    model, feeds = made(op, {"a": first, "b": second}, stored, said)
    (wanted,) = ReferenceEvaluator(model).run(None, feeds)
    as_layers(shaped(model, Path("net.onnx")))
    (found,) = ReferenceEvaluator(model).run(None, feeds)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    layers = [each.layer for each in place_layers(shaped(model, Path("net.onnx")))]
    assert [layer.shape("weight") for layer in layers] == weights
    assert layers[0].name == "said" and not any(layer.unusable for layer in layers)


HEADS = dict.fromkeys("qkv", (2, 3, 6, 4))
LATER = {
    "Attention": (HEADS, "", {"is_causal": 1}, 23),
    "RMSNormalization": ({"x": (2, 3, 4), "g": (4,)}, "g", {}, 23),
    "Swish": ({"x": (2, 3)}, "", {"alpha": 0.5}, 24),
}


@pytest.mark.parametrize("op", LATER)
def test_what_came_after_opset_21_is_what_it_stands_for(op):
    shapes, stored, said, opset = LATER[op]
    model, feeds = made(op, shapes, stored, said, opset)
    (wanted,) = ReferenceEvaluator(model).run(None, feeds)
    spelled = spelled_out(model, Path("net.onnx"))
    (found,) = ReferenceEvaluator(spelled).run(None, feeds)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    names = [node.name for node in spelled.graph.node]
    assert len(set(names)) == len(names) and all(name.startswith("said/") for name in names)
    products = [name for name in names if name.startswith("said/matmul")]
    assert len(products) == (2 if op == "Attention" else 0)
