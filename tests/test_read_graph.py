"""Reading ONNX: one model of a graph, whatever the file's form, and damage told as such."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from qdq_files import Net, residual
from test_lowering import CONV, CONV1, DEPTHWISE, GROUPED, LINEAR2, LINEAR3, TRANSPOSED
from test_qdq import model_of as marked_model

from granplugin.errors import ModelError
from granplugin.graph.edit.qdq import insert
from granplugin.graph.files import save
from granplugin.graph.read.graph import read, read_graph
from granplugin.graph.read.layout import reshaped
from granplugin.graph.read.loading import read_model
from granplugin.graph.read.quantized_graph import read_quantized
from granplugin.quant.granularity import grid


def written(model, folder):
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def operands(path):
    """What is found, without what depends on how constants are called."""
    return [
        (o.row.site, o.row.shape, o.row.block, o.row.format, o.row.granularity, o.op_type)
        for o in read_quantized(read_model(path), path).operands
    ]


KINDS = [LINEAR2, LINEAR3, CONV, CONV1, GROUPED, DEPTHWISE, TRANSPOSED]


@st.composite
def plans(draw):
    """Some layers of one input with how each of their sites is quantized, None where it is not."""
    kind = draw(st.sampled_from(KINDS))
    said = {}
    for index in range(draw(st.integers(1, 3))):
        inputs = ["per_tensor", {"per_channel": {"axis": kind.channels}}, None]
        weights = ["per_tensor", "per_channel", "per_element", {"per_block": {"size": 1}}, None]
        formats = st.sampled_from(["int8", "fp8"])
        given, weight = draw(st.sampled_from(inputs)), draw(st.sampled_from(weights))
        said[f"layer.{index}"] = (given, weight, draw(formats), draw(formats))
    return kind, said


@settings(max_examples=80, deadline=None)
@given(plans())
def test_reading_a_written_file_finds_its_plans_rows_and_no_others(tmp_path_factory, case):
    kind, said = case
    nodes, constants, rows = [], {}, []
    for name, (given_, weight, given_format, weight_format) in said.items():
        nodes += kind.nodes(name, "x", f"{name}.y")
        constants |= kind.weights(np.random.default_rng(0), name)
        both = kind.rows(name, given_ or "per_tensor", given_format, weight or "per_tensor",
                         weight_format)  # fmt: skip
        rows += [row for row, asked in zip(both, (given_, weight), strict=True) if asked]
    outputs = {f"{name}.y": [None] * len(kind.shape) for name in said}
    model = marked_model(nodes, {"x": ["n", *kind.shape[1:]]}, outputs, constants)
    path = tmp_path_factory.mktemp("plan") / "model.onnx"
    save(insert(model, rows, {row.site: np.ones(row.grid, np.float32) for row in rows}), path)
    found = read_quantized(read_model(path), path)
    told = {found.site(o): (o.row.format, o.row.shape, o.row.grid) for o in found.operands}
    assert told == {row.site: (row.format, row.shape, row.grid) for row in rows}
    assert len(told) == len(found.operands) and not found.biases
    assert [product.values for product in found.graph.products] == [np.prod(kind.weight)] * len(
        said
    )


def with_constant_nodes(model, chosen):
    """The same model with these initializers in Constant nodes in front."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    held = [t for t in model.graph.initializer if t.name in chosen]
    nodes = [helper.make_node("Constant", [], [t.name], f"held/{t.name}", value=t) for t in held]
    del found.graph.initializer[:], found.graph.node[:]
    found.graph.initializer.extend(t for t in model.graph.initializer if t.name not in chosen)
    found.graph.node.extend([*nodes, *model.graph.node])
    return found


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_constant_node_reads_as_an_initializer_does(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("constants")
    model = residual(data.draw(st.sampled_from(["shared", "float", "own"])))
    names = [tensor.name for tensor in model.graph.initializer]
    chosen = data.draw(st.sets(st.sampled_from(names)))
    expected = operands(written(model, folder))
    path = written(with_constant_nodes(model, chosen), folder)
    assert operands(path) == expected
    graph = read(path)
    assert [product.values for product in graph.products] == [
        product.values for product in read_graph(model, path).products
    ]
    assert not any(node.op_type == "Constant" for node in graph.nodes)


@settings(max_examples=20, deadline=None)
@given(order=st.randoms())
def test_nodes_in_any_order_read_alike(tmp_path_factory, order):
    folder = tmp_path_factory.mktemp("order")
    model = residual()
    expected = operands(written(model, folder))
    nodes = list(model.graph.node)
    order.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert sorted(map(str, operands(written(model, folder)))) == sorted(map(str, expected))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_refused_or_read_and_nothing_else(tmp_path_factory, data):
    whole = residual("shared").SerializeToString()
    held = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(held) - 1))
        match data.draw(st.sampled_from(["byte", "cut", "drop", "twice"])):
            case "byte":
                held[at] = data.draw(st.integers(0, 255))
            case "cut":
                held = held[: at + 1]
            case "drop":
                del held[at : at + data.draw(st.integers(1, 40))]
                held = held or bytearray(b"\0")
            case "twice":
                held[at:at] = held[at : at + data.draw(st.integers(1, 40))]
    path = tmp_path_factory.mktemp("damaged") / "model.onnx"
    path.write_bytes(bytes(held))
    refused_or_read(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_nodes_are_refused_or_read_and_nothing_else(tmp_path_factory, data):
    model = residual("shared")
    nodes = model.graph.node
    for _ in range(data.draw(st.integers(1, 3))):
        node = data.draw(st.sampled_from(list(nodes)))
        match data.draw(st.sampled_from(["inputs", "outputs", "attributes", "type", "shape"])):
            case "inputs":
                del node.input[data.draw(st.integers(0, 3)) :]
            case "outputs":
                del node.output[:]
            case "attributes":
                for attribute in node.attribute:
                    attribute.CopyFrom(helper.make_attribute(attribute.name, [7, -7]))
            case "type":
                node.op_type = data.draw(
                    st.sampled_from(
                        ["Constant", "Transpose", "Reshape", "DequantizeLinear", "Loop"]
                    )
                )
            case "shape":
                tensor = data.draw(st.sampled_from(list(model.graph.initializer)))
                tensor.dims[:] = data.draw(st.lists(st.integers(-1, 2**40), max_size=3))
    refused_or_read(written(model, tmp_path_factory.mktemp("damaged")))


def refused_or_read(path):
    try:
        found = read_quantized(read_model(path), path)
        assert found.products is not None
        for operand in found.operands:
            assert found.site(operand)
    except ModelError as err:
        assert str(err).startswith(f"{path}: ") and "\n" not in str(err)


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([("Relu", "a", "a")], "node 'Relu' is computed from its own result"),
        ([("Relu", "b", "a"), ("Relu", "a", "b")], "is computed from its own result"),
        ([("Relu", "x", "a"), ("Abs", "x", "a")], "node 'Abs' gives 'a', which is given already"),
        ([("Relu", "nowhere", "a")], "node 'Relu' reads 'nowhere', which nothing gives"),
        ([("DequantizeLinear", "x", "a")], "has 1 inputs, and DequantizeLinear needs 2"),
    ],
)
def test_what_is_no_graph_is_refused_with_the_node(tmp_path, nodes, said):
    made = [helper.make_node(op, [x], [y], op) for op, x, y in nodes]
    path = written(model_of(made, "a"), tmp_path)
    with pytest.raises(ModelError, match="cannot be read: ") as err:
        read_quantized(read_model(path), path)
    assert said in str(err.value)


