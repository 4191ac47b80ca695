"""Damaged Q/DQ files through audit's reader, with the layers of an engine that was built elsewhere.

Damage is of bytes, and of the graph: what a node reads, its operator and attributes, what a constant
says of itself.

python bench/fuzz_onnx.py --count 20000 --save
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import onnx
from campaign import damaged, main
from google.protobuf.message import EncodeError
from onnx import TensorProto, helper

from granplugin.pipelines.audit import audit

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from qdq_files import Net, inspected

warnings.simplefilter("ignore")
OPERATORS = (
    "QuantizeLinear", "DequantizeLinear", "Conv", "Gemm", "MatMul", "Constant", "Reshape", "Transpose",
    "Concat", "Split", "If", "Loop", "Pad", "Cast", "Identity", "Expand", "ConstantOfShape", "Tile", "Add",
)  # fmt: skip
SIZES = (0, 1, -1, 2, 8, 2**31, 2**40, 2**62, -(2**62))


def attempt(rng: Random) -> str:
    """One file, damaged, and audited."""
    _scratch()
    name = rng.choice(list(NETS))
    content = _net(name)
    if rng.random() < 0.6:
        model = onnx.load_from_string(content)
        for _ in range(rng.choice((1, 1, 2, 3, 8))):
            change(rng, model)
        try:
            content = model.SerializeToString()
        except (EncodeError, ValueError):
            return "not written"
    else:
        content = damaged(rng, content)
    path = Path("file.onnx")
    path.write_bytes(content)
    found = audit(path, "tensorrt_rtx", layers=Path("layers.json"))
    found.output().model_dump_json()
    return name


def change(rng: Random, model: onnx.ModelProto) -> None:
    """One thing in the graph, changed."""
    graph = model.graph
    node = rng.choice(list(graph.node)) if graph.node else graph.node.add()
    tensors = list(graph.initializer) or [graph.initializer.add()]
    names = [
        *(n for each in graph.node for n in (*each.input, *each.output)),
        "",
        "nowhere",
        "\x1b[31m",
    ]
    match rng.randrange(14):
        case 0 if node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(names)
        case 1 if node.output:
            node.output[rng.randrange(len(node.output))] = rng.choice(names)
        case 2:
            node.op_type = rng.choice(OPERATORS)
        case 3 if node.input:
            del node.input[rng.randrange(len(node.input))]
        case 4 if node.output:
            del node.output[rng.randrange(len(node.output))]
        case 5:
            value = rng.choice(
                (0, -1, 7, 2**62, 0.5, "x", [1, -1], [2**40], "\udcff".encode("utf-8", "ignore"))
            )
            name = rng.choice(
                ("axis", "block_size", "perm", "to", "value", "transA", "group", "split", "axes")
            )
            node.attribute.append(
                helper.make_attribute(name, value, attr_type=None if value != [] else 7)
            )
        case 6 if node.attribute:
            rng.choice(list(node.attribute)).type = rng.randrange(15)
        case 7:
            tensor = rng.choice(tensors)
            tensor.data_type = rng.randrange(26)
        case 8:
            tensor = rng.choice(tensors)
            del tensor.dims[:]
            tensor.dims.extend(rng.choice(SIZES) for _ in range(rng.randrange(4)))
        case 9:
            rng.choice(tensors).raw_data = rng.randbytes(rng.choice((0, 1, 4, 64)))
        case 10 if model.opset_import:
            model.opset_import[0].version = rng.choice((1, 10, 13, 19, 21, 23, 10**9, -1))
        case 11 if graph.node:
            del graph.node[rng.randrange(len(graph.node))]
        case 12:
            graph.node.append(node)
        case 13 if graph.input:
            dims = rng.choice(list(graph.input)).type.tensor_type.shape.dim
            for dim in dims:
                dim.dim_value = rng.choice(SIZES)
        case _:
            tensor = rng.choice(tensors)
            tensor.data_location = TensorProto.EXTERNAL
            place = rng.choice(("../../etc/passwd", "/dev/zero", "file.onnx", "", "fifo"))
            tensor.external_data.add(key="location", value=place)


def _convs() -> onnx.ModelProto:
    net = Net(half=False)
    first = net.node("Relu", net.conv(net.qdq("x"), 4))
    second = net.conv(net.qdq(first, 0.05), 4, group=4)
    total = net.node("Add", second, net.qdq(first, 0.06))
    return net.model(net.conv(net.qdq(total, 0.07), 4, axis=None), (1, 4, 8, 8))


def _moved() -> onnx.ModelProto:
    """Values that are moved between Q/DQ and what reads them; a bias in 32-bit integers."""
    net = Net(half=False, named=False)
    first = net.qdq("x")
    shape = net.node("Constant", value=helper.make_tensor("", TensorProto.INT64, [2], [1, 16]))
    flat = net.node("Reshape", net.node("Transpose", first, perm=[0, 2, 3, 1]), shape)
    joined = net.node("Concat", flat, flat, axis=1)
    bias = net.node(
        "DequantizeLinear", net.constant(np.ones(8, np.int32)), net.constant(np.float32(0.01))
    )
    return net.model(net.node("Gemm", joined, net.weight((32, 8), 1), bias), (1, 4, 2, 2))


def _blocked() -> onnx.ModelProto:
    """Weights in blocks, and a branch."""
    net = Net(half=False)
    scale = np.full((4, 8), 0.1, np.float32)
    weight = net.node(
        "DequantizeLinear", net.constant(np.ones((16, 8), np.int8)), net.constant(scale),
        axis=0, block_size=4,
    )  # fmt: skip
    product = net.node("MatMul", net.qdq("x"), weight)
    value = helper.make_tensor_value_info("then", TensorProto.FLOAT, None)
    inside = helper.make_graph([helper.make_node("Relu", [product], ["then"])], "g", [], [value])
    chosen = net.node("If", net.constant(np.bool_(True)), then_branch=inside, else_branch=inside)
    return net.model(chosen, (2, 16))


NETS = {"convs": _convs, "moved": _moved, "blocked": _blocked}


@cache
def _net(name: str) -> bytes:
    return NETS[name]().SerializeToString()


@cache
def _scratch() -> None:
    os.chdir(tempfile.mkdtemp(prefix="granplugin-fuzz-"))
    os.mkfifo("fifo")
    Path("layers.json").write_text(inspected(_convs()))


if __name__ == "__main__":
    main("fuzz_onnx", attempt, 20_000)
