"""uint8 with zero point 128: the same numbers, for engines that compute int8 wrongly."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx_ir.passes import PreconditionError
from test_qdq import model_of, run

from granplugin.graph.edit.forms import in_forms
from granplugin.graph.edit.unsigned import concatenates
from granplugin.graph.files import save
from granplugin.graph.read.file_graph import open_file


def unsigned(model):
    return in_forms(model, ["unsigned-concat"])


def pair(source, name, scale, zero):
    q = helper.make_node("QuantizeLinear", [source, scale, zero], [f"{name}/q"], name=f"{name}/Q")
    dq = helper.make_node("DequantizeLinear", [f"{name}/q", scale, zero], [name], name=f"{name}/DQ")
    return [q, dq]


def joined(scales, zero=np.int8(0)):
    """Two activations with a scale each, concatenated, and the result quantized again."""
    constants = {f"s{at}": np.float32(scale) for at, scale in enumerate(scales)} | {"z": zero}
    nodes = [
        *pair("x", "a", "s0", "z"),
        *pair("x", "b", "s1", "z"),
        helper.make_node("Concat", ["a", "b"], ["c"], name="c/Concat", axis=1),
        *pair("c", "y", "s2", "z"),
    ]
    return model_of(nodes, {"x": ["n", 3]}, {"y": ["n", 6]}, constants)


SCALES = st.floats(2.0**-20, 2.0**10, width=32)


@given(st.lists(SCALES, min_size=3, max_size=3), st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_every_float_stays_the_same_to_the_bit(tmp_path_factory, scales, seed):
    folder = tmp_path_factory.mktemp("unsigned")
    model = joined(scales)
    save(model, folder / "int8.onnx")
    save(unsigned(model), folder / "uint8.onnx")
    x = np.random.default_rng(seed).standard_normal((5, 3)).astype(np.float32)
    x *= np.float32(scales[0] * 100)
    before, after = (run(folder / f"{kind}.onnx", {"x": x}, "y")[0] for kind in ("int8", "uint8"))
    assert before.tobytes() == after.tobytes()


def test_a_reader_takes_it_for_the_int8_it_stands_for(tmp_path):
    model = joined([0.5, 0.25, 0.125])
    save(unsigned(model), tmp_path / "uint8.onnx")
    onnx.checker.check_model(str(tmp_path / "uint8.onnx"), full_check=True)
    zeros = [pair.zero for pair in open_file(tmp_path / "uint8.onnx").pairs]
    assert [(zero.dtype, zero.any()) for zero in zeros] == [(np.int8, False)] * 3
    kinds = {v.dtype for v in unsigned(model).graph.initializers.values()}
    assert ir.DataType.INT8 not in kinds


def test_only_a_graph_with_a_quantized_concatenation_asks_for_it():
    alone = model_of(
        pair("x", "y", "s", "z"),
        {"x": ["n", 3]},
        {"y": ["n", 3]},
        {"s": np.float32(1), "z": np.int8(0)},
    )
    assert concatenates(joined([1, 1, 1])) and not concatenates(alone)
    assert not concatenates(joined([1, 1, 1], np.uint8(0)))


def test_another_zero_point_is_refused():
    with pytest.raises(PreconditionError, match="the zero point of a/Q is not 0"):
        unsigned(joined([1, 1, 1], np.int8(1)))


def product(behind):
    """A product of two activations; a concatenation makes the first - or is a part of a sum that does -, or stands apart."""
    nodes = [
        helper.make_node("Concat", ["x", "x"], ["c"], name="c/Concat", axis=1),
        helper.make_node("Tanh", ["c" if behind else "x"], ["u"], name="u/Tanh"),
        helper.make_node(
            "Add", ["u", "c"] if behind == "sum" else ["u", "one"], ["t"], name="t/Add"
        ),
        *pair("t", "a", "s", "z"),
        *pair("w", "b", "s", "z"),
        helper.make_node("MatMul", ["a", "b"], ["m"], name="m/MatMul"),
        *pair("c", "y", "s", "z"),
    ]
    inner = 6 if behind else 3
    return model_of(
        nodes,
        {"x": ["n", 3], "w": [inner, 4]},
        {"m": ["n", 4], "y": ["n", 6]},
        {"s": np.float32(1), "z": np.int8(0), "one": np.float32(1)},
    )


@pytest.mark.parametrize(
    ("behind", "signed"), [("", {"a/Q", "b/Q"}), ("concat", {"b/Q"}), ("sum", {"a/Q", "b/Q"})]
)
def test_factors_of_two_activations_stay_int8_unless_a_concatenation_is_behind(behind, signed):
    kinds = {
        node.name: node.inputs[2].dtype
        for node in unsigned(product(behind)).graph
        if node.op_type == "QuantizeLinear"
    }
    assert {name for name, kind in kinds.items() if kind == ir.DataType.INT8} == signed