def model_of(nodes, output, **constants):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 8))],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


def test_long_chains_are_read_and_each_node_once(tmp_path):
    length = 3_000  # three times as deep as Python calls
    net = Net(half=False)
    x = net.qdq("x")
    for _ in range(length):
        x = net.node("Identity", x)
    net.node("MatMul", x, net.weight((64, 64), 1))
    for node in net.nodes[2 : length + 2]:
        node.name = "same"
    path = written(net.model(net.nodes[-1].output[0], ("n", 64)), tmp_path)
    assert [row[4] for row in operands(path)] == ["per_channel", "per_tensor"]


def test_a_chain_of_constants_is_computed_without_recursion(tmp_path):
    nodes = [helper.make_node("Neg", [f"c{i}"], [f"c{i + 1}"], f"n{i}") for i in range(1500)]
    graph = read(written(model_of(nodes, "c1500", c0=np.float32([1, 2])), tmp_path))
    assert graph.value("c1500").tolist() == [1, 2]


@pytest.mark.parametrize("shape", [[60_000, 60_000], [2**40], [2**20, 2**20, 2**20]])
def test_a_scale_too_large_to_compute_is_refused(tmp_path, shape):
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["scale"], "large"),
        helper.make_node("QuantizeLinear", ["x", "scale"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["d"], "dq"),
        helper.make_node("Relu", ["d"], ["y"], "relu"),
    ]
    path = written(model_of(nodes, "y", shape=np.array(shape)), tmp_path)
    with pytest.raises(ModelError, match=f"node 'large' makes a constant of {math.prod(shape):,}"):
        read_quantized(read_model(path), path)


