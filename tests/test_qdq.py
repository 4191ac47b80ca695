"""Q/DQ insertion on small graphs, against the oracle, ONNX Runtime and a reader of its own."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from plan_values import quantized_row

from granplugin.errors import ModelError, Unhonoured
from granplugin.graph.edit.qdq import insert
from granplugin.graph.files import load_float, save
from granplugin.graph.read.agreement import agreement
from granplugin.graph.read.loading import read_model
from granplugin.graph.read.quantized_graph import read_quantized
from granplugin.graph.read.verify import read_back
from granplugin.quant.formats import FORMATS, fake_quantize, scale_of
from granplugin.quant.granularity import (
    DoesNotApply,
    PerBlock,
    grid,
    parse_granularity,
    reduce_blocks,
)
from granplugin.quant.site import Site


def marker(value, site):
    return helper.make_node("Site", [value], [site], domain="granplugin", site=site)


def model_of(nodes, inputs, outputs, constants):
    """An onnx_ir model from nodes, {input: shape}, {output: shape} and {name: array}."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("granplugin", 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def row_of(site, shape, granularity="per_tensor", fmt="int8", block=None):
    axis = 0 if site.endswith(".weight") else 1
    return quantized_row(site, shape, granularity, fmt, axis, block, type="")


def run(path, feeds, *names):
    """The named values as ONNX Runtime computes them without optimizations."""
    model = onnx.load(path)
    known = {value.name for value in model.graph.output}
    for name in set(names) - known:
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(list(names) or None, feeds)


def ops(path):
    return [node.op_type for node in onnx.load(path).graph.node]


# -- every granularity, rank, shape and format ------------------------------------------------

LENGTHS = st.sampled_from([1, 2, 3, 4, 6])


@st.composite
def cases(draw):
    """(shape, role, block, format, amax): a site with any block shape a granularity can give."""
    role = draw(st.sampled_from(["weight", "input"]))
    rank = draw(st.integers(2, 4))
    shape = tuple(draw(LENGTHS) for _ in range(rank))
    shape = shape if role == "weight" else (1, *shape[1:])
    parts = [draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0])) for n in shape]
    axis = draw(st.integers(0 if role == "weight" else 1, rank - 1))
    granularity = draw(
        st.sampled_from(
            [
                "per_tensor",
                "per_element",
                "per_token",
                {"per_channel": {"axis": axis}},
                {"per_block": {"size": parts[axis], "axis": axis}},
                {"per_block": {"shape": parts}},
            ]
        )
    )
    try:
        block = parse_granularity(granularity).block(Site("layer", role, shape, rank - 1))
    except DoesNotApply:
        block = tuple(parts)
    fmt = draw(st.sampled_from(sorted(FORMATS)))
    seed = draw(st.integers(0, 2**16))
    batch = draw(st.sampled_from([1, 2, 7]))
    return shape, role, block, fmt, seed, batch


def values(rng, shape, largest):
    """Normal values, values between two steps exactly, and some beyond the range."""
    x = rng.standard_normal(shape).astype(np.float32)
    halves = rng.integers(-2 * largest - 4, 2 * largest + 4, shape).astype(np.float32) / 2
    return np.where(rng.random(shape) < 0.5, x, halves)


def site_model(role, shape, weight):
    """A graph whose one layer has one marker, and the input's shape without its batch."""
    if role == "input":
        nodes = [marker("x", "layer.input"), helper.make_node("Neg", ["layer.input"], ["y"])]
        inputs, constants = shape[1:], {}
    else:
        inputs, constants = shape[1:], {"w": weight}
        nodes = [marker("w", "layer.weight")]
        if len(shape) == 2:
            nodes.append(helper.make_node("Transpose", ["layer.weight"], ["t"], perm=[1, 0]))
            nodes.append(helper.make_node("MatMul", ["x", "t"], ["y"]))
        else:
            kernel = shape[2:]
            nodes.append(
                helper.make_node("Conv", ["x", "layer.weight"], ["y"], kernel_shape=kernel)
            )
    for node in nodes:
        node.name = f"layer/{node.op_type}"
    rank = len(shape)
    return model_of(nodes, {"x": ["n", *inputs]}, {"y": [None] * rank}, constants), inputs


