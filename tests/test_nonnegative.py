"""uint8 with zero point 0 where nothing is negative: the same numbers, clipped where int8 clips."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from test_qdq import model_of, run
from test_unsigned import SCALES, pair

from granplugin.graph.edit.forms import in_forms
from granplugin.graph.edit.nonnegative import quantizes_nonnegative
from granplugin.graph.files import save
from granplugin.graph.read.file_graph import open_file


def nonnegative(model):
    return in_forms(model, ["unsigned-nonnegative"])


def rectified(scales, zero=np.int8(0), first="Relu", read_twice=False):
    """A ReLU quantized, read by an add of it to itself, which is quantized again; the sum is not
    negative either."""
    bounds = ["low", "high"] if first == "Clip" else []
    constants = {"s0": np.asarray(scales[0]), "s1": np.asarray(scales[1]), "z": zero}
    constants |= {"low": np.float32(0.5), "high": np.float32(6)}
    nodes = [
        helper.make_node(first, ["x", *bounds], ["r"], name="r/First"),
        *pair("r", "a", "s0", "z"),
        helper.make_node("Add", ["a", "r" if read_twice else "a"], ["c"], name="c/Add"),
        *pair("c", "y", "s1", "z"),
    ]
    return model_of(nodes, {"x": ["n", 3]}, {"y": ["n", 3]}, constants)


@given(
    st.lists(SCALES, min_size=2, max_size=2),
    st.sampled_from(["Relu", "Clip", "Sigmoid", "Abs"]),
    st.booleans(),
    st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None)
def test_every_float_stays_the_same_to_the_bit(tmp_path_factory, scales, first, twice, seed):
    folder = tmp_path_factory.mktemp("unsigned")
    model = rectified(np.float32(scales), first=first, read_twice=twice)
    save(model, folder / "int8.onnx")
    save(nonnegative(model), folder / "uint8.onnx")
    random = np.random.default_rng(seed)
    # Around every rounding's edge, and far beyond 127 scales.
    x = random.integers(-300, 600, (500, 3)) * np.float32(scales[0]) / 2
    x = np.nextafter(x, random.choice([-np.inf, 0, np.inf], x.shape)).astype(np.float32)
    before, after = (run(folder / f"{kind}.onnx", {"x": x}, "y")[0] for kind in ("int8", "uint8"))
    assert before.tobytes() == after.tobytes()


@pytest.mark.parametrize("first", ["Relu", "Clip"])
def test_the_clip_takes_the_place_of_what_only_it_read(first):
    found = nonnegative(rectified(np.float32([0.5, 0.25]), first=first))
    assert [node.op_type for node in found.graph if node.op_type in ("Relu", "Clip")] == [
        "Clip"
    ] * 2
    kept = nonnegative(rectified(np.float32([0.5, 0.25]), first=first, read_twice=True))
    assert sum(node.op_type in ("Relu", "Clip") for node in kept.graph) == 3
    onnx.checker.check_model(ir.to_proto(found), full_check=True)


@pytest.mark.parametrize(
    "model",
    [
        rectified(np.float32([1, 1]), np.uint8(0)),
        rectified(np.float32([1, 1]), np.int8(1)),
        rectified(np.float32([1, 1]), first="Tanh"),
    ],
)
def test_what_may_be_negative_or_is_not_symmetric_int8_stays(model):
    assert not quantizes_nonnegative(model)


def test_a_reader_takes_it_for_the_int8_it_stands_for_as_long_as_it_is_clipped(tmp_path):
    unsigned = nonnegative(rectified(np.float32([0.5, 0.25])))
    save(unsigned, tmp_path / "uint8.onnx")
    assert [pair.zero.dtype for pair in open_file(tmp_path / "uint8.onnx").pairs] == [np.int8] * 2
    for value in unsigned.graph.initializers.values():
        if value.name.startswith("a.most"):
            value.const_value = ir.tensor(np.float32(0.5 * 127.6), name=value.name)
    save(unsigned, tmp_path / "beyond.onnx")
    kinds = [pair.zero.dtype for pair in open_file(tmp_path / "beyond.onnx").pairs]
    assert kinds == [np.uint8, np.int8]


def test_half_precision_is_clipped_in_its_own_type(tmp_path):
    model = rectified(np.float16([0.5, 0.25]))
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.dtype = ir.DataType.FLOAT16
    found = nonnegative(model)
    onnx.checker.check_model(ir.to_proto(found), full_check=True)
    assert not quantizes_nonnegative(found)
