"""Which layer each kernel of an engine works for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from granplugin.backends.engine_plan import EnginePlan
from granplugin.backends.nvidia.kernels import Kernels
from granplugin.quant.layers import Layer
from granplugin.quant.site import OPERANDS

NO_LAYER = ""
"""Stands for what works for no layer, such as products of two activations."""


def owners_of(
    plan: EnginePlan, products: Mapping[str, str], layers: Sequence[Layer]
) -> tuple[list[str], dict[str, str]]:
    """For each kernel the layer that it works for, or NO_LAYER; and the layers whose products are
    in kernels of others -> which, NO_LAYER where they are in none that the plan tells.

    A kernel that multiplies works for the layer whose product it has, the first of several, and
    NO_LAYER where that is none's (as between two activations). Of the others, one that has nodes of
    one layer alone works for it. One that has more finishes the layer whose result it reads, the
    last of several: it scales, adds, activates, and rounds for the next one. One that has no nodes
    changes a layout, and works for the first layer that reads it.
    """
    kernels = Kernels("", plan, {})
    at = {id(kernel): number for number, kernel in enumerate(plan.kernels)}
    weighted = {layer.name for layer in layers if "weight" in layer.multiplied}
    multiplying: dict[int, str] = {}
    elsewhere: dict[str, str] = {}
    for node, module in sorted(products.items(), key=lambda each: each[1] not in weighted):
        layer = module if module in weighted else NO_LAYER
        own = [at[id(kernel)] for kernel in kernels.multiplying(node)]
        taken = [multiplying.setdefault(number, layer) for number in own]
        if layer and layer not in taken:
            elsewhere[layer] = taken[0] if taken else NO_LAYER
    scopes = {f"{layer.name}.{operand}": layer.name for layer in layers for operand in OPERANDS}
    scopes |= {layer.name: layer.name for layer in layers}
    scopes |= {layer.bn: layer.name for layer in layers if layer.bn}

    behind: dict[str, tuple[int, str]] = {}  # a tensor -> its kernel, and the layer it is of
    found: list[str | None] = []
    for number, kernel in enumerate(plan.kernels):
        of_nodes = {scopes.get(node.rpartition("/")[0]) for node in kernel.onnx_nodes}
        works_for = multiplying.get(number)
        if works_for is None and len(of_nodes) == 1:
            (works_for,) = of_nodes
        read = [behind[tensor.name] for tensor in kernel.inputs if tensor.name in behind]
        before = max(read)[1] if works_for is None and read else works_for
        if before is not None:
            behind |= {tensor.name: (number, before) for tensor in kernel.outputs}
        found.append(before if kernel.onnx_nodes else works_for)
    for number in reversed(range(len(found))):
        if found[number] is None:
            outputs = plan.kernels[number].outputs
            readers = sorted(at[id(k)] for tensor in outputs for k in kernels.readers[tensor.name])
            owners = [owner for reader in readers if (owner := found[reader]) is not None]
            made_by = [behind[tensor.name][1] for tensor in outputs if tensor.name in behind]
            found[number] = next(iter((*owners, *made_by)), NO_LAYER)
    return [owner or NO_LAYER for owner in found], elsewhere
