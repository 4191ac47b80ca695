"""Small networks in the styles of four producers: the same nodes that compute, under the same names,
with Q/DQ written as each writes it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Built:
    """A graph that grows from the input x. Nodes that compute are called Op_1, Op_2 ... in every
    style, those of Q/DQ as their style calls them."""

    shape = (1, 32, 16, 16)
    opset = 17

    def __init__(self) -> None:
        self.nodes, self.constants, self.computing, self.tensors = [], [], 0, 0
        self.random = np.random.default_rng(0)

    def held(self, array, name: str = "") -> str:
        """A constant: an initializer."""
        name = name or f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(self, op: str, name: str, *inputs: str, outputs: int = 1, **said):
        found = [f"t{self.tensors + at}" for at in range(outputs)]
        self.tensors += outputs
        self.nodes.append(helper.make_node(op, inputs, found, name, **said))
        return found[0] if outputs == 1 else found

    def node(self, op: str, *inputs: str, outputs: int = 1, **said):
        """A node that computes."""
        self.computing += 1
        return self.add(op, f"{op}_{self.computing}", *inputs, outputs=outputs, **said)

    def numbers(self, *shape: int, low: float = -1.0) -> np.ndarray:
        return self.random.uniform(low, 1, shape).astype(np.float32)

    def q(self, x: str, scale: float = 0.03) -> str:
        """An activation, quantized and dequantized."""
        return self.pair(x, np.float32(scale), f"{x}_act")

    def weight(self, *shape: int, axis: int = 0) -> str:
        values = self.numbers(*shape)
        others = tuple(at for at in range(len(shape)) if at != axis)
        return self.of_weight(values, np.abs(values).max(others) / np.float32(127), axis)

    def conv(self, x: str, out: int = 32, channels: int = 32, kernel: int = 3, **said) -> str:
        group = said.get("group", 1)
        weight = self.weight(out, channels // group, kernel, kernel)
        pads = [kernel // 2] * 4
        return self.node("Conv", x, weight, pads=pads, kernel_shape=[kernel] * 2, **said)

    def model(self, y: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(y, TensorProto.FLOAT, None)],
            self.constants,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def pair(self, x: str, scale: np.ndarray, name: str, **said) -> str:
        constants = self.held(scale), self.held(np.zeros(scale.shape, np.int8))
        q = self.add("QuantizeLinear", f"{name}_QuantizeLinear", x, *constants, **said)
        return self.add("DequantizeLinear", f"{name}_DequantizeLinear", q, *constants, **said)

    def of_weight(self, values: np.ndarray, scale: np.ndarray, axis: int) -> str:
        """modelopt.onnx: float weights, their Q/DQ in the graph."""
        name = f"w{self.computing + 1}"
        return self.pair(self.held(values), scale, name, axis=axis)


class PytorchQuantization(Built):
    """Scales and zero points are Constant nodes, and the opset is 13."""

    opset = 13

    def held(self, array, name: str = "") -> str:
        if np.asarray(array).size > 64:
            return super().held(array, name)
        value = numpy_helper.from_array(np.asarray(array))
        return self.add("Constant", f"Constant_{self.tensors}", value=value)


class OnnxRuntime(Built):
    """Weights are stored in 8 bits, and nodes of Q/DQ come without names here."""

    def pair(self, x: str, scale: np.ndarray, name: str, **said) -> str:
        constants = self.held(scale), self.held(np.zeros(scale.shape, np.int8))
        q = self.add("QuantizeLinear", "", x, *constants, **said)
        return self.add("DequantizeLinear", "", q, *constants, **said)

    def of_weight(self, values: np.ndarray, scale: np.ndarray, axis: int) -> str:
        along = [-1 if at == axis else 1 for at in range(values.ndim)]
        stored = np.clip(np.rint(values / scale.reshape(along)), -127, 127).astype(np.int8)
        zeros = self.held(np.zeros(scale.shape, np.int8))
        return self.add(
            "DequantizeLinear", "", self.held(stored), self.held(scale), zeros, axis=axis
        )


class Nncf(Built):
    """Q/DQ of weights stand behind an Identity, and an activation's scale is a constant that is
    computed."""

    def q(self, x: str, scale: float = 0.03) -> str:
        held = self.held(np.float32(scale))
        computed = self.add("Identity", f"{x}_scale", held)
        zero = self.held(np.int8(0))
        q = self.add("QuantizeLinear", f"{x}_fq_q", x, computed, zero)
        return self.add("DequantizeLinear", f"{x}_fq_dq", q, computed, zero)


STYLES: dict[str, type[Built]] = {
    "modelopt": Built,
    "pytorch-quantization": PytorchQuantization,
    "onnxruntime": OnnxRuntime,
    "nncf": Nncf,
}


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def _resize(b: Built, x: str, mode: str) -> str:
    scales = b.held(np.array([1, 1, 2, 2], np.float32))
    return b.node(
        "Resize", x, "", scales, mode=mode, coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )  # fmt: skip


def _shuffle(b: Built, x: str) -> str:
    x = b.node("Reshape", x, b.held(ints(1, 2, 16, 16, 16)))
    x = b.node("Transpose", x, perm=[0, 2, 1, 3, 4])
    return b.node("Reshape", x, b.held(ints(1, 32, 16, 16)))


def _pad(b: Built, x: str, mode: str) -> str:
    return b.node("Pad", x, b.held(ints(0, 0, 1, 1, 0, 0, 1, 1)), mode=mode)


def _slice(b: Built, x: str, end: int, axis: int, step: int = 1) -> str:
    return b.node("Slice", x, *(b.held(ints(each)) for each in (0, end, axis, step)))


# What moves values, and the channels behind it.
MOVES: dict[str, tuple[Callable[[Built, str], str], int]] = {
    "slice": (lambda b, x: _slice(b, x, 16, 1), 16),
    "crop": (lambda b, x: _slice(b, x, 8, 2), 32),
    "stride": (lambda b, x: _slice(b, x, 16, 3, 2), 32),
    "split": (lambda b, x: b.node("Split", x, outputs=2, axis=1)[0], 16),
    "gather": (lambda b, x: b.node("Gather", x, b.held(ints(*range(16))), axis=1), 16),
    "pad": (lambda b, x: _pad(b, x, "constant"), 32),
    "reflect": (lambda b, x: _pad(b, x, "reflect"), 32),
    "edge": (lambda b, x: _pad(b, x, "edge"), 32),
    "maxpool": (lambda b, x: b.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), 32),
    "globalmax": (lambda b, x: b.node("GlobalMaxPool", x), 32),
    "depthtospace": (lambda b, x: b.node("DepthToSpace", x, blocksize=2), 8),
    "spacetodepth": (lambda b, x: b.node("SpaceToDepth", x, blocksize=2), 128),
    "transpose": (lambda b, x: b.node("Transpose", x, perm=[0, 1, 3, 2]), 32),
    "shuffle": (_shuffle, 32),
    "tile": (lambda b, x: b.node("Tile", x, b.held(ints(1, 1, 2, 2))), 32),
    "double": (lambda b, x: b.node("Mul", x, b.held(np.float32(2))), 32),
    "negative": (lambda b, x: b.node("Neg", x), 32),
    "resize": (lambda b, x: _resize(b, x, "nearest"), 32),
}
# What computes.
COMPUTES: dict[str, Callable[[Built, str], str]] = {
    "relu": lambda b, x: b.node("Relu", x),
    "clip": lambda b, x: b.node("Clip", x, b.held(np.float32(0)), b.held(np.float32(6))),
    "leaky": lambda b, x: b.node("LeakyRelu", x, alpha=0.1),
    "sigmoid": lambda b, x: b.node("Sigmoid", x),
    "tanh": lambda b, x: b.node("Tanh", x),
    "softmax": lambda b, x: b.node("Softmax", x, axis=1),
    "average": lambda b, x: b.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]),
    "globalaverage": lambda b, x: b.node("GlobalAveragePool", x),
    "bilinear": lambda b, x: _resize(b, x, "linear"),
    "shift": lambda b, x: b.node("Add", x, b.held(np.float32(1))),
    "norm": lambda b, x: b.node(
        "BatchNormalization", x, *(b.held(np.full(32, v, np.float32)) for v in (1.1, 0.1, 0.2, 0.9))
    ),
}


def _first(b: Built) -> str:
    return b.node("Relu", b.conv(b.q("x")))


def _behind(move: str, again: bool) -> Callable[[Built], str]:
    def pattern(b: Built) -> str:
        make, channels = MOVES[move] if move in MOVES else (COMPUTES[move], 32)
        given = make(b, b.q(_first(b), 0.05))
        given = b.q(given, 0.06) if again else given
        return b.node("Relu", b.conv(given, channels=channels, kernel=1))

    return pattern


def _residual(kind: str) -> Callable[[Built], str]:
    def pattern(b: Built) -> str:
        first = _first(b)
        given = b.q(first, 0.05)
        branch = b.conv(b.q(b.node("Relu", b.conv(given)), 0.04))
        if kind == "product":
            branch = b.q(branch, 0.1)
        skip = {"shared": lambda: given, "own": lambda: b.q(first, 0.06)}.get(kind, lambda: first)
        return b.conv(b.q(b.node("Relu", b.node("Add", branch, skip())), 0.07))

    return pattern


def _concat(kind: str) -> Callable[[Built], str]:
    def pattern(b: Built) -> str:
        given = b.q("x")
        left, right = (b.node("Relu", b.conv(given)) for _ in range(2))
        if kind == "behind":
            joined = b.q(b.node("Concat", left, right, axis=1), 0.05)
        else:
            second = right if kind == "half" else b.q(right, 0.05 if "same" in kind else 0.07)
            joined = b.node("Concat", b.q(left, 0.05), second, axis=1)
            if "again" in kind or kind == "half":
                joined = b.q(joined, 0.05)
        return b.conv(joined, channels=64)

    return pattern


def _silu(b: Built, x: str) -> str:
    return b.node("Mul", x, b.node("Sigmoid", x))


def _c2f(b: Built) -> str:
    whole = b.q(_silu(b, b.conv(b.q("x"), kernel=1)), 0.05)
    first, second = b.node("Split", whole, outputs=2, axis=1)
    inner = b.q(_silu(b, b.conv(second, out=16, channels=16)), 0.05)
    return b.conv(b.node("Concat", first, second, inner, axis=1), channels=48, kernel=1)


def _pyramid(b: Built) -> str:
    given = b.q(_first(b), 0.05)
    pools = [given]
    for _ in range(3):
        pools.append(b.node("MaxPool", pools[-1], kernel_shape=[5, 5], pads=[2] * 4))
    return b.conv(b.node("Concat", *pools, axis=1), channels=128, kernel=1)


def _gate(b: Built) -> str:
    first = _first(b)
    pooled = b.node("GlobalAveragePool", first)
    gate = b.node("Sigmoid", b.conv(b.q(pooled, 0.02), kernel=1))
    return b.conv(b.q(b.node("Mul", first, gate), 0.05))


def _matmul(b: Built, x: str, out: int = 16) -> str:
    return b.node("MatMul", x, b.weight(16, out, axis=1))


def _attention(scores: bool, values: bool) -> Callable[[Built], str]:
    def pattern(b: Built) -> str:
        given = b.q(b.node("Reshape", "x", b.held(ints(1, 512, 16))))
        query, key, value = (_matmul(b, given) for _ in range(3))
        key = b.node("Transpose", key, perm=[0, 2, 1])
        if scores:
            query, key = b.q(query, 0.04), b.q(key, 0.05)
        weights = b.node("Softmax", b.node("MatMul", query, key), axis=-1)
        if values:
            weights, value = b.q(weights, 0.008), b.q(value, 0.06)
        return b.node("Relu", b.node("MatMul", weights, value))

    return pattern


def _twice_read(b: Built) -> str:
    first = _first(b)
    left, right = b.conv(b.q(first, 0.05)), b.conv(b.q(first, 0.06))
    return b.node("Mul", left, right)


def _one_weight(b: Built) -> str:
    weight = b.weight(32, 32, 3, 3)
    x = b.node("Conv", b.q("x"), weight, pads=[1] * 4)
    return b.node("Conv", b.q(b.node("Relu", x), 0.05), weight, pads=[1] * 4)


def _gemm(b: Built) -> str:
    rows = b.q(b.node("Reshape", "x", b.held(ints(512, 16))))
    return b.node("Relu", b.node("Gemm", rows, b.weight(32, 16), transB=1))


def _linear(b: Built) -> str:
    rows = b.q(b.node("Reshape", "x", b.held(ints(1, 512, 16))))
    return b.node("Relu", _matmul(b, b.q(b.node("Relu", _matmul(b, rows)), 0.05)))


def _transposed(b: Built) -> str:
    up = b.node(
        "ConvTranspose", b.q(_first(b), 0.05), b.weight(32, 32, 2, 2, axis=1), strides=[2, 2]
    )
    return b.conv(b.q(b.node("Relu", up), 0.06))


PATTERNS: dict[str, Callable[[Built], str]] = {
    **{name: _behind(name, False) for name in MOVES},
    **{f"{name} again": _behind(name, True) for name in (*MOVES, *COMPUTES)},
    **{f"residual {kind}": _residual(kind) for kind in ("float", "own", "product")},
    "residual": _residual("shared"),
    **{f"concat {kind}": _concat(kind) for kind in ("same", "different", "half", "behind")},
    **{f"concat {kind} again": _concat(f"{kind} again") for kind in ("same", "different")},
    "c2f": _c2f,
    "pyramid": _pyramid,
    "gate": _gate,
    "attention": _attention(True, True),
    "attention scores": _attention(True, False),
    "attention projections": _attention(False, False),
    "two scales": _twice_read,
    "one weight": _one_weight,
    "gemm": _gemm,
    "linear": _linear,
    "transposed": _transposed,
    "depthwise": lambda b: b.conv(b.q(_first(b), 0.05), channels=32, group=32),
    "grouped": lambda b: b.conv(b.q(_first(b), 0.05), channels=32, group=4),
    "output": lambda b: b.q(b.conv(b.q("x")), 0.1),
}


def styled(pattern: str, style: str) -> onnx.ModelProto:
    """A pattern in a producer's style."""
    built = STYLES[style]()
    return built.model(PATTERNS[pattern](built))
