"""An Einsum that is one matrix product becomes a MatMul of the same results; any other stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from granplugin.graph.read.graph import read_graph
from granplugin.network.onnx_einsum import as_products

LENGTHS = dict(b=2, n=6, d=8, h=2, k=4, i=3, j=5, e=7)
WEIGHT, NONE = 1, None
PRODUCTS = [
    ("bnd,dhk->bhnk", WEIGHT), ("bnd,dhk", WEIGHT), ("hkd,bihk->bid", 0), ("bihk,hkd->dib", WEIGHT),
    ("bnd,de->bne", WEIGHT), ("bik,bkj->bji", NONE), ("bhik,bhjk->bhij", NONE),
    ("bhij,bhjk->bihk", NONE), ("nd,bd->bn", NONE), ("bhnd,hde->bhne", WEIGHT),
    ("hked,bnhd->bnhke", 0),
]  # fmt: skip
OTHERS = [
    ("bi,bj->bij", NONE), ("bid,bid->bi", NONE), ("bd,d->b", WEIGHT),
    ("bnn,ne->be", WEIGHT), ("...d,de->...e", WEIGHT), ("bik,bjk", NONE),
]  # fmt: skip


def made(equation: str, constant: int | None) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A file of one Einsum, and what it is fed."""
    terms = equation.replace("...", "b").partition("->")[0].split(",")
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal([LENGTHS[axis] for axis in term]).astype(np.float32)
        for name, term in zip("ac", terms, strict=True)
    }
    stored = {"ac"[constant]} if constant is not None else set()
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * array.ndim)
        for name, array in arrays.items()
        if name not in stored
    ]
    node = helper.make_node("Einsum", ["a", "c"], ["y"], name="said", equation=equation)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    held = [numpy_helper.from_array(arrays[name], name) for name in stored]
    graph = helper.make_graph([node], "g", inputs, [output], held)
    feeds = {name: array for name, array in arrays.items() if name not in stored}
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), feeds


@pytest.mark.parametrize(("equation", "constant"), [*PRODUCTS, *OTHERS])
def test_a_matrix_product_in_some_layout_is_a_matmul_of_the_same_name(equation, constant):
    model, feeds = made(equation, constant)
    (wanted,) = ReferenceEvaluator(model).run(None, feeds)
    as_products(read_graph(model, Path("net.onnx")))
    (found,) = ReferenceEvaluator(model).run(None, feeds)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    named = {node.op_type for node in model.graph.node if node.name == "said"}
    assert named == {"MatMul" if (equation, constant) in PRODUCTS else "Einsum"}


def test_a_name_that_the_file_has_is_not_given_to_another():
    model, feeds = made("bnd,dhk->bhnk", WEIGHT)
    (wanted,) = ReferenceEvaluator(model).run(None, feeds)
    for name in ("said/transpose", "said/constant", "said/reshape"):
        model.graph.node.append(helper.make_node("Identity", ["a"], [name], name=name))
    as_products(read_graph(model, Path("net.onnx")))
    (result,) = ReferenceEvaluator(model).run(None, feeds)
    np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-5)
    written = [name for node in model.graph.node for name in node.output]
    written += [each.name for each in model.graph.initializer]
    assert len(written) == len(set(written))