def test_a_loop_is_never_run(tmp_path):
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Neg", ["s"], ["t"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, ()),
            helper.make_tensor_value_info("go", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, ()),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("t", TensorProto.FLOAT, ()),
        ],
    )
    nodes = [
        helper.make_node("Loop", ["many", "yes", "start"], ["scale"], "forever", body=body),
        helper.make_node("QuantizeLinear", ["x", "scale"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["d"], "dq"),
        helper.make_node("Relu", ["d"], ["y"], "relu"),
    ]
    model = model_of(nodes, "y", many=np.array(2**62), yes=np.array(True), start=np.float32(1))
    path = written(model, tmp_path)
    with pytest.raises(ModelError, match="node 'forever' is a Loop, which is not run"):
        read_quantized(read_model(path), path)


def test_functions_that_call_one_another_for_ever_are_refused(tmp_path):
    def function(name, *called):
        nodes = [
            helper.make_node(op, ["x"], [f"y{i}"], domain="own") for i, op in enumerate(called)
        ]
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
        return helper.make_function("own", name, ["x"], ["y0"], nodes, opsets)

    model = model_of([helper.make_node("f0", ["x"], ["y"], domain="own")], "y")
    model.opset_import.append(helper.make_opsetid("own", 1))
    twice = [function(f"f{i}", f"f{i + 1}", f"f{i + 1}") for i in range(40)]
    model.functions.extend([*twice, function("f40", "Relu")])
    with pytest.raises(ModelError, match=f"its functions stand for {2**40:,} nodes"):
        read_model(written(model, tmp_path))
    model.functions.append(function("f39", "f0"))
    del model.functions[39]
    with pytest.raises(ModelError, match="function 'f0' calls itself"):
        read_model(written(model, tmp_path))


@pytest.mark.parametrize("add", [False, True])
def test_a_bias_in_integers_is_no_operand(tmp_path, add):
    net = Net(half=False)
    bias = net.node("DequantizeLinear", net.constant(np.zeros(32, np.int32)), net.constant(
        np.full(32, 0.01, np.float32)), axis=0)  # fmt: skip
    weight = net.weight((64, 32), 1)
    if add:
        y = net.node("Add", net.node("MatMul", net.qdq("x"), weight), bias)
    else:
        y = net.node("Gemm", net.qdq("x"), weight, bias)
    path = written(net.model(y, ("n", 64)), tmp_path)
    found = read_quantized(read_model(path), path)
    assert {o.row.operand for o in found.operands} == {"weight", "input"}
    assert found.biases == (net.nodes[-1].name,)


@st.composite
def reshapes(draw):
    """(shape, block, the shape it becomes): the same prime factors, shared out anew."""
    factors = draw(st.lists(st.sampled_from([2, 2, 3, 5]), min_size=1, max_size=6))

    def shared_out():
        shape = [1] * draw(st.integers(1, 4))
        for factor in factors:
            shape[draw(st.integers(0, len(shape) - 1))] *= factor
        return tuple(shape)

    shape, after = shared_out(), shared_out()
    parts = [[d for d in range(1, n + 1) if n % d == 0] for n in shape]
    return shape, tuple(draw(st.sampled_from(each)) for each in parts), after


@settings(max_examples=200, deadline=None)
@given(reshapes())
def test_a_block_behind_a_reshape_is_that_of_the_same_values(case):
    shape, block, after = case
    index = np.arange(math.prod(grid(shape, block))).reshape(grid(shape, block))
    for axis, part in enumerate(block):
        index = np.repeat(index, part, axis)
    index = index.reshape(after)
    found = reshaped(shape, block, after)
    divisors = [[d for d in range(1, n + 1) if n % d == 0] for n in after]

    def fits(part):
        """Whether each block of this shape holds one scale, and no scale is in two."""
        firsts = index[tuple(slice(None, None, n) for n in part)]
        whole = firsts
        for axis, n in enumerate(part):
            whole = np.repeat(whole, n, axis)
        return (whole == index).all() and firsts.size == np.unique(index).size

    if found is not None:
        assert fits(found)
    else:
        assert not any(fits(part) for part in np.array(np.meshgrid(*divisors)).T.reshape(
            -1, len(after)).tolist())  # fmt: skip
