"""What a layer is for, told by what becomes of its result: a head, a router, part of a detector.

No name decides. What the defaults make of each, granplugin.recipe.presets says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from granplugin.network.flow import Flow
from granplugin.quant.layers import DETECTION, EMBEDDING, HEAD, ROUTER, VOCABULARY, Operation


@dataclass(frozen=True, slots=True)
class Product:
    """A layer with a weight that ran: the values it reads and puts out, in all calls; its output
    `channels`; of a lookup the rows. `bare`: no batch norm is behind it."""

    operation: Operation
    reads: tuple[int, ...]
    results: tuple[int, ...]
    channels: int
    bare: bool


def find_roles(
    flow: Flow, products: Mapping[str, Product], ends: set[int]
) -> dict[str, frozenset[str]]:
    """Layer -> its traits, of those that have a role.

    head: an output is computed from its result alone, or from several such that are joined.
    vocabulary: a head of a linear layer with as many channels as the largest embedding that data
    choose from has rows, tied to it or not. router: what is chosen by its result (topk, argmax,
    sort) has a say in what later products compute. embedding: a lookup.

    detection: of a detector, what ultralytics keeps float in its INT8 engines for TensorRT (pull
    request 26220, by names): convolutions whose results are joined as they are, without a batch
    norm or an activation, and from there lead to an output without another product; a convolution
    right behind a softmax on that way (DFL, the expectation of a distribution); and linear layers
    and transposed convolutions without a batch norm that none of those convolutions depends on.
    """
    found: dict[str, set[str]] = defaultdict(set)
    multiplying = {name: p for name, p in products.items() if p.operation != "lookup"}
    alone = flow.leading_to(ends, concats=True)
    tokens = max((p.channels for p in products.values() if _tokens(flow, p)), default=0)
    for name, product in products.items():
        if product.operation == "lookup":
            found[name].add(EMBEDDING)
        elif alone.issuperset(product.results):
            found[name].add(HEAD)
            if product.operation == "linear" and product.channels == tokens:
                found[name].add(VOCABULARY)
    for name in _routers(flow, multiplying):
        found[name].add(ROUTER)
    for name in _detection(flow, multiplying, ends):
        found[name].add(DETECTION)
    return {name: frozenset(traits) for name, traits in found.items()}


def _tokens(flow: Flow, product: Product) -> bool:
    """Whether data choose its rows, as they do not those of positions."""
    return product.operation == "lookup" and any(flow.data[each] for each in product.reads)


def _routers(flow: Flow, products: Mapping[str, Product]) -> set[str]:
    made = {result: name for name, product in products.items() for result in product.results}
    found = set()
    for op in flow.ops:
        if op.kind == "choice":
            behind = flow.made_of(op.reads)
            names = {made[number] for number in behind if number in made}
            if names and _multiplied(flow, op.writes):
                found |= names
    return found


def _detection(flow: Flow, products: Mapping[str, Product], ends: set[int]) -> set[str]:
    leading = flow.made_of(ends)
    softmax = {
        moved
        for op in flow.ops
        if op.kind == "softmax"
        for moved in flow.ahead(op.writes, ("copy", "move"))
    }
    expectations = {
        name
        for name, product in products.items()
        if product.operation == "convolution"
        and leading.issuperset(product.results)
        and softmax.issuperset(product.reads)
    }
    leading |= flow.made_of([n for name in expectations for n in products[name].reads])
    joined = {
        name
        for name, product in products.items()
        if product.operation == "convolution"
        and product.bare
        and name not in expectations
        and all(_is_joined(flow, result, leading) for result in product.results)
    }
    if len(joined) < 2:
        return set()
    needed = flow.made_of([n for name in joined for n in products[name].reads], ())
    others = {
        name
        for name, product in products.items()
        if product.operation in ("transposed", "linear")
        and product.bare
        and needed.isdisjoint(product.results)
    }
    return joined | expectations | others


def _is_joined(flow: Flow, result: int, leading: set[int]) -> bool:
    """Whether the value, as it is, becomes part of a concatenation on the way to an output."""
    moved = flow.ahead((result,), ("copy", "move"))
    readers = [op for number in moved for op in flow.consumers[number]]
    return any(op.kind == "concat" and not leading.isdisjoint(op.writes) for op in readers)


def _multiplied(flow: Flow, numbers: Iterable[int]) -> bool:
    """Whether a product reads what is computed from these values."""
    found: set[int] = set()
    waiting = list(numbers)
    while waiting:
        number = waiting.pop()
        if number in found:
            continue
        found.add(number)
        for op in flow.consumers[number]:
            if op.kind == "product":
                return True
            waiting += op.writes
    return False