@settings(max_examples=150, deadline=None)
@given(cases())
def test_onnx_runtime_computes_what_the_oracle_does(tmp_path_factory, case):
    shape, role, block, fmt, seed, batch = case
    rng = np.random.default_rng(seed)
    largest = int(FORMATS[fmt].largest)
    weight = values(rng, shape, largest)
    amax = rng.choice([largest, 1.0, 3.3], grid(shape, block)).astype(np.float32)
    amax *= rng.choice([1, 1, 0.37], amax.shape).astype(np.float32)
    model, inputs = site_model(role, shape, weight)
    site = f"layer.{role}"
    row = row_of(site, shape, fmt=fmt, block=block)
    path = tmp_path_factory.mktemp("case") / "model.onnx"
    save(insert(model, [row], {site: amax}), path)

    read_back(path, [row], {site: amax}, {"layer": weight})
    x = values(rng, (batch, *inputs), largest)
    given = weight if role == "weight" else x
    (node,) = [n for n in onnx.load(path).graph.node if n.op_type == "DequantizeLinear"]
    (found,) = run(path, {"x": x}, node.output[0])
    expected = fake_quantize(given, scale_of(amax, FORMATS[fmt]), block, FORMATS[fmt])
    assert found.tobytes() == expected.tobytes()
    assert agreement(path, [row], {site: amax}, {"x": x}).values == given.size
    if role == "input":
        assert (run(path, {"x": x})[0] == -expected).all()


# -- one graph with all there is ----------------------------------------------------------------


def network():
    """x -> conv -> three linear layers on one tensor; every tensor is marked."""
    rng = np.random.default_rng(0)
    constants = {
        "conv_w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "shape": np.array([-1, 16], np.int64),
        **{f"{k}_w": rng.standard_normal((16, 16)).astype(np.float32) for k in "qkv"},
    }
    nodes = [
        marker("x", "conv.input"),
        marker("conv_w", "conv.weight"),
        helper.make_node(
            "Conv", ["conv.input", "conv.weight"], ["c"], "conv/Conv", kernel_shape=[3, 3]
        ),
        marker("c", "conv.output"),
        helper.make_node("Reshape", ["conv.output", "shape"], ["flat"], "Reshape"),
    ]
    for k in "qkv":
        nodes += [
            marker("flat", f"{k}.input"),
            marker(f"{k}_w", f"{k}.weight"),
            helper.make_node(
                "Gemm", [f"{k}.input", f"{k}.weight"], [f"{k}_y"], f"{k}/Gemm", transB=1
            ),
            marker(f"{k}_y", f"{k}.output"),
        ]
    outputs = {f"{k}.output": ["n", 16] for k in "qkv"}
    return model_of(nodes, {"x": ["n", 3, 4, 4]}, outputs, constants), constants


def test_both_activations_of_a_product_are_quantized_where_it_reads_them(tmp_path):
    nodes = [
        marker("q", "scores.input"),
        marker("k", "scores.other"),
        helper.make_node("MatMul", ["scores.input", "scores.other"], ["y"], "scores/MatMul"),
    ]
    model = model_of(nodes, {"q": ["n", 3, 4], "k": ["n", 4, 5]}, {"y": ["n", 3, 5]}, {})
    rows = [
        quantized_row("scores.input", (1, 3, 4), channel_axis=2, type="MatMul"),
        quantized_row("scores.other", (1, 4, 5), "per_channel", channel_axis=2, type="MatMul"),
    ]
    amax = {row.site: np.full(row.grid, 2.5, np.float32) for row in rows}
    save(insert(model, rows, amax), tmp_path / "m.onnx")
    read_back(tmp_path / "m.onnx", rows, amax, {})
    rng = np.random.default_rng(0)
    feeds = {
        n: rng.standard_normal(s).astype("f4") for n, s in {"q": (2, 3, 4), "k": (2, 4, 5)}.items()
    }
    assert agreement(tmp_path / "m.onnx", rows, amax, feeds).sites == 2
    with pytest.raises(Unhonoured, match=r"scores\.other: should be int8, and is not"):
        save(insert(model, rows[:1], amax), tmp_path / "half.onnx")
        read_back(tmp_path / "half.onnx", rows, amax, {})
    found = read_quantized(read_model(tmp_path / "m.onnx"), tmp_path / "m.onnx")
    assert [(row.operand, row.granularity) for row in found.rows] == [
        ("input", "per_tensor"), ("other", "per_channel(axis 2)"),
    ]  # fmt: skip


