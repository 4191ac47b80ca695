"""Small networks of one structure each, quantized as granplugin writes it: what a probe compares.

A one-op network shows what an op's kernel does; these show what an engine makes of Q/DQ around what
has no kernel of its own: concatenations, gates, reductions, resizing, several readers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from granplugin.capabilities.table import Structure

CHANNELS, SIDE, BATCH = 16, 8, 8
INPUT = "x"


class Drawn:
    """Nodes, one call each; the same at each call."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def op(self, kind: str, *read: str, name: str = "", outputs: int = 1, **attributes: Any) -> Any:
        """A node; its output, or outputs."""
        at = len(self.nodes)
        made = [f"t{at}_{number}" for number in range(outputs)]
        self.nodes.append(helper.make_node(kind, read, made, name or f"n{at}/{kind}", **attributes))
        return made[0] if outputs == 1 else made

    def constant(self, array: ArrayLike) -> str:
        """A constant's name."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def draw(self, *shape: int) -> np.ndarray:
        """Normal values, of about the same size behind every product."""
        values = self.random.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
        return values.astype(np.float32)

    def quantize(self, read: str, amax: float = 3.0) -> str:
        """Per-tensor Q/DQ of an activation."""
        scale, zero = self.constant(np.float32(amax / 127)), self.constant(np.int8(0))
        return self.op(
            "DequantizeLinear", self.op("QuantizeLinear", read, scale, zero), scale, zero
        )

    def weight(self, *shape: int, axis: int = 0) -> str:
        """A weight, stored in int8 with a scale for each index of the axis."""
        values = self.draw(*shape)
        others = tuple(at for at in range(len(shape)) if at != axis)
        scale = np.abs(values).max(others) / np.float32(127)
        steps = scale.reshape([-1 if at == axis else 1 for at in range(len(shape))])
        stored = np.clip(np.rint(values / steps), -127, 127).astype(np.int8)
        names = (self.constant(each) for each in (stored, scale, np.zeros(scale.shape, np.int8)))
        return self.op("DequantizeLinear", *names, axis=axis)

    def conv(
        self,
        read: str,
        inputs: int,
        outputs: int,
        size: int = 3,
        bias: bool = True,
        groups: int = 1,
    ) -> str:
        """A convolution of a quantized input."""
        weight = self.weight(outputs, inputs // groups, size, size)
        more = [self.constant(self.draw(outputs))] if bias else []
        pads = [size // 2] * 4
        return self.op("Conv", self.quantize(read), weight, *more, pads=pads, group=groups)

    def linear(self, read: str, inputs: int, outputs: int) -> str:
        """A linear layer on a matrix."""
        weight, bias = self.weight(outputs, inputs), self.constant(self.draw(outputs))
        return self.op("Gemm", self.quantize(read), weight, bias, transB=1)

    def matmul(self, read: str, inputs: int, outputs: int) -> str:
        """A linear layer on tokens."""
        product = self.op("MatMul", self.quantize(read), self.weight(inputs, outputs, axis=1))
        return self.op("Add", product, self.constant(self.draw(outputs)))

    def silu(self, read: str) -> str:
        """x * sigmoid(x)."""
        return self.op("Mul", read, self.op("Sigmoid", read))

    def axes(self, *axes: int) -> str:
        """Axes, as an operand."""
        return self.constant(np.array(axes, np.int64))


C = CHANNELS
Build = Callable[[Drawn], str]


def _concat(net: Drawn) -> str:
    a = net.op("Relu", net.conv(INPUT, C, C))
    b = net.op("Relu", net.conv(INPUT, C, C))
    return net.conv(net.op("Concat", a, b, axis=1), 2 * C, C)


def _concat_of_quantized(net: Drawn) -> str:
    a = net.quantize(net.op("Relu", net.conv(INPUT, C, C)))
    b = net.quantize(net.op("Relu", net.conv(INPUT, C, C)))
    return net.conv(net.op("Concat", a, b, axis=1), 2 * C, C)


def _dense(net: Drawn) -> str:
    seen = net.op("Relu", net.conv(INPUT, C, C))
    for at in (1, 2):
        new = net.op("Relu", net.conv(seen, at * C, C))
        seen = net.op("Concat", seen, new, axis=1)
    return net.conv(seen, 3 * C, C)


def _split_sum(net: Drawn) -> str:
    first, *others = net.op("Split", net.conv(INPUT, C, C), outputs=4, axis=1, num_outputs=4)
    parts, last = [first], first
    for each in others:
        last = net.op("Relu", net.conv(net.op("Add", last, each), C // 4, C // 4))
        parts.append(last)
    return net.conv(net.op("Concat", *parts, axis=1), C, C)


def _ghost(net: Drawn) -> str:
    primary = net.op("Relu", net.conv(INPUT, C, C, 1))
    cheap = net.op("Relu", net.conv(primary, C, C, groups=C))
    return net.conv(net.op("Concat", primary, cheap, axis=1), 2 * C, C, 1)


def _up(net: Drawn, read: str) -> str:
    scales = net.constant(np.array([1, 1, 2, 2], np.float32))
    nearest: dict[str, Any] = {
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }
    return net.op("Resize", read, "", scales, mode="nearest", **nearest)


def _down(net: Drawn, read: str) -> str:
    return net.op("MaxPool", read, kernel_shape=[2, 2], strides=[2, 2])


def _pyramid(net: Drawn) -> str:
    fine = net.op("Relu", net.conv(INPUT, C, C))
    coarse = net.op("Relu", net.conv(_down(net, fine), C, C))
    return net.conv(net.op("Add", net.conv(fine, C, C, 1), _up(net, coarse)), C, C)


def _pyramid_concat(net: Drawn) -> str:
    fine = net.silu(net.conv(INPUT, C, C))
    coarse = net.silu(net.conv(_down(net, fine), C, C))
    return net.conv(net.op("Concat", fine, _up(net, coarse), axis=1), 2 * C, C)


def _transposed_concat(net: Drawn) -> str:
    fine = net.op("Relu", net.conv(INPUT, C, C))
    coarse = net.op("Relu", net.conv(_down(net, fine), C, C))
    weight = net.weight(C, C, 2, 2, axis=1)
    up = net.op("ConvTranspose", net.quantize(coarse), weight, strides=[2, 2])
    return net.conv(net.op("Concat", fine, up, axis=1), 2 * C, C)


def _gate(net: Drawn, read: str) -> str:
    squeezed = net.op("Relu", net.conv(net.op("GlobalAveragePool", read), C, 4, 1))
    return net.op("Mul", read, net.op("Sigmoid", net.conv(squeezed, 4, C, 1)))


def _gated(net: Drawn) -> str:
    return net.conv(_gate(net, net.op("Relu", net.conv(INPUT, C, C))), C, C, 1)


def _gated_silu(net: Drawn) -> str:
    """EfficientNet's block."""
    wide = net.silu(net.conv(INPUT, C, C, 1))
    deep = net.silu(net.conv(wide, C, C, groups=C))
    return net.op("Add", net.conv(_gate(net, deep), C, C, 1), net.quantize(INPUT))


