"""MXFP8: FP8 values in blocks of 32 along the axis that a product sums over, power-of-two scales."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import numpy as np
import onnx
import pytest
from conftest import run_main
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx_ir.passes import PreconditionError
from test_qdq import row_of, run, site_model

from granplugin.calibration.statistics import find_amax
from granplugin.capabilities import load_table
from granplugin.capabilities.promise import cell_promise
from granplugin.capabilities.table import Cell
from granplugin.engines import ENGINES
from granplugin.errors import Unhonoured
from granplugin.graph.edit.own_operators import own_operators
from granplugin.graph.edit.qdq import insert
from granplugin.graph.files import load_float, save
from granplugin.graph.read.agreement import agreement
from granplugin.graph.read.verify import read_back
from granplugin.modelopt_bridge import fake_quantize as modelopts
from granplugin.quant.formats import FORMATS, block_of, fake_quantize, quantize, scale_of
from granplugin.quant.granularity import DoesNotApply, PerBlock, PerChannel
from granplugin.quant.site import Site

MXFP8 = FORMATS["mxfp8"]
BLOCK = (1, 32)
OPERATORS = ENGINES["tensorrt_rtx"].operators
positive = st.floats(2.0**-110, 2.0**120, width=32)


@given(positive)
def test_a_scale_is_the_power_of_two_of_the_ocp_rule(amax):
    (scale,) = scale_of(np.array([amax]), MXFP8)
    exponent = math.frexp(amax)[1] - 1  # floor(log2(amax))
    assert Fraction(2) ** exponent <= Fraction(amax) < Fraction(2) ** (exponent + 1)
    assert Fraction(float(scale)) == Fraction(2) ** (exponent - 8)
    assert -127 <= exponent - 8 <= 127  # what E8M0 has


@given(positive)
def test_a_fitted_amax_is_its_own_and_448_times_the_scale(amax):
    fitted = MXFP8.fit(np.float32([amax]))
    assert np.array_equal(MXFP8.fit(fitted), fitted)
    assert np.array_equal(scale_of(fitted, MXFP8), scale_of(np.array([amax]), MXFP8))
    assert np.array_equal(fitted, 448 * scale_of(fitted, MXFP8))


@given(hnp.arrays(np.float32, (2, 32), elements=st.floats(-(2.0**20), 2.0**20, width=32)))
def test_only_what_lies_above_448_scales_saturates(x):
    x[:, 0] = np.where(x.any(1), x[:, 0], 1)
    scale = scale_of(np.abs(x).max(1, keepdims=True), MXFP8)
    ratio = x.astype(np.float64) / scale
    assert (np.abs(ratio) < 512).all()
    stored = quantize(x, scale, BLOCK, MXFP8).astype(np.float64)
    beyond = np.abs(ratio) > 448
    assert (stored[beyond] == 448 * np.sign(ratio[beyond])).all()
    # Half a step of E4M3: 2^-4 of the value, or 2^-10 where it has no digits left.
    inside = ~beyond
    error = np.abs(stored - ratio)[inside]
    assert (error <= np.maximum(np.abs(ratio[inside]) * 2.0**-4, 2.0**-10)).all()


@pytest.mark.parametrize(
    ("significand", "doubled"), [(1.0, 0), (1.75, 0), (1.7500001, 1), (1.99, 1)]
)
def test_nvidias_rule_differs_where_448_scales_are_exceeded(significand, doubled):
    """modelopt 0.47 rounds the exponent of amax / 448 up: no value saturates."""
    amax = np.float32(significand)
    theirs = 2.0 ** math.ceil(math.log2(float(amax) / 448))
    assert theirs == float(scale_of(amax[None], MXFP8)[0]) * 2**doubled


@given(st.integers(0, 2**16), st.integers(-20, 40))
@settings(max_examples=40, deadline=None)
def test_modelopt_computes_the_oracles_values(seed, exponent):
    x = np.random.default_rng(seed).standard_normal((4, 64)).astype(np.float32)
    x *= np.float32(2.0**exponent)
    row = row_of("l.weight", x.shape, fmt="mxfp8", block=BLOCK)
    amax = find_amax(row, weight=x)
    expected = fake_quantize(x, scale_of(amax, MXFP8), BLOCK, MXFP8)
    assert np.array_equal(modelopts(x, row, amax), expected)


@st.composite
def weights(draw):
    """A weight of blocks of any size, some of them zeros."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    out, blocks = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    weight = rng.standard_normal((out, blocks, 32)) * np.exp2(
        rng.integers(-30, 30, (out, blocks, 1))
    )
    weight[rng.random((out, blocks)) < 0.2] = 0
    weight[0, 0, 0] = 1
    return weight.astype(np.float32).reshape(out, -1)


