"""The layers that are no modules: calls of functions that multiply, in modules' forwards.

Such a layer is called as its module and the function: attn.matmul, attn.matmul_1. A module whose
forward makes one product of its own weight, and nothing else that multiplies, stands for that
product: the layer has the module's name. So does a child whose weight the module reads instead of
calling it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from granplugin.network.flow import Flow
from granplugin.network.forward import batched_shape
from granplugin.network.frames import Frame
from granplugin.network.modules import Stored
from granplugin.network.product_calls import Product
from granplugin.network.values import CalledProduct, Values
from granplugin.network.watch import LayerCall
from granplugin.quant.layers import CALL, Layer, sites_of
from granplugin.quant.site import Operand, Shape

COMPUTED_ONCE = "no data reaches it: it is computed once, when the model is exported"
"""Why a product of constants is not quantized."""


@dataclass(frozen=True, slots=True, eq=False)
class CallLayer:
    """One layer with its calls of the pass. `weighted`: no data changes its second factor, of which
    `weight` are the values as a layer has them, None for a product of two activations. `call` tells
    that no module is the layer, `converted` that modelopt takes the module of this name for one."""

    name: str
    call: bool
    calls: tuple[CalledProduct, ...]
    weighted: bool
    weight: Tensor | None
    parameters: tuple[str, ...]
    unusable: str | None
    converted: bool = False

    @property
    def product(self) -> Product:
        return self.calls[0].product

    @property
    def type(self) -> str:
        return self.product.type(self.weighted)

    @property
    def foldable(self) -> tuple[Tensor, Tensor | None] | None:
        """The weight and the bias of the call with which a batch norm can be multiplied, parameters
        or computed; None where there are no such."""
        form = self.product.form
        if not self.weighted or form.reversed or (form.bias is None and not self.parameters):
            return None
        return self.product.second, self.product.bias

    @property
    def layer_calls(self) -> list[LayerCall]:
        """Which values it read and put out."""
        return [_layer_call(made, self.weighted) for made in self.calls]

    @property
    def stored(self) -> Stored | None:
        """Its weight and bias as in this pass; None for a product of two activations."""
        if self.weight is None:
            return None
        return Stored(self.type, self.product.groups, self.weight, self.product.bias)

    def describe(self, bn: nn.Module | None) -> Layer:
        """What the calls say but for the flow of values; `bn` can be folded in."""
        traits = {CALL} if self.call and not self.converted else set()
        if self.weight is not None and self.type.startswith("Conv"):
            channels = self.product.first.shape[1 - self.weight.ndim]
            if self.product.groups > 1:
                traits.add("depthwise" if self.product.groups == channels else "grouped")
            if set(self.weight.shape[2:]) == {1}:
                traits.add("pointwise")
        groups, weight = self.product.groups, self.stored
        shapes: dict[Operand, Shape | None] = {}
        if weight is not None:
            shapes["weight"] = tuple(weight.weight.shape)
        return Layer(
            self.name,
            self.type,
            sites_of(self.name, self.type, shapes, groups),
            groups=groups,
            traits=frozenset(traits),
            spread=None if weight is None else weight.spread(bn),
            unusable=self.unusable,
            call=self.call,
            parameters=self.parameters,
            reversed=bool(self.parameters) and self.product.form.reversed,
        )


def find_call_layers(
    model: nn.Module, values: Values, layers: Collection[str], ran: Collection[str]
) -> dict[str, CallLayer]:
    """Layer -> its calls, in the order of the first; `layers` are the modules that are products
    themselves, `ran` those of them that were called."""
    parameters = {values.number(p): name for name, p in model.named_parameters()}
    names = {**parameters, **{values.number(p): name for name, p in model.named_buffers()}}
    own = [made for made in values.products if made.frame.name not in layers]
    found: dict[str, list[CalledProduct]] = defaultdict(list)
    for called in _frames(own):
        for name, made in _named(called, values.flow, names, layers, ran, own):
            found[name].append(made)
    layered = {
        name: _layer(name, name not in layers or name not in ran, calls, values, parameters)
        for name, calls in found.items()
    }
    modules = dict(model.named_modules())
    return {
        name: replace(layer, converted=name in layers or _is_conv1d(modules.get(name)))
        for name, layer in layered.items()
    }


def _is_conv1d(module: nn.Module | None) -> bool:
    """Whether this is the linear layer of transformers whose weight is (in, out), as in GPT-2: of
    what is no module of torch's, modelopt knows it."""
    cls = type(module)
    return cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils"


