"""Q/DQ networks as other tools write them, and engine plans as trtexec would tell of them."""

from __future__ import annotations

import json
import math

import numpy as np
from onnx import TensorProto, helper, numpy_helper


class Net:
    """An ONNX graph that grows node by node from the input `x`; nodes are called Op_1, Op_2 ...,
    or not at all."""

    def __init__(self, half: bool = True, named: bool = True) -> None:
        self.dtype = np.dtype(np.float16 if half else np.float32)
        self.type = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        self.named, self.nodes, self.constants = named, [], []
        self.random = np.random.default_rng(0)

    def constant(self, array) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op: str, *inputs: str, domain: str = "", **attributes) -> str:
        number = len(self.nodes) + 1
        name = f"{op}_{number}" if self.named else ""
        self.nodes.append(
            helper.make_node(op, inputs, [f"t{number}"], name, domain=domain, **attributes)
        )
        return f"t{number}"

    def qdq(self, x: str, scale=0.03, zero=np.int8(0), scale_type=None, **attributes) -> str:
        scale = np.asarray(scale, scale_type or self.dtype)
        constants = self.constant(scale), self.constant(np.full(scale.shape, zero, zero.dtype))
        q = self.node("QuantizeLinear", x, *constants, **attributes)
        return self.node("DequantizeLinear", q, *constants, **attributes)

    def weight(self, shape, axis: int | None = 0, **said) -> str:
        """A float weight with Q and DQ, one scale per index of `axis`."""
        values = self.random.standard_normal(shape).astype(self.dtype)
        others = tuple(i for i in range(len(shape)) if axis is None or i != axis)
        scale = np.abs(values.astype(np.float32)).max(others) / 127
        return self.qdq(self.constant(values), scale, **({} if axis is None else {"axis": axis}))

    def conv(self, x: str, channels: int = 32, axis: int | None = 0, group: int = 1) -> str:
        weight = self.weight((channels, channels // group, 3, 3), axis)
        return self.node("Conv", x, weight, group=group, pads=[1] * 4, kernel_shape=[3, 3])

    def model(self, y: str, shape=("n", 32, 8, 8), opset: int = 21):
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info("x", self.type, shape)],
            [helper.make_tensor_value_info(y, self.type, None)],
            self.constants,
        )
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("trt", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def residual(skip: str = "float", axis: int | None = 0, half: bool = True, named: bool = True):
    """Four convolutions, the third added to the first; `skip` is float, own (with a scale of its
    own), shared (with the second's) or product (the sum's other side is quantized)."""
    net = Net(half, named)
    first = net.node("Relu", net.conv(net.qdq("x"), axis=axis))
    given = net.qdq(first, 0.05)
    second = net.node("Relu", net.conv(given, axis=axis))
    third = net.conv(net.qdq(second, 0.04), axis=axis)
    if skip == "product":
        third = net.qdq(third, 0.1)
    other = {"own": lambda: net.qdq(first, 0.06), "shared": lambda: given}.get(skip, lambda: first)
    total = net.node("Relu", net.node("Add", third, other()))
    return net.model(net.conv(net.qdq(total, 0.07), axis=axis))


def inspected(model, version: int = 11) -> str:
    """What trtexec --exportLayerInfo would say of an engine that honours every Conv of `model`, one
    layer each, in the form of TensorRT 10 or 11."""
    producer = {name: node for node in model.graph.node for name in node.output}
    held = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}

    def tensor(name, dtype):
        form = {"Format": "Row major", "Datatype": dtype}
        if version == 10:
            form = {"Format/Datatype": dtype}
        return {"Name": name, "Dimensions": [1, 32, 8, 8], **form}

    layers = []
    for node in model.graph.node:
        if node.op_type == "Conv":
            dq = producer[node.input[1]]
            count = held[producer[dq.input[0]].input[0]]
            nodes = [node.name, producer[node.input[0]].name, dq.name]
            layers.append(
                {
                    "Name": node.name,
                    "LayerType": "CaskConvolution",
                    "Inputs": [tensor(f"{node.name}.x", "Int8")],
                    "Outputs": [tensor(f"{node.name}.y", "Half")],
                    "Weights": {"Type": "Int8", "Count": count},
                    "Metadata": "\x1f".join(f"[ONNX Layer: {name}]" for name in nodes),
                }
            )
    io = {"Bindings": ["x"]} if version == 10 else {"I/O Tensors": []}
    return json.dumps({"Layers": layers, **io})


ATTENTION = """
<ir_version: 10, opset_import: ["" : 21]>
attention (float[2,2,16,32] q, float[2,2,16,32] k, float[2,2,16,32] v, float[2,1,16,16] m)
=> (float[2,2,16,32] y) <float s = {0.03}, float part = {0.008}, int8 z = {0}, float d = {0.18}> {
  [q_q] qq = QuantizeLinear(q, s, z) [q_dq] qd = DequantizeLinear(qq, s, z)
  [k_q] kq = QuantizeLinear(k, s, z) [k_dq] kd = DequantizeLinear(kq, s, z)
  [v_q] vq = QuantizeLinear(v, s, z) [v_dq] vd = DequantizeLinear(vq, s, z)
  [turn] t = Transpose <perm = [0, 1, 3, 2]> (kd)
  [scores] a = MatMul(qd, t)
  [scale] b = Mul(a, d)
  [mask] c = Add(b, m)
  [softmax] e = Softmax(c)
  [p_q] pq = QuantizeLinear(e, part, z) [p_dq] pd = DequantizeLinear(pq, part, z)
  [values] o = MatMul(pd, vd)
  [o_q] oq = QuantizeLinear(o, s, z) [o_dq] y = DequantizeLinear(oq, s, z)
}"""
"""Both products of an attention in INT8, with a mask."""


NAMELESS = """
<ir_version: 10, opset_import: ["" : 21]>
residual (float[2,4,2] x) => (float[2,4,2] y)
<float s = {0.02}, uint8 z = {0}, int8[2,2] w = {1, 20, -30, 4}, float[2] ws = {0.01, 0.02},
 int8[2] wz = {0, 0}> {
  [relu] r = Relu(x)
  [x_q] q = QuantizeLinear(r, s, z) [x_dq] d = DequantizeLinear(q, s, z)
  [w_dq] v = DequantizeLinear <axis = 0> (w, ws, wz) [turn] t = Transpose <perm = [1, 0]> (v)
  [product] m = MatMul(d, t)
  [add] y = Add(r, m)
}"""
"""A product whose kernel OpenVINO gives a name of its own."""
