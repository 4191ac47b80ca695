"""An ONNX file made ready to run: opset 21, what no data changes computed once, the batch open."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, version_converter

from granplugin.errors import ModelError
from granplugin.graph.read.graph import ReadGraph, read_graph, reads
from granplugin.graph.read.loading import name_nodes, name_of, reading, with_subgraphs
from granplugin.network.onnx_running import Running
from granplugin.network.onnx_spelled import OPSET
from granplugin.quant.layers import ONNX_PRODUCTS, PASSIVE
from granplugin.quant.site import Shape
from granplugin.words import counted, first

BATCH = "batch"


@dataclass(frozen=True, eq=False)
class Prepared:
    """A float file's graph as it is run and written: of opset 21, with no node that computes of
    constants alone but those that turn a product's stored weight, and axis 0 of each input open.
    `opened` are the inputs that the file fixes to 1 sample."""

    graph: ReadGraph
    opened: tuple[str, ...]


def prepare(given: onnx.ModelProto, path: Path) -> Prepared:
    """A file's float model made so; weights in other files stay there. Raises ModelError."""
    model = onnx.ModelProto()
    model.CopyFrom(given)
    with reading(path):
        _check_operators(model, path)
        model = _converted(model, path)
        opened = _open_batch(model.graph)
    graph = read_graph(model, path)
    with reading(path):
        return Prepared(read_graph(_computed(graph), path), opened)


class Shown(ReadGraph):
    """A prepared graph with the `shapes` that tensors had in a pass, 1 on axis 0."""

    def __init__(self, graph: ReadGraph, shapes: Mapping[str, Shape]) -> None:
        super().__init__(graph.model, graph.path)
        self.shapes = {name: (1, *shape[1:]) if shape else () for name, shape in shapes.items()}

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """As it was in the pass, where it was looked at."""
        return self.shapes[name] if name in self.shapes else super().shape(name)


def to_show(graph: ReadGraph) -> list[str]:
    """The tensors whose shapes a plan is made of."""
    looked_at = (*ONNX_PRODUCTS, *PASSIVE, "Add", "Sum")
    found: dict[str, None] = {}
    for node in graph.nodes:
        if node.op_type in looked_at:
            found |= dict.fromkeys([*node.input, node.output[0]])
    return [name for name in found if name and name not in graph.constant]


def _converted(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    versions = {opset.domain: opset.version for opset in model.opset_import}
    opset = versions.get("", versions.get("ai.onnx", OPSET))
    if opset != OPSET:
        try:
            model = version_converter.convert_version(model, OPSET)
        except Exception as err:  # a node without such a form, in the converter's words
            raise ModelError(
                f"{path}: it is of opset {opset}, and {_in_the_way(model, str(err))} cannot be "
                f"written in {OPSET}, which Q/DQ needs; export it anew with a newer opset "
                f"(17, or {OPSET})"
            ) from err
    name_nodes(model.graph.node)  # the converter adds some without
    model.ir_version = max(model.ir_version, 10)
    return model


def _check_operators(model: onnx.ModelProto, path: Path) -> None:
    """Raises ModelError for operators that ONNX Runtime, which runs the file, does not have."""
    own = [
        node
        for node in with_subgraphs(model.graph.node)
        if not node.domain.startswith(("ai.onnx", "com.microsoft", "com.ms")) and node.domain
    ]
    if own:
        kinds = first(sorted({f"{node.domain}.{node.op_type}" for node in own}))
        raise ModelError(
            f"{path}: {counted(own, 'node')} of own operators ({kinds}) cannot run in ONNX Runtime, "
            "where a file is calibrated; start from the torch model (callable:), or from the part of "
            "the network before them"
        )


def _in_the_way(model: onnx.ModelProto, told: str) -> str:
    """The nodes that the converter has no newer form of, as it tells it, or what it tells."""
    match = re.search(r"[Aa]dapter.* for (\w+)", told)
    nodes = [node for node in model.graph.node if match and node.op_type == match[1]]
    if match is None or not nodes:
        return f"its nodes ({' '.join(told.split())[:200]})"
    return f"{counted(nodes, 'node')} of {match[1]} ({first([name_of(node) for node in nodes])})"


def _open_batch(graph: onnx.GraphProto) -> tuple[str, ...]:
    """The inputs that were fixed to 1."""
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    del graph.input[:]
    graph.input.extend(inputs)
    names, opened = set(), []
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_value <= 1:
            if dims[0].dim_value == 1:
                opened.append(value.name)
            names.add(dims[0].dim_param)
            dims[0].dim_param = BATCH
    for value in graph.output:
        dims = value.type.tensor_type.shape.dim
        if dims and (dims[0].dim_value == 1 or dims[0].dim_param in names):
            dims[0].dim_param = BATCH
    # Shapes that exporters note are of the batch that they ran.
    del graph.value_info[:]
    return tuple(opened)


def _computed(graph: ReadGraph) -> onnx.ModelProto:
    """The model with its constants stored, as far as what depends on data reads them."""
    nodes = [node for node in graph.nodes if not graph.constant.issuperset(node.output)]
    turned = [node for node in graph.nodes if _turns_weight(graph, node)]
    wanted = {name for node in nodes for name in reads(node) if name in graph.constant}
    wanted |= {name for node in turned for name in node.input}
    wanted |= graph.constant & graph.outputs.keys()
    wanted -= {"", *(name for node in turned for name in node.output)}
    missing = sorted(wanted - graph.stored.keys())
    model = onnx.ModelProto(
        ir_version=graph.model.ir_version, opset_import=graph.model.opset_import
    )
    model.graph.name = graph.model.graph.name
    model.graph.input.extend(graph.model.graph.input)
    model.graph.output.extend(graph.model.graph.output)
    kept = {id(node) for node in (*nodes, *turned)}
    model.graph.node.extend(node for node in graph.nodes if id(node) in kept)
    for name in sorted(wanted & graph.stored.keys()):
        tensor = model.graph.initializer.add()
        tensor.CopyFrom(graph.stored[name])
        tensor.name = name
    for name, array in zip(missing, compute(graph, missing), strict=True):
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def _turns_weight(graph: ReadGraph, node: onnx.NodeProto) -> bool:
    """Whether a node only lays a product's stored weight otherwise: it stays, so that a large
    weight may stay where it is."""
    if node.op_type != "Transpose" or node.input[0] not in graph.stored:
        return False
    uses = graph.uses.get(node.output[0], ())
    return bool(uses) and all(reader.op_type in ONNX_PRODUCTS and at == 1 for reader, at in uses)


def compute(graph: ReadGraph, names: Iterable[str]) -> list[np.ndarray]:
    """What constants are, by ONNX Runtime. Raises ModelError where it does not take their nodes."""
    names = list(names)
    if not names:
        return []
    session = Running(graph).open(nodes_behind(graph, names), names)
    return list(session.run({}).values())


def nodes_behind(graph: ReadGraph, names: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that these tensors are computed by, in an order of computation."""
    found: set[str] = set()
    waiting = [*names]
    while waiting:
        node = graph.producer.get(waiting.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            waiting += reads(node)
    return [node for node in graph.nodes if node.name in found]
