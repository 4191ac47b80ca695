"""Advice on where Q/DQ stands: what it keeps from fusing, and what it is for nothing."""

from __future__ import annotations

from collections.abc import Iterator

from granplugin.audits.case import FLOAT, Case
from granplugin.graph.read.graph import quantizes
from granplugin.graph.read.layout import THROUGH
from granplugin.results.audited import Finding


def cut_add(case: Case) -> Iterator[Finding]:
    for node in case.graph.nodes:
        roles = case.by_node.get(node.name, {})
        if node.op_type != "Add" or not roles:
            continue
        for operand in roles.values():
            others = [name for name in node.input if name != operand.result]
            from_product = case.graph.of_product.get(operand.source)
            if from_product and not any(case.graph.of_product.get(name) for name in others):
                quantized = any(name in case.results for name in others)
                yield case.find(
                    "qdq-cuts-add", node.name,
                    f"its Q/DQ stands between {from_product} and the sum, which are not fused then",
                    "leave this side float; the skip's Q/DQ is enough"
                    if quantized
                    else "quantize the other branch, the skip, instead",
                    role="skip",
                )  # fmt: skip


def float_skip(case: Case) -> Iterator[Finding]:
    for node in case.graph.nodes:
        if node.op_type != "Add" or node.name in case.by_node or len(node.input) != 2:
            continue
        if any(name in case.graph.constant for name in node.input):
            continue
        branch = [name for name in node.input if case.graph.of_product.get(name) in case.by_node]
        skip = [name for name in node.input if name not in branch]
        if len(branch) != 1 or len(skip) != 1:
            continue
        pays = case.library.reads_any_skip or _is_read(case, branch[0], skip[0])
        if pays and _next_is_quantized(case, node.output[0]):
            yield case.find(
                "float-residual", node.name,
                "its skip input is float, so the convolution before it and the sum write float",
                "write skip: per_tensor",
                role="skip",
            )  # fmt: skip


def _is_read(case: Case, branch: str, skip: str) -> bool:
    """TensorRT-RTX reads a skip in 8 bits where a layer reads it through the same Q/DQ, and only in
    the kernel behind a weight with several scales (bench/rtx.py: ResNet-50 moves 115 MB with and
    127 without; with per_tensor weights 89 with and 75 without)."""
    weight = case.by_node[case.graph.of_product[branch]].get("weight")
    several = weight is not None and weight.row.granularity != "per_tensor"
    return several and any(map(quantizes, case.graph.readers(skip)))


def _next_is_quantized(case: Case, name: str) -> bool:
    """Whether a tensor, but for an activation, is quantized next."""
    waiting = [name]
    while waiting:
        for node in case.graph.readers(waiting.pop()):
            if quantizes(node):
                return True
            if node.op_type in ("Relu", "Clip"):
                waiting.append(node.output[0])
    return False


_ACTIVATIONS = frozenset(
    [
        "Clip",
        "Elu",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Mish",
        "PRelu",
        "Relu",
        "Sigmoid",
        "Softplus",
        "Tanh",
    ]
)


def before_batch_norm(case: Case) -> Iterator[Finding]:
    yield from _between(
        case, "qdq-before-batch-norm", frozenset({"BatchNormalization"}), "batch norm",
        "quantize behind the batch norm, or fold it first (bn: fold)",
    )  # fmt: skip


def before_activation(case: Case) -> Iterator[Finding]:
    yield from _between(
        case, "qdq-before-activation", _ACTIVATIONS, "activation",
        "quantize behind the activation",
    )  # fmt: skip


def _between(
    case: Case, code: str, readers: frozenset[str], word: str, instead: str
) -> Iterator[Finding]:
    for pair in case.found.pairs:
        product = case.graph.of_product.get(pair.pair.source)
        behind = [n for n in case.graph.readers(pair.pair.result) if n.op_type in readers]
        if product and behind:
            yield case.find(
                code, behind[0].name,
                f"Q/DQ stands between {product} and its {word}, which are not one kernel then",
                instead, role="input",
            )  # fmt: skip


def twice(case: Case) -> Iterator[Finding]:
    for pair in case.found.pairs:
        if pair.pair.q is not None and _quantized(case, pair.pair.source):
            yield case.find(
                "qdq-twice", pair.pair.q.name, "it quantizes what was quantized and dequantized",
                "take one of the two pairs out", role="input",
            )  # fmt: skip


def _quantized(case: Case, name: str) -> bool:
    """Whether a tensor, but for what renames it, is the result of a DequantizeLinear."""
    while name not in case.results:
        node = case.graph.producer.get(name)
        if node is None or node.op_type not in THROUGH:
            return False
        name = node.input[0]
    return True


def unmoved(case: Case) -> Iterator[Finding]:
    for operand in case.found.operands:
        stops = [op for op in operand.moved if op in case.library.moves_not]
        if operand.product and stops and operand.row.operand != "weight":
            yield case.find(
                "qdq-before-resize", operand.node,
                f"its Q/DQ stands in front of a {stops[0]} and stays there, so that it gets float",
                f"quantize behind the {stops[0]}", role="input",
            )  # fmt: skip


def unread(case: Case) -> Iterator[Finding]:
    """Activations that are rounded and that nobody reads in 8 bits, whatever is done about it."""
    told = {
        finding.layer for check in (before_batch_norm, before_activation) for finding in check(case)
    }
    for pair in case.found.pairs:
        readers = case.readers[pair.pair.dq.name]
        if pair.pair.q is None or not readers:
            continue
        if {call.precision for call in case.ran(pair.pair.dq.name)} != {"float"}:
            continue
        roles = {operand.row.operand for operand in readers}
        if roles & {"weight", "skip", "output"} or any(o.node in told for o in readers):
            continue
        if any(o.product and case.native(o.node, o.row.format) != FLOAT for o in readers):
            continue  # another finding says how it is read
        yield case.find(
            "qdq-unread", readers[0].node, "its Q/DQ only rounds: nobody reads the tensor in 8 bits",
            "leave it float", role=readers[0].row.at.word,
        )  # fmt: skip
