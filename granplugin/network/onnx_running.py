"""An ONNX graph run in ONNX Runtime: its outputs, any of its tensors, any part of it.

Sessions share the graph's weights, and those in files beside it are mapped, not read. Optimizations
are off: then the same nodes give the same bits in every session, and for any number of samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from granplugin.errors import ModelError
from granplugin.graph import reference
from granplugin.graph.read.graph import ReadGraph, reads
from granplugin.graph.read.in_parts import HANDED_ON
from granplugin.quant.site import Shape
from granplugin.translate import translated

Feeds = Mapping[str, np.ndarray]
_SMALL = 1024
"""Values of a constant that stand in a session's graph: shapes and axes, which it looks at."""
_AT_ONCE = 2**26
"""Values of tensors that are asked for and held at once: 256 MB of float32."""


class Running:
    """A graph as `onnx_prepared.prepare` gives it."""

    def __init__(self, graph: ReadGraph) -> None:
        self.graph = graph
        self.inputs = {value.name: value.type.tensor_type for value in graph.model.graph.input}
        self._shared: dict[str, onnxruntime.OrtValue] = {}
        self._plain: Computation | None = None

    def outputs(self, batch: Feeds) -> dict[str, np.ndarray]:
        """The file's own outputs. Raises ModelError."""
        if self._plain is None:
            self._plain = self.open(self.graph.nodes, list(self.graph.outputs))
        return self._plain.run(batch)

    def check(self, batch: Feeds) -> None:
        """Raises ModelError where a batch is not what the file takes."""
        path = self.graph.path
        for name in self.inputs:
            if name not in batch:
                raise ModelError(
                    f"{path}: it takes {_names(self.inputs)}, and the data have {_names(batch)}: "
                    f"{name!r} is missing"
                )
        for name, array in batch.items():
            if name not in self.inputs:
                raise ModelError(
                    f"{path}: it has no input {name!r}; it takes {_names(self.inputs)}"
                )
            held = self.inputs[name]
            wanted = helper.tensor_dtype_to_np_dtype(held.elem_type)
            if array.dtype != wanted:
                floating = np.issubdtype(wanted, np.floating)
                way = f"store the data as {wanted}" if not floating else "export it with float32"
                raise ModelError(
                    f"{path}: its input {name!r} is {wanted}, and the data have {array.dtype}; {way}"
                )
            lengths = [d.dim_value if d.HasField("dim_value") else None for d in held.shape.dim]
            fits = len(lengths) == array.ndim and all(
                length in (None, n) for length, n in zip(lengths, array.shape, strict=True)
            )
            if held.HasField("shape") and not fits:
                told = ", ".join("any" if length is None else str(length) for length in lengths)
                raise ModelError(
                    f"{path}: its input {name!r} takes [{told}], and the data have "
                    f"{list(array.shape)}"
                )

    def shapes(self, names: Iterable[str], batch: Feeds) -> dict[str, Shape]:
        """The shapes that these tensors and the inputs have in a pass over this batch. Raises
        ModelError."""
        self.check(batch)
        told = {name: name + "/shape" for name in names if name not in self.inputs}
        nodes = [helper.make_node("Shape", [name], [shape]) for name, shape in told.items()]
        # Asked for nothing, ONNX Runtime refuses to run.
        found = (
            self.open([*self.graph.nodes, *nodes], list(told.values())).run(batch) if told else {}
        )
        shapes = {name: tuple(found[shape].tolist()) for name, shape in told.items()}
        return shapes | {name: batch[name].shape for name in self.inputs}

    def open(
        self,
        nodes: Sequence[onnx.NodeProto],
        outputs: Sequence[str],
        constants: Feeds = MappingProxyType({}),
        given: Mapping[str, np.dtype] = MappingProxyType({}),
    ) -> Computation:
        """A session of these nodes, in an order of computation, which compute of the graph's inputs
        or of the tensors `given`, and of its constants or others. Raises ModelError where ONNX
        Runtime refuses it."""
        graph = self.graph
        model = onnx.ModelProto(
            ir_version=graph.model.ir_version, opset_import=graph.model.opset_import
        )
        model.graph.name = graph.model.graph.name or "part"
        own = {value.name: value for value in graph.model.graph.input}
        read = {name for node in nodes for name in reads(node)} | set(outputs)
        fed = [name for name in (given or own) if name in read]
        for name in fed:
            if name in given:
                kind = helper.np_dtype_to_tensor_dtype(given[name])
                model.graph.input.append(helper.make_tensor_value_info(name, kind, None))
            else:
                model.graph.input.append(own[name])
        model.graph.node.extend(nodes)
        options = reference.session_options(folder=graph.path.parent)
        shared: dict[str, onnxruntime.OrtValue] = {}
        for name in sorted(read):
            if name in constants:
                held = constants[name]
                if held.size <= _SMALL:
                    model.graph.initializer.append(numpy_helper.from_array(held, name))
                else:
                    shared[name] = onnxruntime.OrtValue.ortvalue_from_numpy(held)
                    model.graph.initializer.append(_elsewhere(name, held.dtype, held.shape))
            elif name in graph.stored:
                stored = graph.stored[name]
                if stored.data_location == TensorProto.EXTERNAL:
                    outside = model.graph.initializer.add()
                    outside.CopyFrom(stored)
                    outside.name = name
                    # What it computes of large weights would stay there between runs.
                    options.enable_cpu_mem_arena = False
                elif int(np.prod(stored.dims)) > _SMALL:
                    shared[name] = self._value(name)
                    dtype = helper.tensor_dtype_to_np_dtype(stored.data_type)
                    model.graph.initializer.append(_elsewhere(name, dtype, tuple(stored.dims)))
                else:
                    model.graph.initializer.append(numpy_helper.from_array(graph.array(name), name))
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        if shared:
            options.add_external_initializers(list(shared), list(shared.values()))
        with translated(f"{graph.path}: onnxruntime refuses it", reference.ERRORS, ModelError):
            session = reference.open_session(model.SerializeToString(), options=options)
        return Computation(
            session, tuple(fed), tuple(outputs), str(graph.path), tuple(shared.values())
        )

    def run_in_parts(
        self,
        nodes: Sequence[onnx.NodeProto],
        outputs: Sequence[str],
        constants: Feeds,
        sizes: Mapping[str, int],
        batch: Feeds,
    ) -> dict[str, np.ndarray]:
        """What a session of these nodes gives for a batch. Constants that are large, as their
        `sizes` tell in values, are read a part of the nodes at a time, each run on what the one
        before it left. Raises ModelError."""
        parts = _parts(self.graph, nodes, sizes)
        if len(parts) == 1:
            return self.open(nodes, outputs, constants).run(batch)
        held, found = dict(batch), {name: batch[name] for name in outputs if name in batch}
        found |= {name: self.graph.array(name) for name in outputs if name in self.graph.stored}
        for part, left in parts:
            made = {name for node in part for name in node.output}
            wanted = sorted(made.intersection([*left, *outputs]))
            given = {name: array.dtype for name, array in held.items()}
            held |= self.open(part, wanted, constants, given).run(held)
            found |= {name: held[name] for name in made.intersection(outputs)}
            held = {name: array for name, array in held.items() if name in left}
        return {name: found[name] for name in outputs}

    def _value(self, name: str) -> onnxruntime.OrtValue:
        if name not in self._shared:
            array = np.ascontiguousarray(self.graph.array(name))
            self._shared[name] = onnxruntime.OrtValue.ortvalue_from_numpy(array)
        return self._shared[name]