def _frames(products: Sequence[CalledProduct]) -> list[list[CalledProduct]]:
    by_frame: dict[Frame, list[CalledProduct]] = defaultdict(list)
    for made in products:
        by_frame[made.frame].append(made)
    return list(by_frame.values())


def _named(
    called: Sequence[CalledProduct],
    flow: Flow,
    names: Mapping[int, str],
    layers: Collection[str],
    ran: Collection[str],
    own: Sequence[CalledProduct],
) -> Iterator[tuple[str, CalledProduct]]:
    """What each product of one frame is called in the model."""
    frame = called[0].frame
    if len(called) == 1 and _stands(frame, called[0], flow, names, layers, own):
        yield frame.name, called[0]
        return
    for made in called:
        name = f"{frame.name}.{made.name}".lstrip(".")
        parameter = names.get(made.second, "")
        child = parameter.removesuffix(".weight")
        of_child = parameter.endswith(".weight") and child.rpartition(".")[0] == frame.name
        if len(called) > 1 and of_child and child in layers and child not in ran:
            name = child
        yield name, made


def _stands(
    frame: Frame,
    made: CalledProduct,
    flow: Flow,
    names: Mapping[int, str],
    layers: Collection[str],
    own: Sequence[CalledProduct],
) -> bool:
    """Whether the module is a name for its one product: it has the weight, and in no module within
    it is anything multiplied."""
    inside = f"{frame.name}."
    if not frame.name or flow.data[made.second] or any(name.startswith(inside) for name in layers):
        return False
    if any(other.frame.name.startswith(inside) for other in own):
        return False
    held = {name.rpartition(".")[0] for name in _sources(made.second, flow, names)}
    return frame.name in held


def _layer(
    name: str,
    call: bool,
    calls: Sequence[CalledProduct],
    values: Values,
    parameters: Mapping[int, str],
) -> CallLayer:
    made, flow = calls[0], values.flow
    product, weighted = made.product, not flow.data[made.second]
    stored = [made.second, *(() if product.bias is None else (values.number(product.bias),))]
    known = weighted and all(number in parameters for number in stored)
    return CallLayer(
        name,
        call,
        tuple(calls),
        weighted,
        product.laid(product.second, "weight") if weighted else None,
        tuple(parameters[number] for number in stored) if known else (),
        _unusable(calls, flow) or product.unusable(weighted),
    )


def _unusable(calls: Sequence[CalledProduct], flow: Flow) -> str | None:
    if any(flow.data[made.second] != flow.data[calls[0].second] for made in calls):
        return "its second factor is a weight in one call and an activation in another"
    if all(flow.data[made.first] for made in calls):
        return None
    if any(flow.data[made.second] for made in calls):
        return "its weight is its first operand, and engines quantize a weight that is the second"
    return COMPUTED_ONCE


def _sources(value: int, flow: Flow, names: Mapping[int, str]) -> set[str]:
    """The parameters and buffers that a value is computed from."""
    found, seen, waiting = set(), set(), [value]
    while waiting:
        number = waiting.pop()
        if number in seen:
            continue
        seen.add(number)
        if number in names:
            found.add(names[number])
        elif (op := flow.producer[number]) is not None:
            waiting += op.reads
    return found


def _layer_call(made: CalledProduct, weighted: bool) -> LayerCall:
    shapes = (
        batched_shape(made.product.first),
        batched_shape(made.product.laid(made.product.second, "other")),
    )
    return LayerCall(
        made.first, shapes[0], made.result, made.shape,
        None if weighted else made.second, None if weighted else shapes[1], made.kind,
    )  # fmt: skip
