"""An ONNX file from disk, and the one place where its damage becomes an error that names it.

What is wrong with a file is found while it is read, in any of a hundred ways: a node without an
input, a type of another attribute, bytes that are no text. So whatever is raised while a file is
read is told as damage of this file, with the node that was looked at.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import inliner

from granplugin.errors import ModelError, Unhonoured, UserError

_INLINED_NODES = 2**20
"""A model whose functions are inlined has at most this many."""


@contextmanager
def reading(path: Path, node: onnx.NodeProto | None = None) -> Iterator[None]:
    """What is raised inside is damage of the file, at this node where there is one: ModelError.

    Errors that are sentences already pass.
    """
    try:
        yield
    except (UserError, Unhonoured):
        raise
    except Exception as err:
        told = " ".join(str(err).split())[:200]
        where = "" if node is None else f"node {name_of(node)!r}: "
        raise ModelError(
            f"{path}: cannot be read: {where}it is damaged ({type(err).__name__}: {told})"
        ) from err


def name_of(node: onnx.NodeProto) -> str:
    """A node's name; an unnamed one is called as TensorRT calls it."""
    return node.name or f"node_of_{next(filter(None, node.output), node.op_type)}"


def read_model(path: Path) -> onnx.ModelProto:
    """A model with its functions inlined and a unique name for every node: an unnamed one is
    called as TensorRT calls it. Weights in other files stay there. Raises ModelError."""
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as err:
        why = err.strerror if isinstance(err, OSError) else "it is not ONNX"
        raise ModelError(f"{path}: cannot be read: {why}") from err
    except Exception as err:
        raise ModelError(f"{path}: cannot be read: it is not ONNX") from err
    if not model.graph.node:
        raise ModelError(f"{path}: cannot be read: it holds no nodes, so it is not an ONNX model")
    with reading(path):
        if model.functions:
            _check_inlined(model, path)
            model = inliner.inline_local_functions(model)
        name_nodes(model.graph.node)
    return model


def name_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    """Give each node a name of its own."""
    taken: set[str] = set()
    counts: Counter[str] = Counter()
    for node in nodes:
        base = name = name_of(node)
        while name in taken:
            counts[base] += 1
            name = f"{base}_{counts[base]}"
        taken.add(name)
        node.name = name


def _check_inlined(model: onnx.ModelProto, path: Path) -> None:
    """Raises ModelError for functions that call themselves, or that become too many nodes."""
    bodies = {(function.domain, function.name): function.node for function in model.functions}
    calls: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    callers: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for key, nodes in bodies.items():
        for node in with_subgraphs(nodes):
            called = (node.domain, node.op_type)
            if called in bodies:
                calls[key].append(called)
                callers[called].append(key)
    missing = {key: len(calls[key]) for key in bodies}
    ready = [key for key, count in missing.items() if not count]
    sizes: dict[tuple[str, str], int] = {}
    while ready:
        key = ready.pop()
        sizes[key] = sum(
            sizes.get((node.domain, node.op_type), 1) for node in with_subgraphs(bodies[key])
        )
        for caller in callers[key]:
            missing[caller] -= 1
            if not missing[caller]:
                ready.append(caller)
    if len(sizes) < len(bodies):
        _, name = next(key for key in bodies if key not in sizes)
        raise ModelError(f"{path}: cannot be read: function {name!r} calls itself")
    whole = sum(
        sizes.get((node.domain, node.op_type), 1) for node in with_subgraphs(model.graph.node)
    )
    if whole > _INLINED_NODES:
        raise ModelError(f"{path}: cannot be read: its functions stand for {whole:,} nodes")


def subgraphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """The bodies of If, Loop and Scan, and those inside them."""
    waiting = list(nodes)
    while waiting:
        for attribute in waiting.pop().attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield graph
                waiting.extend(graph.node)


def with_subgraphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """These nodes, and those inside them."""
    nodes = list(nodes)
    yield from nodes
    for graph in subgraphs(nodes):
        yield from graph.node