def network_rows(granularity="per_channel"):
    rows = [
        row_of("conv.input", (1, 3, 4, 4)),
        row_of("conv.weight", (4, 3, 3, 3), granularity),
    ]
    for k in "qkv":
        rows += [row_of(f"{k}.input", (1, 16)), row_of(f"{k}.weight", (16, 16), granularity)]
    return rows


def network_amax(rows, constants):
    return {
        row.site: reduce_blocks(np.abs(constants[f"{row.layer}_w"]), row.block)
        if row.operand == "weight"
        else np.full(row.grid, 3.0, np.float32)
        for row in rows
    }


@pytest.fixture
def written(tmp_path):
    """(path, rows, amax, weights) of the network under the default granularity."""
    model, constants = network()
    rows = network_rows()
    amax = network_amax(rows, constants)
    save(insert(model, rows, amax), tmp_path / "model.onnx")
    weights = {layer: constants[f"{layer}_w"] for layer in ("conv", *"qkv")}
    return tmp_path / "model.onnx", rows, amax, weights


def test_equal_input_gives_equal_bytes_and_is_left_alone(tmp_path):
    model, constants = network()
    save(model, tmp_path / "before.onnx")
    rows = network_rows()
    for name in "ab":
        save(insert(model, rows, network_amax(rows, constants)), tmp_path / name)
    save(model, tmp_path / "after.onnx")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "before.onnx").read_bytes() == (tmp_path / "after.onnx").read_bytes()
    assert (tmp_path / "a").read_bytes() == _bytes(load_float(tmp_path / "after.onnx"), tmp_path)


def _bytes(model, folder):
    rows = network_rows()
    save(insert(model, rows, network_amax(rows, network()[1])), folder / "c")
    return (folder / "c").read_bytes()


def test_scales_and_integers_follow_from_the_file_and_the_weights(written):
    path, _, _, weights = written
    graph = onnx.load(path).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in arrays:
            stored, scale, zero = (arrays[name] for name in node.input)
            weight = weights[node.name.split(".")[0]]
            by_channel = (-1, *[1] * (weight.ndim - 1))
            largest = np.abs(weight).max(axis=tuple(range(1, weight.ndim)))
            assert stored.dtype == zero.dtype == np.int8 and not zero.any()
            assert (scale == largest / np.float32(127)).all()
            assert (stored == np.rint(weight / scale.reshape(by_channel))).all()
    assert not [a for a in arrays.values() if a.dtype == np.float32 and a.size > 16]


def test_layers_that_read_one_tensor_with_one_scale_share_its_qdq(written):
    path, rows, amax, _ = written
    assert ops(path).count("QuantizeLinear") == 2  # conv.input and what q, k and v read
    model, _ = network()
    save(insert(model, rows, {**amax, "k.input": np.float32([[1.0]])}), path)
    assert ops(path).count("QuantizeLinear") == 3


def test_a_site_without_amax_or_row_stays_float_and_no_marker_is_left(written):
    path, rows, amax, weights = written
    model, _ = network()
    amax = {**amax, "q.input": None}
    save(insert(model, rows, amax), path)
    read_back(path, rows, amax, weights)
    assert [n.input[0] for n in onnx.load(path).graph.node if n.name == "q/Gemm"] == ["flat"]
    save(insert(model, [], {}), path)
    assert ops(path) == ["Conv", "Reshape", "Gemm", "Gemm", "Gemm"]
    assert [o.domain for o in onnx.load(path).opset_import] == [""]