@dataclass(frozen=True)
class Computation:
    """What computes `outputs` of `inputs`; `held` are the weights that it shares."""

    session: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    path: str
    held: tuple[Any, ...]

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """The outputs by name; feeds may hold more than the inputs. Raises ModelError with what
        ONNX Runtime says."""
        with translated(f"{self.path}: onnxruntime cannot run it", reference.ERRORS, ModelError):
            outputs = self.session.run(self.outputs, {name: feeds[name] for name in self.inputs})
        return dict(zip(self.outputs, outputs, strict=True))


def _parts(
    graph: ReadGraph, nodes: Sequence[onnx.NodeProto], sizes: Mapping[str, int]
) -> list[tuple[list[onnx.NodeProto], set[str]]]:
    """The nodes in parts, and what later parts read of each and of what was there before; a part
    ends where numpy can hand all of that on."""
    last = {name: at for at, node in enumerate(nodes) for name in reads(node)}
    parts: list[tuple[list[onnx.NodeProto], set[str]]] = []
    part: list[onnx.NodeProto] = []
    live: set[str] = {value.name for value in graph.model.graph.input if value.name in last}
    values = 0
    for at, node in enumerate(nodes):
        more = sum(sizes.get(name, 0) for name in node.input)
        if (
            values + more > _AT_ONCE
            and part
            and all(graph.element_type(x) in HANDED_ON for x in live)
        ):
            parts.append((part, set(live)))
            part, values = [], 0
        part.append(node)
        values += more
        live = {name for name in {*live, *node.output} if last.get(name, 0) > at}
    return [*parts, (part, set())]


def parts_of(batch: Feeds, values: int) -> Iterator[Feeds]:
    """A batch in parts, each of as many samples as tensors of so many values in one sample leave
    room for."""
    count = len(next(iter(batch.values())))
    size = max(1, min(count, _AT_ONCE // max(values, 1)))
    for start in range(0, count, size):
        yield {name: array[start : start + size] for name, array in batch.items()}


def _elsewhere(name: str, dtype: np.dtype, shape: Shape) -> TensorProto:
    """An initializer whose numbers the session is given."""
    tensor = TensorProto(
        name=name,
        dims=shape,
        data_type=helper.np_dtype_to_tensor_dtype(dtype),
        data_location=TensorProto.EXTERNAL,
    )
    length = int(np.prod(shape)) * dtype.itemsize
    for key, value in (("location", "shared"), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "nothing"
