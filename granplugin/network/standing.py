"""Where a layer stands in the flow of values, alike for modules, calls and nodes of a file: what its
result is added to, what its tensors are copies of and joined with, and what it is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from granplugin.network.attention_traits import find_attention
from granplugin.network.flow import Flow
from granplugin.network.residuals import Skip, find_concats, find_same, find_skips
from granplugin.network.role_traits import Product, find_roles
from granplugin.quant.layers import Layer, sites_of
from granplugin.quant.site import Operand, Shape


@dataclass(frozen=True, slots=True)
class CallValues:
    """The values of one call of a layer: its input, its result (None where it puts out no tensor)
    and, of a product of two activations, the second."""

    input: int
    output: int | None
    other: int | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """A layer's skip input, if it has one; of each operand the number of its tensor and that of the
    concatenation it is part of; and the traits that follow."""

    skip: Skip | None
    tensors: Mapping[Operand, int]
    concats: Mapping[Operand, int]
    traits: frozenset[str]

    def of(self, layer: Layer, shapes: Mapping[Operand, Shape | None]) -> Layer:
        """The layer with its sites, whose `shapes` have 1 on axis 0, and with these traits."""
        if self.skip is not None:
            shapes = {**shapes, "skip": self.skip.shape}
        sites = sites_of(layer.name, layer.type, shapes, layer.groups, self.tensors, self.concats)
        return replace(layer, sites=sites, traits=layer.traits | self.traits)


def find_standings(
    flow: Flow,
    calls: Mapping[str, Sequence[CallValues]],
    products: Mapping[str, Product],
    starts: set[int],
    ends: set[int],
) -> dict[str, Standing]:
    """Layer -> where it stands; `calls` are those of the layers that run, `products` those that have
    a weight and all lookups, `starts` and `ends` the values of the network's inputs and outputs."""
    results = {
        name: [made.output for made in calls[name] if made.output is not None]
        for name, product in products.items()
        if name in calls and product.operation != "lookup"
    }
    factors = {
        name: (of_layer[0].input, of_layer[0].other, of_layer[0].output)
        for name, of_layer in calls.items()
        if of_layer[0].other is not None and of_layer[0].output is not None
    }
    skips, roles = find_skips(flow, results, ends), find_roles(flow, products, ends)
    concats, same, attention = find_concats(flow), find_same(flow), find_attention(flow, factors)
    from_input, to_output = flow.reached_from(starts), flow.leading_to(ends)

    def standing(name: str, calls: Sequence[CallValues]) -> Standing:
        first, skip = calls[0], skips.get(name)
        values: dict[Operand, int | None] = {
            "input": first.input,
            "other": first.other,
            "output": first.output,
            "skip": skip.value if skip else None,
        }
        tensors = {at: same.get(n, n) for at, n in values.items() if n is not None}
        traits = {
            "first": any(made.input in from_input for made in calls),
            "last": any(made.output in to_output for made in calls),
        }
        held = {trait for trait, holds in traits.items() if holds}
        if name in attention:
            held.add(attention[name])
        return Standing(
            skip,
            tensors,
            {at: concats[n] for at, n in tensors.items() if n in concats},
            roles.get(name, frozenset()) | held,
        )

    return {name: standing(name, of_layer) for name, of_layer in calls.items()}