def test_outputs_keep_their_names_where_they_are_quantized_or_marked(written):
    path, rows, amax, weights = written
    model, _ = network()
    rows = [*rows, row_of("q.output", (1, 16)), row_of("conv.output", (1, 4, 2, 2))]
    amax |= {"q.output": np.float32([[2.0]]), "conv.output": np.float32([[[[2.0]]]])}
    save(insert(model, rows, amax), path)
    read_back(path, rows, amax, weights)
    outputs = [value.name for value in onnx.load(path).graph.output]
    assert outputs == ["q.output", "k.output", "v.output"]
    assert run(path, {"x": np.ones((5, 3, 4, 4), np.float32)})[0].shape == (5, 16)


def test_an_output_that_is_an_input_or_another_output_stays_an_output(tmp_path):
    nodes = [marker("x", "a.input"), marker("x", "b.input")]
    model = model_of(nodes, {"x": ["n", 2]}, {"a.input": ["n", 2], "b.input": ["n", 2]}, {})
    save(insert(model, [], {}), tmp_path / "model.onnx")
    x = np.float32([[1, 2]])
    assert all((y == x).all() for y in run(tmp_path / "model.onnx", {"x": x}))


def test_equal_weights_the_exporter_merged_get_their_own_scales(tmp_path):
    model, constants = network()
    for node in model.graph:
        if node.domain == "granplugin" and node.attributes["site"].as_string() == "k.weight":
            node.replace_input_with(0, model.graph.initializers["q_w"])
    weights = {k: constants["q_w" if k == "k" else f"{k}_w"] for k in ("conv", *"qkv")}
    rows = [
        dataclasses.replace(row, granularity=PerBlock(shape=(1, 4)))
        if row.site == "k.weight"
        else row
        for row in network_rows()
    ]
    amax = network_amax(rows, {f"{k}_w": w for k, w in weights.items()})
    save(insert(model, rows, amax), tmp_path / "model.onnx")
    read_back(tmp_path / "model.onnx", rows, amax, weights)


# -- a file that does not say what the plan says ----------------------------------------------


def node_named(graph, name):
    return next(node for node in graph.node if node.name == name)


def edit(graph, name, change):
    """Replace an initializer by change(array)."""
    for tensor in graph.initializer:
        if tensor.name == name:
            array = change(numpy_helper.to_array(tensor).copy())
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(array), name))


def _axis(graph):
    edit(graph, "zero_point/int8_4", lambda a: np.zeros(3, np.int8))
    edit(graph, "conv.weight/scale", lambda a: a[:3])
    node_named(graph, "conv.weight/DequantizeLinear").attribute[0].i = 1


def _square_axis(graph):
    node_named(graph, "q.weight/DequantizeLinear").attribute[0].i = 1


def _halved(graph):
    edit(graph, "conv.input/scale", lambda a: a / 2)


def _one_halved(graph):
    edit(graph, "q.weight/scale", lambda a: np.append(a[:-1], a[-1] / 2))


def _negative(graph):
    edit(graph, "conv.input/scale", lambda a: -a)


def _vector_of_one(graph):
    edit(graph, "conv.input/scale", lambda a: a.reshape(1))
    edit(graph, "zero_point/int8", lambda a: a.reshape(1))


def _zero_point(graph):
    edit(graph, "zero_point/int8", lambda a: a + 1)


def _swapped(graph):
    one, two = (node_named(graph, f"{k}.weight/DequantizeLinear") for k in "qk")
    one.input[1], two.input[1] = two.input[1], one.input[1]


def _one_integer(graph):
    edit(graph, "v.weight/int8", lambda a: np.where(np.arange(a.size).reshape(a.shape), a, a - 1))


def _no_dq(graph):
    node = node_named(graph, "conv.input/DequantizeLinear")
    node_named(graph, "conv/Conv").input[0] = node.input[0]
    graph.node.remove(node)


def _no_qdq(graph):
    node_named(graph, "conv/Conv").input[0] = "x"


def _bypassed_by_one(graph):
    node_named(graph, "k/Gemm").input[0] = "flat"


