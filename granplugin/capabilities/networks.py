"""One-op networks, one for each cell of a table: what a probe builds.

64 channels, batch 4, opset 21; a Relu stands behind the op, and everything that a cell says is
quantized gets Q/DQ.
"""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from granplugin.capabilities.cells import (
    ADDS,
    CHANNELS,
    DYNAMIC,
    INPUT_AXES,
    INPUTS,
    OTHER,
    WEIGHT_AXES,
    WEIGHTS,
)
from granplugin.capabilities.table import ACTIVATIONS, CONVS, LOOKUP, Cell
from granplugin.quant.formats import FORMATS, quantize, scale_of
from granplugin.quant.granularity import grid, reduce_blocks
from granplugin.quant.site import Shape

OP, READER = "op", "reader"
"""The names of the node that a cell is about, and of the one that reads its quantized output."""

_GRAPH = {
    "fp32": (TensorProto.FLOAT, np.dtype(np.float32)),
    "fp16": (TensorProto.FLOAT16, np.dtype(np.float16)),
    "bf16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}


def network(cell: Cell) -> onnx.ModelProto:
    """The cell's network; weights are drawn with a fixed seed."""
    return _Network(cell).model()


class _Network:
    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.type, self.dtype = _GRAPH[cell.graph]
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def model(self) -> onnx.ModelProto:
        cell, shape = self.cell, INPUTS[self.cell.op]
        if cell.op in ADDS:
            operands = self._addends()
        else:
            operands = [self._quantized("x", shape, cell.input)]
        inputs = {"x": shape}
        if cell.op == ACTIVATIONS:
            inputs["other"] = OTHER
            operands.append(self._quantized("other", OTHER, cell.other))
        if cell.op in WEIGHTS:
            operands.append(self._weight())
        if cell.op == LOOKUP:
            operands.reverse()
        if cell.op in CONVS or cell.op in ("transposed", "gemm"):
            operands.append(self._constant("bias", self._draw((CHANNELS,))))
        self._op(operands)
        last = self._quantized("y", self._output_shape(), cell.output)
        if cell.output != "float":
            # What reads it decides whether it is stored in 8 bits; a maximum pool can.
            pool = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
            last = self._node("MaxPool", [last], "pool", pool, READER)
        self._node("Relu", [last], "relu", {})
        whole = {"x"} if cell.op == LOOKUP else set()
        io = [
            helper.make_tensor_value_info(
                name, TensorProto.INT64 if name in whole else self.type, dims
            )
            for name, dims in (*inputs.items(), ("relu", self._output_shape()))
        ]
        graph = helper.make_graph(self.nodes, "cell", io[:-1], io[-1:], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
        model.ir_version = 10
        return model

    def _op(self, operands: list[str]) -> None:
        op = self.cell.op
        if op in CONVS or op == "transposed":
            groups = {"depthwise": CHANNELS, "grouped": 2}.get(op, 1)
            kind = "ConvTranspose" if op == "transposed" else "Conv"
            self._node(kind, operands, "y", {"group": groups, "pads": [1, 1, 1, 1]}, "op")
        elif op == "gemm":
            self._node("Gemm", operands, "y", {"transB": 1}, OP)
        elif op in ("maxpool", "passive"):
            kind = "MaxPool" if op == "maxpool" else "AveragePool"
            self._node(kind, operands, "y", {"kernel_shape": [2, 2], "strides": [2, 2]}, "op")
        elif op in ADDS:
            self._node("Add", operands, "y", {}, OP)
        elif op == LOOKUP:
            self._node("Gather", operands, "y", {}, OP)
        else:
            self._node("MatMul", operands, "y", {}, OP)

    def _addends(self) -> list[str]:
        """What a quantized convolution puts out, and the skip input: its own input, or what another
        convolution makes of that (the shortcut of a ResNet's first blocks)."""
        shape = INPUTS[self.cell.op]
        if self.cell.op == "add_shared":
            skip = self._quantized("x", shape, self.cell.input)
            return [self._convolution("branch", skip), skip]
        read = self._quantized("x", shape, "per_tensor")
        self._convolution("shortcut", read)
        return [
            self._convolution("branch", read),
            self._quantized("shortcut", shape, self.cell.input),
        ]

    def _convolution(self, name: str, read: str) -> str:
        values = self._draw(WEIGHTS["conv"])
        scale, attributes, block = self._scale(values, self.cell.weight, WEIGHT_AXES["conv"])
        constants = self._scale_and_zero(f"{name}_weight", scale)
        cells = scale.reshape(grid(values.shape, block))
        stored = quantize(values, cells, block, FORMATS[self.cell.format])
        operands = [self._constant(f"{name}_weight", stored), *constants]
        weight = self._node("DequantizeLinear", operands, f"{name}_weight_dq", attributes)
        bias = self._constant(f"{name}_bias", self._draw((CHANNELS,)))
        return self._node("Conv", [read, weight, bias], name, {"pads": [1, 1, 1, 1]})

    def _weight(self) -> str:
        cell, shape = self.cell, WEIGHTS[self.cell.op]
        values = self._draw(shape)
        if cell.weight == "float":
            name = self._constant("weight", values)
        else:
            scale, attributes, block = self._scale(values, cell.weight, WEIGHT_AXES[cell.op])
            constants = self._scale_and_zero("weight", scale)
            if cell.stored:
                cells = scale.reshape(grid(shape, block))
                name = self._constant(
                    "weight", quantize(values, cells, block, FORMATS[cell.format])
                )
            else:
                operands = [self._constant("weight", values), *constants]
                name = self._node("QuantizeLinear", operands, "weight_q", attributes)
            name = self._node("DequantizeLinear", [name, *constants], "weight_dq", attributes)
        if cell.op == "linear":
            return self._node("Transpose", [name], "weight_t", {"perm": [1, 0]})
        return name

    def _quantized(self, name: str, shape: Shape, scales: str) -> str:
        if scales == "float":
            return name
        flat = (shape[0], math.prod(shape[1:]), 1)
        source = name
        if scales == "reshaped":
            source = self._reshape(name, flat, f"{name}_flat")
        values = self._draw(flat if scales == "reshaped" else shape)
        like = DYNAMIC.get(scales, scales)
        scale, attributes, block = self._scale(values, like, INPUT_AXES[len(shape)])
        constants = self._scale_and_zero(name, scale)
        if scales in DYNAMIC:
            constants = (self._at_run_time(name, block, scale.shape), constants[1])
        self._node("QuantizeLinear", [source, *constants], f"{name}_q", attributes)
        self._node("DequantizeLinear", [f"{name}_q", *constants], f"{name}_dq", attributes)
        if scales == "reshaped":
            return self._reshape(f"{name}_dq", shape, f"{name}_back")
        return f"{name}_dq"

    def _reshape(self, name: str, shape: Shape, output: str) -> str:
        to = self._constant(f"{output}_shape", np.array(shape, np.int64))
        return self._node("Reshape", [name, to], output, {})

    def _at_run_time(self, name: str, block: Shape, shape: Shape) -> str:
        axes = [axis for axis, part in enumerate(block) if part > 1]
        largest = np.asarray(FORMATS[self.cell.format].largest, np.float32)
        number = self._constant(f"{name}_largest", largest)
        reduced = self._constant(f"{name}_axes", np.array(axes, np.int64))
        self._node("Abs", [name], f"{name}_abs", {})
        self._node("ReduceMax", [f"{name}_abs", reduced], f"{name}_amax", {})
        self._node("Div", [f"{name}_amax", number], f"{name}_ratio", {})
        return self._reshape(f"{name}_ratio", shape, f"{name}_dynamic")

    def _scale_and_zero(self, name: str, scale: np.ndarray) -> tuple[str, str]:
        zeros = np.zeros(scale.shape, FORMATS[self.cell.format].dtype)
        return (
            self._constant(f"{name}_scale", scale),
            self._constant(f"{name}_zero", zeros),
        )

    def _scale(
        self, values: np.ndarray, scales: str, axes: dict[str, int]
    ) -> tuple[np.ndarray, dict[str, int], Shape]:
        """The scale as ONNX has it, its attributes, and the block shape it stands for."""
        shape = values.shape
        attributes: dict[str, int] = {}
        if scales in ("per_tensor", "per_tensor(1-D)"):
            block = shape
        elif scales == "per_element":
            block = (1,) * len(shape)
            attributes = {"axis": len(shape) - 1, "block_size": 1}
        elif scales.startswith(("per_block", "per_row")):
            axis = axes[scales]
            size = shape[axis] if scales == "per_row" else self.cell.size
            assert size is not None, "a cell of blocks has their size"
            block = tuple(size if n == axis else 1 for n in range(len(shape)))
            attributes = {"axis": axis, "block_size": size}
        else:
            axis = axes[scales]
            block = tuple(1 if n == axis else length for n, length in enumerate(shape))
            attributes = {"axis": axis}
        amax = reduce_blocks(np.abs(values), block)
        scale = scale_of(amax, FORMATS[self.cell.format])
        if "block_size" not in attributes:
            scale = scale.reshape(-1) if attributes else scale.reshape(())
        if scales == "per_tensor(1-D)":
            scale = scale.reshape(1)
            # An axis of length 1, where the tensor has one.
            attributes = {"axis": shape.index(1)} if 1 in shape else {}
        return scale, attributes, block

    def _node(
        self,
        kind: str,
        operands: list[str],
        output: str,
        attributes: dict[str, Any],
        name: str | None = None,
    ) -> str:
        self.nodes.append(
            helper.make_node(kind, operands, [output], name or f"{output}_node", **attributes)
        )
        return output

    def _constant(self, name: str, array: np.ndarray) -> str:
        if array.dtype == np.float32:
            array = array.astype(self.dtype)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def _draw(self, shape: Shape) -> np.ndarray:
        return self.random.standard_normal(shape).astype(np.float32)

    def _output_shape(self) -> Shape:
        shape = INPUTS[self.cell.op]
        if self.cell.op in ("maxpool", "passive"):
            return (*shape[:2], shape[2] // 2, shape[3] // 2)
        if self.cell.op == LOOKUP:
            return (*shape, CHANNELS)
        return shape
