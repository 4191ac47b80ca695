"""A bias of zeros: nothing changes, but for an engine that takes none for something else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from test_qdq import model_of, run

from granplugin.graph.edit.forms import asked_forms, in_forms
from granplugin.graph.edit.zero_bias import add_zero_biases, unbiased
from granplugin.graph.files import save


def branching(kind="Conv", groups=1, bias=None, reads=2, rng=None):
    """A convolution of stored weights, read once or twice."""
    rng = rng or np.random.default_rng(0)
    shape = (4, 4 // groups, 3, 3)
    constants = {
        "w": rng.integers(-127, 128, shape).astype(np.int8),
        "s": np.float32(0.01),
        "z": np.int8(0),
    }
    inputs = ["x", "d"]
    if bias is not None:
        constants["b"] = np.asarray(bias, np.float32)
        inputs.append("b")
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], name="c.weight/DQ"),
        helper.make_node(kind, inputs, ["c"], name=f"c/{kind}", group=groups, pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], name="r/Relu"),
        helper.make_node("Add", ["r", "c" if reads == 2 else "r"], ["y"], name="y/Add"),
    ]
    return model_of(nodes, {"x": ["n", 4, 6, 6]}, {"y": ["n", 4, 6, 6]}, constants)


@given(st.sampled_from(["Conv", "ConvTranspose"]), st.sampled_from([1, 4]), st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_no_number_changes(tmp_path_factory, kind, groups, seed):
    folder, rng = tmp_path_factory.mktemp("zero"), np.random.default_rng(seed)
    model = branching(kind, groups, rng=rng)
    save(model, folder / "plain.onnx")
    add_zero_biases(model)
    assert not unbiased(model)
    save(model, folder / "biased.onnx")
    x = rng.standard_normal((2, 4, 6, 6)).astype(np.float32)
    plain, biased = (run(folder / f"{n}.onnx", {"x": x}, "y")[0] for n in ("plain", "biased"))
    assert np.array_equal(plain, biased)


@pytest.mark.parametrize(
    ("bias", "reads", "asked"),
    [
        (None, 2, True),
        (np.zeros(4), 2, True),
        (-np.zeros(4), 2, True),
        (None, 1, True),
        ([0, 0, 1, 0], 2, False),
        ([-0.0, 0, 0, 0], 2, False),
    ],
)
def test_only_one_without_a_bias_is_given_it(bias, reads, asked):
    model = branching(bias=bias, reads=reads)
    assert bool(asked_forms(model, ["zero-bias"])) == asked
    assert not unbiased(in_forms(model, asked_forms(model, ["zero-bias"])))
    assert bool(unbiased(model)) == asked  # the one given stays as it was