def _float_weight(graph):
    graph.initializer.append(numpy_helper.from_array(network()[1]["q_w"], "float"))
    node_named(graph, "q/Gemm").input[1] = "float"


def _one_more(graph):
    add = [
        helper.make_node(op, [x, "conv.input/scale", "zero_point/int8"], [y], f"more/{op}")
        for op, x, y in (("QuantizeLinear", "c", "more_q"), ("DequantizeLinear", "more_q", "more"))
    ]
    reshape = node_named(graph, "Reshape")
    at = list(graph.node).index(reshape)
    reshape.input[0] = "more"
    for node in reversed(add):
        graph.node.insert(at, node)


def _wired_elsewhere(graph):
    relu = helper.make_node("Relu", ["conv.input/DequantizeLinear"], ["r"], "other/Relu")
    graph.node.append(relu)
    graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, ["n", 3, 4, 4]))


MUTATIONS = [
    _axis, _square_axis, _halved, _one_halved, _negative, _vector_of_one, _zero_point, _swapped,
    _one_integer, _no_dq, _no_qdq, _bypassed_by_one, _float_weight, _one_more, _wired_elsewhere,
]  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_a_changed_file_is_unhonoured(written, mutation):
    path, rows, amax, weights = written
    read_back(path, rows, amax, weights)
    model = onnx.load(path)
    mutation(model.graph)
    onnx.save(model, path)
    with pytest.raises(Unhonoured):
        read_back(path, rows, amax, weights)


@pytest.mark.parametrize("granularity", ["per_element", {"per_block": {"size": 4}}])
def test_changed_blocks_are_unhonoured(tmp_path, granularity):
    model, constants = network()
    weights = {layer: constants[f"{layer}_w"] for layer in ("conv", *"qkv")}
    rows = [r for r in network_rows() if r.layer == "q"]
    rows[1] = row_of("q.weight", (16, 16), granularity)
    rows[0] = row_of("q.input", (1, 16), "per_element")
    amax = network_amax(rows, constants)
    path = tmp_path / "model.onnx"
    save(insert(model, rows, amax), path)
    read_back(path, rows, amax, weights)
    changed = onnx.load(path)
    edit(changed.graph, "q.weight/scale", lambda scale: scale[::-1])
    onnx.save(changed, path)
    with pytest.raises(Unhonoured, match="q.weight: a scale is not"):
        read_back(path, rows, amax, weights)


def test_reading_an_output_before_its_qdq_is_unhonoured(written):
    path, rows, amax, weights = written
    rows = [*rows, row_of("conv.output", (1, 4, 2, 2))]
    amax |= {"conv.output": np.float32([[[[2.0]]]])}
    save(insert(network()[0], rows, amax), path)
    read_back(path, rows, amax, weights)
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Relu", ["c"], ["r"], "other/Relu"))
    model.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, ["n", 4, 2, 2]))
    onnx.save(model, path)
    with pytest.raises(Unhonoured, match="conv.output"):
        read_back(path, rows, amax, weights)