def written(weight, path):
    """A linear layer with this weight in MXFP8: its row and amax."""
    row = row_of("layer.weight", weight.shape, fmt="mxfp8", block=BLOCK)
    amax = {row.site: find_amax(row, weight=weight)}
    model, _ = site_model("weight", weight.shape, weight)
    save(insert(model, [row], amax), path)
    return row, amax


@given(weights())
@settings(max_examples=60, deadline=None)
def test_onnx_runtime_computes_what_the_oracle_does(tmp_path_factory, weight):
    path = tmp_path_factory.mktemp("case") / "model.onnx"
    row, amax = written(weight, path)
    read_back(path, [row], amax, {"layer": weight})
    (node,) = [n for n in onnx.load(path).graph.node if n.op_type == "DequantizeLinear"]
    x = np.ones((2, weight.shape[1]), np.float32)
    (found,) = run(path, {"x": x}, node.output[0])
    scale = scale_of(amax[row.site], MXFP8)
    assert found.tobytes() == fake_quantize(weight, scale, BLOCK, MXFP8).tobytes()
    assert agreement(path, [row], amax, {"x": x}).values == weight.size


@given(weights())
@settings(max_examples=40, deadline=None)
def test_an_engines_own_operator_says_the_same_numbers(tmp_path_factory, weight):
    folder = tmp_path_factory.mktemp("case")
    row, amax = written(weight, folder / "plain.onnx")
    own_operators(model := load_float(folder / "plain.onnx"), [row], OPERATORS)
    save(model, folder / "own.onnx")
    model = onnx.load(folder / "own.onnx")
    (node,) = [n for n in model.graph.node if "Dequantize" in n.op_type]
    assert (node.op_type, node.domain) == ("TRT_MXFP8DequantizeLinear", "trt")
    stored, exponents = (
        onnx.numpy_helper.to_array(tensor)
        for name in node.input
        for tensor in model.graph.initializer
        if tensor.name == name
    )
    assert exponents.dtype == np.uint8 and exponents.shape == row.grid
    scale = np.exp2(exponents.astype(np.float32) - 127)
    expected = fake_quantize(weight, scale_of(amax[row.site], MXFP8), BLOCK, MXFP8)
    assert (stored.astype(np.float32) * np.repeat(scale, 32, 1)).tobytes() == expected.tobytes()
    read_back(folder / "own.onnx", [row], amax, {"layer": weight})


def test_a_wrong_exponent_in_a_file_is_found(tmp_path):
    weight = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    row, amax = written(weight, tmp_path / "plain.onnx")
    own_operators(model := load_float(tmp_path / "plain.onnx"), [row], OPERATORS)
    save(model, tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    (scale,) = [t for t in model.graph.initializer if t.name.endswith("e8m0")]
    changed = onnx.numpy_helper.to_array(scale).copy()
    changed[1, 1] += 1
    scale.CopyFrom(onnx.numpy_helper.from_array(changed, scale.name))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(Unhonoured, match="a scale is not amax / largest value"):
        read_back(tmp_path / "m.onnx", [row], amax, {"layer": weight})


def test_scales_that_are_no_powers_of_two_have_no_such_operator(tmp_path):
    weight = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    row = row_of("layer.weight", weight.shape, fmt="fp8", block=BLOCK)
    model, _ = site_model("weight", weight.shape, weight)
    plain = insert(model, [row], {row.site: find_amax(row, weight=weight)})
    with pytest.raises(PreconditionError, match="no power of two"):
        own_operators(plain, [row], {"fp8": "TRT_MXFP8DequantizeLinear"})


def test_the_block_lies_along_the_axis_that_the_product_sums_over():
    along = PerBlock(size=32, axis=0)
    assert block_of(MXFP8, along, Site("m", "weight", (64, 10), 1)) == (32, 1)
    assert block_of(MXFP8, PerBlock(shape=(1, 32)), Site("m", "weight", (10, 64), 0)) == (1, 32)
    with pytest.raises(DoesNotApply, match="along axis 0, over which the product sums"):
        block_of(MXFP8, PerBlock(size=32, axis=1), Site("m", "weight", (64, 64), 1))
    with pytest.raises(DoesNotApply, match=r"^per_channel: mxfp8 has one scale"):
        block_of(MXFP8, PerChannel(), Site("m", "weight", (64, 64), 0))


def test_tensorrt_rtx_has_it_where_it_has_fp8():
    table = load_table("tensorrt_rtx")
    for target, kind in (("sm86", "refused"), ("sm89", "native"), ("sm120", "native")):
        cell = Cell("linear", "mxfp8", weight="per_block(in)", size=32, targets=(target,))
        assert cell_promise(table, cell).kind == kind


NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, stride=2, padding=1)
        self.first = nn.Linear(48, 64)
        self.second = nn.Linear(64, 32)
        self.third = nn.Linear(32, 4)

    def forward(self, image):
        x = self.first(self.conv(image).flatten(1)).relu()
        return self.third(self.second(x).relu())
