"""The float part in float16 or bfloat16: against the oracle, a reader, and TensorRT-RTX."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from test_lowering import CONV, DEPTHWISE, KINDS, LINEAR3, RNG, build, cases, inputs_of
from test_qdq import model_of, run

from granplugin import backends
from granplugin.backends.nvidia.build import Options
from granplugin.errors import Unhonoured
from granplugin.graph.edit.precision import LARGEST, convert, too_large
from granplugin.graph.edit.qdq import insert
from granplugin.graph.files import save
from granplugin.graph.read.agreement import agreement
from granplugin.graph.read.verify import read_back


def lower(path, rows, how, precision, x):
    """Convert a file in place of `model.onnx`; the new one and the nodes left in float32."""
    keep = too_large(path, {"x": x}) if precision == "fp16" else []
    low = path.with_name(f"{precision}.onnx")
    save(convert(path, precision, {row.site for row in rows}, keep), low)
    return low, keep


def tensors(path):
    return {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}


@settings(max_examples=80, deadline=None)
@given(cases(), st.sampled_from([1e-7, 1e-3, 1.0, 1e3]))
def test_in_float16_every_site_is_still_the_oracles_and_the_result_finite(
    tmp_path_factory, case, magnitude
):
    """Among them rows of zeros, scales below float16's smallest number, values beyond its largest,
    and channels 14,000 times apart."""
    kind, how, granularity, fmt, weight, seed, batch = case
    path = tmp_path_factory.mktemp("case") / "model.onnx"
    x = inputs_of(RNG(seed), (batch, *kind.shape[1:])) * np.float32(magnitude)
    rows = kind.rows("layer", granularity, fmt, weight, fmt)
    asked = {"layer.input": how}
    w, _, amax = build(path, kind, rows, asked, x, seed)
    low, keep = lower(path, rows, asked, "fp16", x)
    weights = {"layer": w}
    read_back(low, rows, amax, weights, asked, "fp16", keep)
    compared = agreement(low, rows, amax, {"x": x}, None, asked, weights)
    assert compared.sites == 2 and compared.oracle_differs == 0
    (found,), (exact,) = run(low, {"x": x}), run(path, {"x": x})
    assert np.isfinite(found).all()
    # float16 has 11 bits, and nothing between 0 and 6e-8.
    ones = np.ones(exact.shape[-1 if kind.type == "Linear" else 1])
    sums = kind.compute(np.abs(x) + magnitude * 1e-4, np.abs(w), ones) + np.abs(exact)
    assert (np.abs(found - exact) <= 2**-8 * sums).all()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(KINDS), st.sampled_from(["int8", "fp8", "int4"]), st.integers(0, 9))
def test_a_lower_precision_changes_no_scale_and_no_stored_number(tmp_path_factory, kind, fmt, seed):
    path = tmp_path_factory.mktemp("case") / "model.onnx"
    rows = kind.rows("layer", "per_tensor", weight_fmt=fmt)
    x = inputs_of(RNG(seed), kind.shape)
    w, _, amax = build(path, kind, rows, {}, x, seed)
    before = tensors(path)
    for precision in ("fp16", "bf16"):
        low, keep = lower(path, rows, {}, precision, x)
        read_back(low, rows, amax, {"layer": w}, {}, precision, keep)
        after = tensors(low)
        for name in (name for name in before if name.startswith(("layer.input/", "layer.weight/"))):
            assert after[name] == before[name], name
        types = {value.type.tensor_type.elem_type for value in onnx.load(low).graph.output}
        assert types == {TensorProto.FLOAT}


def test_bfloat16_constants_are_rounded_from_float32_once(tmp_path):
    rows = CONV.rows("layer", "per_tensor")
    x = inputs_of(RNG(0), CONV.shape)
    _, bias, _ = build(tmp_path / "model.onnx", CONV, rows, {}, x)
    low, _ = lower(tmp_path / "model.onnx", rows, {}, "bf16", x)
    stored = numpy_helper.to_array(tensors(low)["layer.b"])
    assert (stored == bias.astype(stored.dtype)).all() and stored.dtype.name == "bfloat16"


def test_a_layer_beyond_float16_stays_float32_and_is_finite(tmp_path):
    rows = LINEAR3.rows("layer", "per_tensor")
    x = np.full(LINEAR3.shape, 1e6, np.float32)
    w, _, amax = build(tmp_path / "model.onnx", LINEAR3, rows, {}, x)
    low, keep = lower(tmp_path / "model.onnx", rows, {}, "fp16", x)
    assert "layer/MatMul" in keep
    read_back(low, rows, amax, {"layer": w}, {}, "fp16", keep)
    agreement(low, rows, amax, {"x": x})
    (found,), (exact,) = run(low, {"x": x}), run(tmp_path / "model.onnx", {"x": x})
    assert np.isfinite(found).all() and np.allclose(found, exact, rtol=1e-3)
    assert np.abs(exact).max() > LARGEST


@pytest.mark.parametrize("mask", [-np.inf, np.finfo(np.float32).min])
def test_a_mask_is_no_reason_for_float32(tmp_path, mask):
    """What an attention mask adds stands for minus infinity, and softmax makes 0 of it."""
    nodes = [
        helper.make_node("Where", ["seen", "zero", "mask"], ["added"], name="where"),
        helper.make_node("Add", ["x", "added"], ["scores"], name="add"),
        helper.make_node("Softmax", ["scores"], ["y"], name="softmax"),
    ]
    constants = {
        "seen": np.array([True, False, True]),
        "zero": np.float32(0),
        "mask": np.array(mask, np.float32),
    }
    save(model_of(nodes, {"x": ["n", 3]}, {"y": ["n", 3]}, constants), tmp_path / "m.onnx")
    x = RNG(0).standard_normal((2, 3), dtype=np.float32)
    low, keep = lower(tmp_path / "m.onnx", [], {}, "fp16", x)
    assert keep == []
    (found,), (exact,) = run(low, {"x": x}), run(tmp_path / "m.onnx", {"x": x})
    assert np.allclose(found, exact, atol=1e-3) and (found[:, 1] == 0).all()


def test_a_scale_below_float16_is_kept(tmp_path):
    rows = LINEAR3.rows("layer", "per_tensor")
    pinned = {"layer.input": np.full((1, 1, 1), 1e-6, np.float32)}
    x = RNG(0).standard_normal(LINEAR3.shape, dtype=np.float32)
    w, _, amax = build(tmp_path / "model.onnx", LINEAR3, rows, {}, 1e-9 * x)
    amax = {**amax, **pinned}
    model = model_of(
        LINEAR3.nodes("layer", "x", "y"),
        {"x": ["n", *LINEAR3.shape[1:]]},
        {"y": [None] * 3},
        LINEAR3.weights(RNG(0), "layer"),
    )
    path = tmp_path / "model.onnx"
    save(insert(model, rows, amax), path)
    low, keep = lower(path, rows, {}, "fp16", x)
    read_back(low, rows, amax, {"layer": w}, {}, "fp16", keep)
    scale = numpy_helper.to_array(tensors(low)["layer.input/scale"])
    assert scale.dtype == np.float32 and 0 < scale < 6e-8


def test_a_file_that_was_not_converted_is_not_taken_for_one(tmp_path):
    rows = CONV.rows("layer", "per_tensor")
    x = inputs_of(RNG(0), CONV.shape)
    w, _, amax = build(tmp_path / "model.onnx", CONV, rows, {}, x)
    with pytest.raises(Unhonoured, match=r"layer/Conv: multiplies in FLOAT, not FLOAT16"):
        read_back(tmp_path / "model.onnx", rows, amax, {"layer": w}, {}, "fp16")


RTX = backends.backend_of("tensorrt_rtx")


@pytest.mark.skipif(RTX.unavailable() is not None, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(
    ("kind", "how", "granularity"),
    [
        (CONV, None, "per_tensor"),
        (LINEAR3, "lower", "per_token"),
        (LINEAR3, "dynamic", "per_token"),
        (DEPTHWISE, "lower", {"per_channel": {"axis": 1}}),
        (CONV, "lower", {"per_channel": {"axis": 1}}),
    ],
)
def test_rtx_has_int8_kernels_in_a_graph_of_low_precision(
    tmp_path, kind, how, granularity, precision
):
    rows = kind.rows("layer", granularity)
    x = inputs_of(RNG(0), kind.shape)
    asked = {"layer.input": how} if how else {}
    build(tmp_path / "model.onnx", kind, rows, asked, x)
    low, _ = lower(tmp_path / "model.onnx", rows, asked, precision, x)
    engine = RTX.build(low, tmp_path / "engine", Options(batch=2))
    (layer,) = RTX.layers(engine)
    assert layer.precision == "int8"