def _unbiased_gate(net: Drawn) -> str:
    return net.conv(_gate(net, net.conv(INPUT, C, C, bias=False)), C, C, 1)


def _unbiased_read_twice(net: Drawn) -> str:
    read = net.conv(INPUT, C, C, bias=False)
    return net.op("Add", net.op("Relu", read), net.op("Sigmoid", read))


def _unbiased_single(net: Drawn) -> str:
    read = net.conv(INPUT, C, 1, bias=False)
    return net.op("Add", net.op("Relu", read), net.op("Sigmoid", read))


def _unbiased_pooled(net: Drawn) -> str:
    seen = net.op("Relu", net.conv(INPUT, C, C, bias=False))
    pooled = net.op("MaxPool", seen, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    return net.conv(_clipped(net, pooled), C, C)


def _unbiased_scaled(net: Drawn) -> str:
    read = net.op("Mul", net.conv(INPUT, C, C, bias=False), net.constant(np.float32(0.7)))
    return net.op("Add", net.conv(read, C, C), read)


def _unbiased_clipped(net: Drawn) -> str:
    read = net.op("Relu", net.conv(INPUT, C, C, bias=False))
    return net.op("Add", net.conv(_clipped(net, read), C, C), read)


def _clipped(net: Drawn, read: str) -> str:
    return net.op("Clip", read, *(net.constant(np.float32(end)) for end in (0, 3)))


def _residual(net: Drawn) -> str:
    seen = net.op("Relu", net.conv(INPUT, C, C))
    inner = net.conv(net.op("Relu", net.conv(seen, C, C)), C, C)
    return net.conv(net.op("Relu", net.op("Add", inner, net.quantize(seen))), C, C)


def _shuffle(net: Drawn) -> str:
    read = net.op("Relu", net.conv(INPUT, C, C, groups=2))
    split = net.op("Reshape", read, net.axes(-1, 2, C // 2, SIDE, SIDE))
    turned = net.op("Transpose", split, perm=[0, 2, 1, 3, 4])
    return net.conv(net.op("Reshape", turned, net.axes(-1, C, SIDE, SIDE)), C, C, groups=2)


def _pooled_whole(net: Drawn) -> str:
    return net.conv(net.op("GlobalMaxPool", net.op("Tanh", net.conv(INPUT, C, C))), C, C, 1)


def _rectified(net: Drawn) -> str:
    seen = net.op("Tanh", net.conv(INPUT, C, C))
    return net.linear(net.op("Relu", net.op("ReduceMax", seen, net.axes(2, 3), keepdims=0)), C, C)


def _spatial_gate(net: Drawn) -> str:
    """CBAM's: of the largest and the mean value of all channels."""
    seen = net.op("Relu", net.conv(INPUT, C, C))
    largest, mean = (net.op(k, seen, net.axes(1), keepdims=1) for k in ("ReduceMax", "ReduceMean"))
    gate = net.conv(net.op("Concat", largest, mean, axis=1), 2, 1, 7, bias=False)
    return net.op("Mul", seen, net.op("Sigmoid", gate))


def _reduced(kind: str, keep: int = 0) -> Build:
    def build(net: Drawn) -> str:
        seen = net.op("Tanh", net.conv(INPUT, C, C))
        found = net.op(kind, seen, net.axes(2, 3), keepdims=keep)
        return net.conv(found, C, C, 1) if keep else net.linear(found, C, C)

    return build


def _padded(net: Drawn) -> str:
    pads = net.axes(0, 0, 1, 1, 0, 0, 1, 1)
    return net.conv(net.op("Pad", net.conv(INPUT, C, C), pads, mode="reflect"), C, C)


def _pooled(net: Drawn) -> str:
    seen = net.quantize(net.op("Relu", net.conv(INPUT, C, C)))
    pool: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1] * 4}
    return net.op("Add", net.conv(net.op("MaxPool", seen, **pool), C, C), net.conv(seen, C, C))


def _twice(net: Drawn) -> str:
    return net.conv(net.quantize(net.conv(INPUT, C, C), 3.1), C, C)


def _heads(net: Drawn) -> str:
    seen = net.op("Relu", net.conv(INPUT, C, C))
    first = net.op("Sigmoid", net.conv(seen, C, 4, 1))
    second = net.op("Softmax", net.conv(seen, C, C - 4, 1), axis=1)
    return net.op("Concat", first, second, axis=1)


def _tokens(net: Drawn) -> str:
    flat = net.op("Reshape", INPUT, net.axes(-1, C, SIDE * SIDE))
    return net.op("Transpose", flat, perm=[0, 2, 1])


def _normalized(net: Drawn) -> str:
    gain, shift = (net.constant(net.draw(C) + 1) for _ in range(2))
    normal = net.op("LayerNormalization", _tokens(net), gain, shift, axis=-1)
    wide = net.matmul(normal, C, 2 * C)
    return net.matmul(net.op("Gelu", wide), 2 * C, C)


def _attention(net: Drawn) -> str:
    read = _tokens(net)
    q, k, v = (net.matmul(read, C, C) for _ in range(3))
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1]))
    mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1), v)
    return net.op("Add", net.matmul(mixed, C, C), read)