"""
BLOCKS = {"per_block": {"size": 32, "axis": 1}}


def asked(match, **weight):
    return {
        "model": {"callable": "net.py:Net"},
        "defaults": {"format": "float"},
        "rules": [
            {"match": match, "weight": {"format": "mxfp8", **weight}, "input": "float",
             "half": "allow"}
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("match", "weight", "at", "said"),
    [
        ({"name": "conv"}, {"granularity": BLOCKS}, "format",
         "'conv': mxfp8: it is for the weights of linear layers, and this one is of shape "
         "[3, 1, 3, 3]; use another format"),
        ({"name": "first"}, {"granularity": BLOCKS}, "format",
         "'first': mxfp8: it has blocks of 32 values, and 32 does not divide axis 1 of [64, 48]; use "
         "another format"),
        ({"name": "second"}, {"granularity": {"per_block": {"size": 16, "axis": 1}}}, "granularity",
         "'second': per_block(size 16, axis 1): mxfp8 has one scale for each 32 values along axis 1, "
         "over which the product sums; write granularity: {per_block: {size: 32, axis: 1}}"),
        ({"name": "second"}, {}, "format",
         "'second': per_tensor: mxfp8 has one scale for each 32 values along axis 1, over which the "
         "product sums; write granularity: {per_block: {size: 32, axis: 1}}"),
    ],
)  # fmt: skip
def test_what_it_cannot_be_is_refused_at_its_line(project, match, weight, at, said):
    project.write("net.py", NET)
    path = project.recipe(**asked(match, **weight))
    done = run_main("plan", path, "--out", project.out)
    line = next(
        n for n, text in enumerate(path.read_text().splitlines(), 1)
        if f" {at}:" in text and "float" not in text
    )  # fmt: skip
    assert done.code == 2
    where = re.escape(f"{path}:{line}:")
    assert re.match(where + r"\d+: " + re.escape(said), done.stderr.strip().splitlines()[-1]), (
        done.stderr
    )


def test_an_input_of_it_is_refused(project):
    project.write("net.py", NET)
    recipe = {**asked({"name": "second"}), "rules": [{"match": {"name": "second"}, "format": "mxfp8",
              "weight": BLOCKS}]}  # fmt: skip
    done = run_main("plan", project.recipe(**recipe), "--out", project.out)
    assert (
        "mxfp8: it is for weights alone; say input: {format: float} and half: allow" in done.stderr
    )


def test_a_recipe_of_it_is_built_honoured_and_reported(project):
    pytest.importorskip("tensorrt_rtx")
    project.write("net.py", NET)
    recipe = asked({"name": ["second", "third"]}, granularity=BLOCKS)
    project.recipe(**recipe, engines=["onnxruntime", "tensorrt_rtx", "openvino"])
    done = project.apply()
    assert done.code == 0, done.stderr
    (variant,) = [each for each in project.report().variants if each.kind == "recipe"]
    assert variant.quantized_sites == 2 and variant.scales == 32 * 2 + 4
    assert variant.agreement.oracle_differs == variant.agreement.modelopt_differs == 0
    told = {
        each.engine: {(v.promise, v.verdict, v.detail) for v in each.verdicts}
        for each in variant.engines
    }
    assert told["onnxruntime"] == set()
    assert told["tensorrt_rtx"] == {("native", "honoured", "weight-only")}
    (openvino,) = [each for each in variant.engines if each.engine == "openvino"]
    assert {v.promise for v in openvino.verdicts} == {"simulated"}
    assert not openvino.held.wrong
    folder = project.out / "variants" / variant.name
    for file, op_type in (
        ("model.onnx", "DequantizeLinear"),
        ("tensorrt_rtx.onnx", "TRT_MXFP8DequantizeLinear"),
    ):
        found = [n.op_type for n in onnx.load(folder / file).graph.node if "Quant" in n.op_type]
        found += [n.op_type for n in onnx.load(folder / file).graph.node if "quant" in n.op_type]
        assert found == [op_type] * 2
