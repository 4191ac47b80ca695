"""Small edits of an ONNX graph that the stages share: markers, constants, taking a node out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

SITE = "Site"
DOMAIN = "granplugin"
"""A marker is an identity of this op type and domain; its attribute `site` says where it sits."""


def unique(name: str, taken: set[str]) -> str:
    """The name, or name_1, name_2, ... where it is taken; it is taken from then on."""
    candidate, count = name, 0
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    taken.add(candidate)
    return candidate


def marker_body() -> ir.Function:
    """What a marker computes, for whoever runs a file with markers: its input, as it is."""
    x = ir.Value(name="x")
    identity = ir.node("Identity", [x], name="identity")
    graph = ir.Graph([x], identity.outputs, nodes=[identity], opset_imports={"": 21})
    site = ir.Attr("site", ir.AttributeType.STRING, None)
    return ir.Function(DOMAIN, SITE, graph=graph, attributes=[site])


def is_marker(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == SITE and node.domain == DOMAIN


def site_of(marker: ir.Node) -> str:
    return str(marker.attributes["site"].as_string())


def scope_of(node: ir.Node) -> str:
    """The module a node is of."""
    return (node.name or "").rpartition("/")[0]


def markers(graph: ir.Graph) -> Iterator[ir.Node]:
    """All markers, in the order of computation."""
    return filter(is_marker, list(all_nodes(graph)))


def all_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Its nodes in the order of computation, each followed by those of the graphs in it.

    (As ir.Graph.all_nodes, in a third of the time: edits walk the graph at each seam.)
    """
    for node in graph:
        yield node
        yield from inner_nodes(node)


def inner_nodes(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes of the graphs that are attributes of this one: the branches of an If."""
    for attribute in node.attributes.data.values():
        if attribute.type is ir.AttributeType.GRAPH:
            yield from all_nodes(attribute.as_graph())
        elif attribute.type is ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                yield from all_nodes(graph)


def computes_of_one(node: ir.Node) -> bool:
    """Whether it has but one operand that is no constant."""
    return sum(each is not None and constant(each) is None for each in node.inputs) == 1


def constant(value: ir.Value | None) -> np.ndarray | None:
    """What the value always is, or None."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def add_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer. (Existing ones are never changed: the exporter merges equal ones.)"""
    # ir.tensor asks first what else the value could be, which is a tenth of an insertion.
    tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
    )
    graph.register_initializer(value)
    return value


def add_made(
    graph: ir.Graph,
    name: str,
    shape: Sequence[int],
    dtype: np.dtype,
    make: Callable[[], np.ndarray],
) -> ir.Value:
    """A new initializer that is made whenever it is read, and so takes no memory until it is
    written."""
    kind = ir.DataType.from_numpy(dtype)
    tensor = ir.LazyTensor(lambda: ir.Tensor(make()), kind, ir.Shape(shape), name=name)
    value = ir.Value(name=name, type=ir.TensorType(kind), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let everything that reads `old` read `new`; the graph's outputs keep their names.

    (onnx_ir's OutputFixPass would give an input that is an output a new name, and leaves a constant
    that is one.)
    """
    if old.is_graph_output():
        name = old.name
        if new.is_graph_input() or new.is_graph_output() or new.is_initializer():
            node = ir.node("Identity", [new], name=f"{name}/Identity")
            old.producer().append(node)
            for user, index in list(old.uses()):
                user.replace_input_with(index, new)
            new = node.outputs[0]
        old.name, new.name = None, name
        new.type, new.shape = old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def bypass(node: ir.Node) -> None:
    """Take out a node; its readers read its first input.

    Requires that it is in a graph and has one output, for which the input can stand. Ensures that
    it is in none. Raises PreconditionError.
    """
    if len(node.outputs) != 1 or not node.inputs or node.inputs[0] is None or node.graph is None:
        raise ir.passes.PreconditionError(f"{node.name} has no one output with an input for it")
    replace(node.outputs[0], node.inputs[0])
    node.graph.remove(node, safe=True)


def only_user(value: ir.Value) -> ir.Node | None:
    """The one node that reads the value, or None where it is read elsewhere too."""
    uses = value.uses()
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None
