"""Q/DQ of every producer are taken out of a file, and what is left is the float network."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from qdq_styles import PATTERNS, STYLES, Built, styled
from test_onnx_source import project, refused, rows  # noqa: F401
from test_producers import INT8, SYMMETRIC, Samples, plain  # noqa: F401

from granplugin.errors import ModelError
from granplugin.graph.read.graph import dequantizes, quantizes
from granplugin.graph.read.loading import with_subgraphs
from granplugin.network.onnx_file import float_model


class Float(Built):
    """The patterns without Q/DQ."""

    def pair(self, x: str, scale: np.ndarray, name: str, **said) -> str:
        return x


class Rounded(Float):
    """The same, with the weights that integers stand for."""

    def of_weight(self, values: np.ndarray, scale: np.ndarray, axis: int) -> str:
        along = [-1 if at == axis else 1 for at in range(values.ndim)]
        scale = scale.reshape(along)
        return self.held(np.clip(np.rint(values / scale), -127, 127).astype(np.float32) * scale)


def stripped(model: onnx.ModelProto, folder):
    onnx.save(model, folder / "q.onnx")
    return float_model(folder / "q.onnx", strip=True)


def computed(model: onnx.ModelProto) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    random = np.random.default_rng(0)
    feeds = {
        value.name: random.standard_normal([n or 2 for n in value.shape]).astype(np.float32)
        for value in session.get_inputs()
    }
    return session.run(None, feeds)


def test_what_is_left_of_any_producers_file_is_the_float_network(tmp_path):
    for at, pattern in enumerate(PATTERNS):
        style = list(STYLES)[at % len(STYLES)]
        found = stripped(styled(pattern, style), tmp_path)
        nodes = list(with_subgraphs(found.model.graph.node))
        assert not any(quantizes(node) or dequantizes(node) for node in nodes)
        built = (Rounded if style == "onnxruntime" else Float)()
        expected = computed(built.model(PATTERNS[pattern](built)))
        for left, right in zip(computed(found.model), expected, strict=True):
            assert left.tobytes() == right.tobytes(), (pattern, style)


def sqnr(signal: np.ndarray, other: np.ndarray) -> float:
    return 10 * np.log10((signal**2).mean() / ((signal - other) ** 2).mean())


@pytest.mark.parametrize(
    "how", [{}, {**INT8, "extra_options": SYMMETRIC}, {"activation_type": QuantType.QUInt16}]
)
def test_what_onnxruntime_makes_of_a_network_is_that_network_again(plain, tmp_path, how):  # noqa: F811
    quantize_static(plain, tmp_path / "q.onnx", Samples(), **how)
    found = float_model(tmp_path / "q.onnx", strip=True)
    model = onnx.load(plain)
    (left,), (right,) = computed(model), computed(found.model)
    assert sqnr(left, right) > 30
    relus = [
        sum(node.op_type == "Relu" for node in each.graph.node) for each in (model, found.model)
    ]
    assert relus[0] == relus[1] == 2, "a Q from zero up stands for a Relu"
    assert found.stripped.dequantized == 5


def test_blocks_of_4_bits_and_own_operators_are_what_they_stand_for(tmp_path):
    values = np.arange(-8, 8, dtype=np.float32).repeat(4).reshape(2, 32)
    scales = np.array([[1, 2], [4, 8]], np.float32)
    int4 = numpy_helper.from_array(values.astype(ml_dtypes.int4), "q4")
    fp8 = numpy_helper.from_array(values.astype(ml_dtypes.float8_e4m3fn), "q8")
    nodes = [
        helper.make_node("DequantizeLinear", ["q4", "s"], ["a"], axis=1, block_size=16),
        helper.make_node("TRT_FP8DequantizeLinear", ["q8", "t"], ["b"], domain="trt"),
        helper.make_node("Add", ["a", "b"], ["w"]),
        helper.make_node("Gemm", ["x", "w"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [
            int4,
            fp8,
            numpy_helper.from_array(scales, "s"),
            numpy_helper.from_array(np.float32(0.5), "t"),
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("trt", 1)]
    found = stripped(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path)
    held = {each.name: numpy_helper.to_array(each) for each in found.model.graph.initializer}
    assert (held["a"] == values * scales.repeat(16, 1)).all()
    assert (held["b"] == values / 2).all()


def test_what_cannot_be_stripped_is_refused_with_its_node(tmp_path, plain):  # noqa: F811
    model = styled("linear", "modelopt")
    wrong = next(node for node in model.graph.node if node.op_type == "DequantizeLinear")
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "other"))
    wrong.input[1] = "other"
    with pytest.raises(ModelError, match="another scale"):
        stripped(model, tmp_path)
    quantize_static(plain, tmp_path / "i.onnx", Samples(), quant_format=QuantFormat.QOperator)
    with pytest.raises(ModelError, match="compute with integers"):
        float_model(tmp_path / "i.onnx", strip=True)
    with pytest.raises(ModelError, match="no Q/DQ in it to strip"):
        float_model(plain, strip=True)


def test_a_recipe_that_strips_says_so_in_its_plan(project):  # noqa: F811
    project("g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }")
    net = project.folder / "net.onnx"
    onnx.save(styled("linear", "onnxruntime"), net)
    refused(project.again(), "r.yaml:", "strip: true")
    done = project.again(model={"onnx": "net.onnx", "strip": True})
    assert {row["format"] for row in rows(done).values()} == {"int8", "float"}
    (note,) = json.loads(done.stdout)["notes"]
    assert note.startswith("4 DequantizeLinear and 2 QuantizeLinear are stripped"), note
