"""Verdicts follow the data: through what moves values, to the kernels that read them in 8 bits."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from qdq_files import Net
from test_audit import needs_rtx

from granplugin.graph.read.loading import read_model
from granplugin.graph.read.quantized_graph import read_quantized
from granplugin.pipelines.audit import audit


def ints(*values):
    return np.array(values, np.int64)


MOVES = {
    "Slice": lambda net, x: net.node("Slice", x, *map(net.constant, map(ints, (0, 16, 1)))),
    "Pad": lambda net, x: net.node("Pad", x, net.constant(ints(0, 0, 1, 1, 0, 0, 1, 1))),
    "reflect": lambda net, x: net.node(
        "Pad", x, net.constant(ints(0, 0, 1, 1, 0, 0, 1, 1)), mode="reflect"
    ),
    "MaxPool": lambda net, x: net.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]),
    "DepthToSpace": lambda net, x: net.node("DepthToSpace", x, blocksize=2),
    "Gather": lambda net, x: net.node("Gather", x, net.constant(ints(*range(16))), axis=1),
    "Mul": lambda net, x: net.node("Mul", x, net.constant(np.float32(2))),
    "shuffle": lambda net, x: net.node(
        "Reshape",
        net.node(
            "Transpose",
            net.node("Reshape", x, net.constant(ints(1, 2, 16, 8, 8))),
            perm=[0, 2, 1, 3, 4],
        ),
        net.constant(ints(1, 32, 8, 8)),
    ),
}
COMPUTES = {
    "one": lambda net, x: net.node(
        "Pad", x, net.constant(ints(0, 0, 1, 1, 0, 0, 1, 1)), net.constant(np.float32(1))
    ),
    "Relu": lambda net, x: net.node("Relu", x),
}


def moved(move, path):
    """A file with a convolution behind what moves a dequantized tensor."""
    net = Net(half=False)
    given = net.qdq(net.node("Relu", net.conv(net.qdq("x"))))
    behind = move(net, given)
    channels = {"Slice": 16, "Gather": 16, "DepthToSpace": 8}.get(net.nodes[-1].op_type, 32)
    y = net.node("Relu", net.node("Conv", behind, net.weight((32, channels, 1, 1))))
    onnx.save(net.model(y, (1, 32, 8, 8)), path)
    return path, next(node.name for node in reversed(net.nodes) if node.op_type == "Conv")


@pytest.mark.parametrize("how", [*MOVES, *COMPUTES])
def test_what_moves_values_is_gone_through_and_what_computes_is_not(tmp_path, how):
    path, conv = moved({**MOVES, **COMPUTES}[how], tmp_path / "model.onnx")
    sites = {o.row.site: o for o in read_quantized(read_model(path), path).operands}
    assert (f"{conv}.input" in sites) == (how in MOVES)
    if how in MOVES:
        assert sites[f"{conv}.input"].row.granularity == "per_tensor"


@needs_rtx
@pytest.mark.parametrize("how", ["Pad", "reflect", "Mul", "Relu"])
def test_a_convolution_behind_what_moves_values_is_honoured(tmp_path, how):
    path, conv = moved({**MOVES, **COMPUTES}[how], tmp_path / "model.onnx")
    sites = {site.row.site: site for site in audit(path, "tensorrt_rtx").sites}
    kinds = {site.verdict.kind for site in sites.values()}
    if how in MOVES:
        assert kinds == {"honoured"} and sites[f"{conv}.input"].promise.kind == "native"
    else:
        assert sites[f"{conv}.weight"].verdict.kind == "degraded"


@needs_rtx
def test_what_is_inside_a_branch_is_listed_and_unknown(tmp_path):
    net = Net(half=False)
    given = net.qdq("x")
    inner = Net(half=False)
    inner.random = np.random.default_rng(1)
    y = inner.conv(inner.qdq("outside"))
    for tensor in inner.constants:
        tensor.name = f"inner_{tensor.name}"
    for node in inner.nodes:
        node.name = ""
        node.output[0] = f"inner_{node.output[0]}"
        node.input[:] = [given if name == "outside" else f"inner_{name}" for name in node.input]

    def branch(name, nodes, result, constants=()):
        value = onnx.helper.make_tensor_value_info(result, net.type, (1, 32, 8, 8))
        return onnx.helper.make_graph(nodes, name, [], [value], constants)

    relu = onnx.helper.make_node("Relu", [given], ["other"])
    branches = {
        "then_branch": branch("then", inner.nodes, f"inner_{y}", inner.constants),
        "else_branch": branch("else", [relu], "other"),
    }
    model = net.model(net.node("If", "choose", **branches), (1, 32, 8, 8))
    bool_ = onnx.TensorProto.BOOL
    model.graph.input.append(onnx.helper.make_tensor_value_info("choose", bool_, []))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    found = audit(path, "tensorrt_rtx")
    assert {site.verdict.kind for site in found.sites} == {"unknown"} and found.exit_code == 4
    roles = sorted(site.row.at.operand for site in found.sites)
    assert roles == ["input", "input", "weight"]
    assert any(site.row.layer.startswith("If_3/then_branch/") for site in found.sites)


@needs_rtx
def test_what_a_graph_gives_in_8_bits_or_rounded_is_a_site(tmp_path):
    net = Net(half=False)
    y = net.qdq(net.conv(net.qdq("x")), 0.1)
    model = net.model(y, (1, 32, 8, 8))
    numbers = net.nodes[-1].input[0]
    value = onnx.helper.make_tensor_value_info(numbers, onnx.TensorProto.INT8, None)
    model.graph.output.append(value)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    outputs = [s for s in audit(path, "tensorrt_rtx").sites if s.row.operand == "output"]
    assert [site.verdict.kind for site in outputs] == ["honoured", "honoured"]
