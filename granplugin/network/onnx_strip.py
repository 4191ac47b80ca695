"""The float network that a Q/DQ file is of: activations as they come, weights as their integers
stand for, without QuantizeLinear and DequantizeLinear.

A Q or DQ of an activation is taken for the identity. What a file stores in few bits is dequantized
once (ONNX DequantizeLinear: x = (q - zero point) * scale); what it stores in float, with Q and DQ
behind it, stays as it is. Between a Q and its DQ only nodes that move values may stand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from granplugin.errors import ModelError
from granplugin.graph.read.bodies import body_graphs
from granplugin.graph.read.graph import ReadGraph, dequantizes, quantizes, reads
from granplugin.graph.read.loading import reading
from granplugin.words import counted

_MOVES = frozenset(
    [
        "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad",
        "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose",
        "Unsqueeze", "Relu",
    ]
)  # fmt: skip
"""What may stand between a Q and its DQ: it does the same to floats as to integers."""
_NEVER_NEGATIVE = frozenset(
    ["Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Sqrt", "Exp", "ReduceL2", "Softplus"]
)
_KEEPS_SIGN = _MOVES | {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Dropout"}
_BYTES = {"TRT_FP8": ml_dtypes.float8_e4m3fn}
"""Operators whose values are stored as bytes -> what a byte is."""


@dataclass(frozen=True, slots=True)
class Stripped:
    """What was taken out: `removed` counts nodes by operator. `dequantized` are constants that the
    file stored in few bits, `kept` those that it stored in float. `relus` were added, where zero is
    the lowest value of a Q that reads what may be negative."""

    removed: Mapping[str, int] = field(default_factory=dict)
    dequantized: int = 0
    kept: int = 0
    relus: int = 0

    @property
    def said(self) -> str:
        """What a reader of the plan must know of it."""
        nodes = " and ".join(f"{count} {op}" for op, count in sorted(self.removed.items()))
        parts = [f"{nodes} are stripped from the file, which is planned as a float network"]
        if self.dequantized:
            are = "constants are" if self.dequantized > 1 else "constant is"
            parts.append(
                f"{self.dequantized} {are} what the stored integers stand for, so their rounding "
                "stays in the weights"
            )
        if self.kept:
            parts.append(f"{counted(self.kept, 'weight')} stored in float as it was")
        if self.relus:
            parts.append(
                f"{counted(self.relus, 'Relu')} added where a Q had zero for its lowest value "
                "(ONNX Runtime's quantizer takes them out)"
            )
        return "; ".join(parts)


def strip(graph: ReadGraph) -> tuple[onnx.ModelProto, Stripped]:
    """The model without Q and DQ. Raises ModelError for what is quantized in a body, computes with
    integers, or changes scales between a Q and its DQ."""
    _check_bodies(graph)
    stripper = _Stripper(graph)
    for node in graph.nodes:
        with reading(graph.path, node):
            stripper.take(node)
    return stripper.model(), stripper.said()


def _check_bodies(graph: ReadGraph) -> None:
    for within, body in body_graphs(graph.nodes):
        if any(quantizes(node) or dequantizes(node) for node in body.node):
            raise ModelError(
                f"{graph.path}: in {within} something is quantized, and bodies of If, Loop and Scan "
                "are not stripped; start from the float file that it was made of"
            )


class _Stripper:
    """What becomes of the nodes, one after the other."""

    def __init__(self, graph: ReadGraph) -> None:
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.same: dict[str, str] = {}  # a tensor that is no more -> what it is now
        self.quantized: dict[str, tuple[onnx.NodeProto, ...]] = {}  # a tensor between Q and DQ
        self.constants: dict[str, np.ndarray] = {}
        self.removed: Counter[str] = Counter()
        self.kept: set[str] = set()
        self.relus = self.dequantized = 0

    def said(self) -> Stripped:
        """What was done, of what is in the model."""
        return Stripped(dict(self.removed), self.dequantized, len(self.kept), self.relus)

    def take(self, node: onnx.NodeProto) -> None:
        if quantizes(node):
            self._quantizer(node)
        elif dequantizes(node):
            self._dequantizer(node)
        else:
            self._other(node)

    def _now(self, name: str) -> str:
        return self.same.get(name, name)

    def _quantizer(self, node: onnx.NodeProto) -> None:
        self.removed[node.op_type] += 1
        source = self._now(node.input[0])
        if node.output[0] in self.graph.outputs:
            raise self._refused(node, "puts out what the network puts out, in few bits")
        if node.input[0] in self.graph.constant:
            self.kept.add(source)
        elif self._from_zero(node) and not self._never_negative(node.input[0]):
            self.relus += 1
            made = f"{node.output[0]}/relu"
            self.nodes.append(helper.make_node("Relu", [source], [made], f"{node.name}/Relu"))
            source = made
        self.same[node.output[0]] = source
        self.quantized[node.output[0]] = (node,)

    def _dequantizer(self, node: onnx.NodeProto) -> None:
        self.removed[node.op_type] += 1
        graph, given, made = self.graph, node.input[0], node.output[0]
        if given in self.quantized:
            for q in self.quantized[given]:
                self._check_scales(q, node)
            self.same[made] = self._typed(node, self.quantized[given][0], self._now(given))
        elif given in graph.constant or self._now(given) in self.constants:
            held = self._value(given)
            if held is None:
                raise self._refused(node, "dequantizes a constant that cannot be computed")
            self.constants[made] = self._dequantized(node, held)
        else:
            raise self._refused(node, "dequantizes what is given in few bits")
        if made in graph.outputs and made not in self.constants:
            kept = helper.make_node("Identity", [self.same.pop(made)], [made], f"{node.name}/out")
            self.nodes.append(kept)

    def _other(self, node: onnx.NodeProto) -> None:
        inside = [name for name in node.input if name in self.quantized]
        if inside:
            if node.op_type not in _MOVES or (node.op_type == "Pad" and len(node.input) > 2):
                raise self._refused(node, "computes with integers")
            sources = tuple(q for name in inside for q in self.quantized[name])
            self.quantized |= dict.fromkeys(filter(None, node.output), sources)
        if any(self._now(name) != name for name in node.input):
            changed = onnx.NodeProto()
            changed.CopyFrom(node)
            changed.input[:] = map(self._now, node.input)
            node = changed
        outside = reads(node) - {*node.input}
        if gone := sorted(outside & (self.same.keys() | self.quantized.keys())):
            raise self._refused(node, f"reads {gone[0]!r}, which is quantized, in its body")
        self.nodes.append(node)

    def _check_scales(self, q: onnx.NodeProto, dq: onnx.NodeProto) -> None:
        if q.input[1:2] == dq.input[1:2] or len(q.output) > 1:
            return
        left, right = (self._value(name) for name in (q.input[1], dq.input[1]))
        if left is None or right is None or left.shape != right.shape or (left != right).any():
            raise self._refused(dq, f"has another scale than {q.name!r}, whose values it reads")

    def _typed(self, dq: onnx.NodeProto, q: onnx.NodeProto, source: str) -> str:
        """The source in the type that the DQ gives."""
        before, after = (self.graph.element_type(name) for name in (q.input[0], dq.output[0]))
        if not before or not after or before == after:
            return source
        made = f"{dq.output[0]}/cast"
        self.nodes.append(helper.make_node("Cast", [source], [made], f"{dq.name}/Cast", to=after))
        return made

    def _value(self, name: str) -> np.ndarray | None:
        current = self._now(name)
        return self.constants[current] if current in self.constants else self.graph.value(current)

    def _dequantized(self, node: onnx.NodeProto, held: np.ndarray) -> np.ndarray:
        """What a constant stands for, in the type of its scales or of what the node says."""
        scale = self._value(node.input[1])
        if scale is None:
            raise self._refused(node, "dequantizes a constant by a scale that is none")
        said = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        for start, kind in _BYTES.items():
            if node.op_type.startswith(start) and held.dtype == np.uint8:
                held = held.view(kind)
        if node.op_type.startswith("TRT_MXFP8") and scale.dtype == np.uint8:
            scale = np.exp2(scale.astype(np.float32) - 127)
        kind = scale.dtype
        if said.get("output_dtype"):
            kind = helper.tensor_dtype_to_np_dtype(said["output_dtype"])
        axis = said.get("axis", self.graph.qdq_axis)
        values = held.astype(np.float32)
        if len(node.input) > 2 and node.input[2]:
            zero = self._value(node.input[2])
            if zero is None:
                raise self._refused(node, "dequantizes a constant by a zero point that is none")
            values -= _laid(zero.astype(np.float32), values.shape, axis)
        values *= _laid(scale.astype(np.float32), values.shape, axis)
        return values.astype(kind)

    def _from_zero(self, q: onnx.NodeProto) -> bool:
        """Whether zero is the lowest value that a Q gives."""
        zero = self._value(q.input[2]) if len(q.input) > 2 and q.input[2] else None
        if zero is None or not np.issubdtype(zero.dtype, np.integer):
            return False
        return bool((zero == np.iinfo(zero.dtype).min).all())

    def _never_negative(self, name: str) -> bool:
        """Whether a tensor is known to have no negative values; an input of the network is one that
        is as it is given."""
        waiting, seen = [name], {name}
        while waiting:
            node = self.graph.producer.get(waiting.pop())
            if node is None or node.op_type in _NEVER_NEGATIVE or self._clips(node):
                continue
            if quantizes(node) and self._from_zero(node):
                continue
            through = _KEEPS_SIGN - {"Pad"}
            if not (quantizes(node) or dequantizes(node) or node.op_type in through):
                return False
            for given in node.input if node.op_type == "Concat" else node.input[:1]:
                if given not in seen:
                    seen.add(given)
                    waiting.append(given)
        return True

    def _clips(self, node: onnx.NodeProto) -> bool:
        if node.op_type != "Clip":
            return False
        low = next((a.f for a in node.attribute if a.name == "min"), None)
        if len(node.input) > 1 and node.input[1]:
            held = self._value(node.input[1])
            low = None if held is None else float(held)
        return low is not None and low >= 0

    def _refused(self, node: onnx.NodeProto, why: str) -> ModelError:
        return ModelError(
            f"{self.graph.path}: node {node.name!r} {why}: such a file is not stripped; start from "
            "the float file that it was made of"
        )

    def model(self) -> onnx.ModelProto:
        """The model of what is left, and of nothing that no output needs."""
        graph = self.graph
        needed = set(graph.outputs)
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed |= reads(node)
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        for part in ("node", "initializer", "value_info", "input"):
            model.graph.ClearField(part)
        model.graph.input.extend(v for v in graph.model.graph.input if v.name not in graph.stored)
        model.graph.node.extend(reversed(kept))
        for name, array in self.constants.items():
            if name in needed:
                self.dequantized += 1
                model.graph.initializer.append(numpy_helper.from_array(array, name))
        for name, tensor in graph.stored.items():
            if name in needed:
                held = model.graph.initializer.add()
                held.CopyFrom(tensor)
                held.name = name
        given = {name for node in kept for name in node.output}
        given -= self.quantized.keys() | self.same.keys()
        model.graph.value_info.extend(v for v in graph.model.graph.value_info if v.name in given)
        return model


def _laid(scales: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Scales, or zero points, against values of this shape: one, one for each index of an axis, or
    one for each block. Raises ValueError where they do not fit."""
    if scales.size == 1:
        return scales.reshape(())
    if scales.ndim == 1 and len(shape) > 1:
        laid = [1] * len(shape)
        laid[axis] = scales.size
        return scales.reshape(laid)
    for at, (count, length) in enumerate(zip(scales.shape, shape, strict=True)):
        if count not in (1, length):
            scales = np.repeat(scales, -(-length // count), at).take(range(length), at)
    return scales