@pytest.mark.parametrize("block, scales", [((4, 1), 64), ((1, 8), 32), ((2, 8), 32), ((16, 1), 16)])
def test_blocks_are_written_along_the_axis_that_takes_the_fewest_scales(tmp_path, block, scales):
    model, constants = network()
    row = row_of("q.weight", (16, 16), block=block)
    save(insert(model, [row], network_amax([row], constants)), tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    (scale,) = [tensor for tensor in graph.initializer if "scale" in tensor.name]
    assert np.prod(scale.dims) == scales


# -- agreement ----------------------------------------------------------------------------------


def test_modelopt_may_round_a_tie_the_other_way_and_nothing_else(written):
    path, rows, amax, _ = written
    x = np.arange(2 * 48, dtype=np.float32).reshape(2, 3, 4, 4) * np.float32(3 / 127 / 2)

    def rounded(shift):
        def fake(x, row, amax):
            scale = amax.reshape(()) / np.float32(127)
            return np.clip(np.floor(x / scale + np.float32(shift)), -128, 127) * scale

        return fake

    found = agreement(path, rows, amax, {"x": x}, rounded(0.5))
    assert found.modelopt_worst_steps == 1 and 0 < found.modelopt_differs < found.values
    assert found.oracle_differs == 0 and found.sites == len(rows)
    with pytest.raises(Unhonoured, match="conv.input"):
        agreement(path, rows, amax, {"x": x}, rounded(0.0))


def test_a_wrong_scale_shows_in_the_agreement(written):
    path, rows, amax, _ = written
    model = onnx.load(path)
    _halved(model.graph)
    onnx.save(model, path)
    with pytest.raises(Unhonoured, match="conv.input"):
        agreement(path, rows, amax, {"x": np.ones((2, 3, 4, 4), np.float32)})


# -- zero padding -------------------------------------------------------------------------------


def padded(pads=(0, 0, 1, 1, 0, 0, 2, 2), fill=0.0, tap=False):
    nodes = [
        helper.make_node("Pad", ["x", "pads", "fill"], ["p"], "Pad", mode="constant"),
        marker("p", "conv.input"),
        marker("w", "conv.weight"),
        helper.make_node(
            "Conv", ["conv.input", "conv.weight"], ["y"], "conv/Conv",
            kernel_shape=[3, 3], auto_pad="NOTSET", pads=[0, 1, 0, 1], strides=[2, 2],
        ),
    ]  # fmt: skip
    outputs = {"y": ["n", 4, None, None]}
    if tap:
        nodes.append(helper.make_node("Relu", ["p"], ["tap"], "Relu"))
        outputs["tap"] = ["n", 2, None, None]
    weight = np.random.default_rng(1).standard_normal((4, 2, 3, 3)).astype(np.float32)
    constants = {"w": weight, "pads": np.array(pads), "fill": np.float32(fill)}
    return model_of(nodes, {"x": ["n", 2, 6, 6]}, outputs, constants)


PADDED_SHAPE = (1, 2, 9, 9)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_zero_padding_moves_into_the_convolution_and_changes_nothing(tmp_path, granularity):
    row = row_of("conv.input", PADDED_SHAPE, granularity)
    amax = {"conv.input": np.full(row.grid, 2.0, np.float32)}
    moved, kept = tmp_path / "moved.onnx", tmp_path / "kept.onnx"
    save(insert(padded(), [row], amax), moved)
    save(insert(padded(tap=True), [row], amax), kept)
    read_back(moved, [row], amax, {})
    assert "Pad" not in ops(moved) and "Pad" in ops(kept)
    x = np.random.default_rng(0).standard_normal((3, 2, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(run(moved, {"x": x})[0], run(kept, {"x": x})[0], atol=1e-6)
    assert agreement(moved, [row], amax, {"x": x}).values == x.size


@pytest.mark.parametrize(
    "graph, granularity",
    [
        (padded(tap=True), "per_tensor"),
        (padded(fill=1.0), "per_tensor"),
        (padded(pads=(0, 1, 0, 0, 0, 0, 0, 0)), "per_tensor"),
        (padded(pads=(0, 0, -1, 0, 0, 0, 0, 0)), "per_tensor"),
        (padded(), "per_element"),
    ],
)
def test_padding_stays_where_moving_it_is_not_exact(tmp_path, graph, granularity):
    row = row_of("conv.input", PADDED_SHAPE, granularity)
    amax = {"conv.input": np.full(row.grid, 2.0, np.float32)}
    save(insert(graph, [row], amax), tmp_path / "model.onnx")
    assert "Pad" in ops(tmp_path / "model.onnx")


def test_a_weight_that_is_computed_is_refused():
    model = model_of(
        [
            helper.make_node("Relu", ["w"], ["r"], "layer/Relu"),
            marker("r", "layer.weight"),
            helper.make_node("MatMul", ["x", "layer.weight"], ["y"], "layer/MatMul"),
        ],
        {"x": ["n", 4]},
        {"y": ["n", 4]},
        {"w": np.ones((4, 4), np.float32)},
    )
    row = row_of("layer.weight", (4, 4))
    with pytest.raises(ModelError, match="layer.weight is computed"):
        insert(model, [row], {"layer.weight": np.ones((1, 1), np.float32)})