STRUCTURES: dict[Structure, Build] = {
    "concatenation": _concat,
    "concatenation of quantized tensors": _concat_of_quantized,
    "dense connections": _dense,
    "split, sums, concatenation": _split_sum,
    "depthwise convolution, concatenation": _ghost,
    "resizing, concatenation": _pyramid_concat,
    "transposed convolution, concatenation": _transposed_concat,
    "resizing, sum": _pyramid,
    "gate": _gated,
    "gate of an inverted residual block": _gated_silu,
    "gate of a convolution without bias": _unbiased_gate,
    "convolution without bias read twice": _unbiased_read_twice,
    "convolution without bias of one channel read twice": _unbiased_single,
    "convolution without bias, pooled and clipped": _unbiased_pooled,
    "convolution without bias, scaled and read twice": _unbiased_scaled,
    "convolution without bias, clipped on one of two ways": _unbiased_clipped,
    "residual sum": _residual,
    "channel shuffle": _shuffle,
    "maximum": _reduced("ReduceMax"),
    "kept maximum": _reduced("ReduceMax", 1),
    "minimum": _reduced("ReduceMin"),
    "global maximum pool": _pooled_whole,
    "rectified maximum": _rectified,
    "spatial gate": _spatial_gate,
    "mean": _reduced("ReduceMean"),
    "sum": _reduced("ReduceSum"),
    "norm": _reduced("ReduceL2"),
    "padding": _padded,
    "pool and convolution of one tensor": _pooled,
    "quantized twice": _twice,
    "several outputs": _heads,
    "normalization, linear layers": _normalized,
    "attention": _attention,
}
"""What stands around products -> the network of it."""


def structure(name: Structure) -> onnx.ModelProto:
    """The network: x [batch, 16, 8, 8] -> y."""
    net = Drawn()
    last = STRUCTURES[name](net)
    net.nodes.append(helper.make_node("Identity", [last], ["y"], "y/Identity"))
    graph = helper.make_graph(
        net.nodes,
        "structure",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", C, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        net.constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def example() -> np.ndarray:
    """Samples for it."""
    return np.random.default_rng(1).standard_normal((BATCH, C, SIDE, SIDE)).astype(np.float32)
