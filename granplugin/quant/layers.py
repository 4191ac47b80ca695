"""The layers of a model as the plan sees them: kinds of product, sites, traits and the BN behind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal

from granplugin.quant.given import Given, given_from_json, given_to_json
from granplugin.quant.site import OPERANDS, Operand, Shape, Site

Operation = Literal["convolution", "transposed", "linear", "matmul", "lookup"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of product: what it multiplies, and how its tensors lie.

    `operation` is what it is called where kinds are treated alike. `channels` is the axis of the
    channels of its activations, `weight_channels` that of its weight's output channels. `onnx` are
    the operators it is exported as.
    """

    operation: Operation
    multiplied: tuple[Operand, ...]
    onnx: tuple[str, ...]
    channels: int
    weight_channels: int = 0

    def channel_axis(self, rank: int) -> int:
        """The axis of the channels of an activation of this rank."""
        return self.channels if self.channels >= 0 else rank + self.channels


_CONVOLUTION = Kind("convolution", ("weight", "input"), ("Conv",), 1, 0)
_TRANSPOSED = Kind("transposed", ("weight", "input"), ("ConvTranspose",), 1, 1)
_LINEAR = Kind("linear", ("weight", "input"), ("Gemm", "MatMul"), -1, 0)
_LOOKUP = Kind("lookup", ("weight",), ("Gather",), -1, 0)
PRODUCTS: dict[str, Kind] = {
    **{f"Conv{rank}d": _CONVOLUTION for rank in (1, 2, 3)},
    **{f"ConvTranspose{rank}d": _TRANSPOSED for rank in (1, 2, 3)},
    "Linear": _LINEAR,
    "MatMul": Kind("matmul", ("input", "other"), ("MatMul",), -1),
    # Which rows of its weight it puts out, integers say: a product with zeros and a one.
    "Embedding": _LOOKUP,
    # Nodes of an ONNX file.
    "Gather": _LOOKUP,
    "Conv": _CONVOLUTION,
    "ConvTranspose": _TRANSPOSED,
    "Gemm": _LINEAR,
}
"""Type of a layer -> the kind of product it is."""
ONNX_PRODUCTS = tuple(
    dict.fromkeys(
        op for kind in PRODUCTS.values() if kind.operation != "lookup" for op in kind.onnx
    )
)
"""The ONNX operators that multiply."""
LOOKUP = "Gather"
"""The one that looks rows up."""
WEIGHTED = frozenset(name for name, kind in PRODUCTS.items() if "weight" in kind.multiplied)
LOOKUPS = frozenset(name for name, kind in PRODUCTS.items() if kind.operation == "lookup")
_RANKS = (1, 2, 3)
_LAST = frozenset({"LayerNorm", "LayerNormalization"})
NORMS = _LAST | {"InstanceNormalization", *(f"InstanceNorm{rank}d" for rank in _RANKS)}
POOLS = frozenset(
    {"MaxPool", "AveragePool", "GlobalAveragePool"}
    | {f"{kind}Pool{rank}d" for kind in ("Max", "Avg", "AdaptiveAvg") for rank in _RANKS}
)
BATCH_NORMS = frozenset({"BatchNormalization", *(f"BatchNorm{rank}d" for rank in _RANKS)})
LEAKY = frozenset({"LeakyReLU", "LeakyRelu"})
PASSIVE = NORMS | POOLS | BATCH_NORMS | LEAKY
"""Types without a quantizable weight; with WEIGHTED, every type modelopt gives quantizers and
granplugin sites, and what the same is called in ONNX. (Recurrent layers stay float.)"""

SCORES, VALUES = "attention_scores", "attention_values"
CALL = "call"
HEAD, VOCABULARY, ROUTER = "head", "vocabulary", "router"
EMBEDDING, DETECTION = "embedding", "detection"
TRAITS = (
    "depthwise", "grouped", "pointwise", "first", "last", SCORES, VALUES, CALL, HEAD, VOCABULARY,
    ROUTER, EMBEDDING, DETECTION,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layer:
    """One module that can be quantized: a product, or another place that has sites.

    `sites` are in the order of OPERANDS. `traits` are among TRAITS: depthwise (one filter per input
    channel), grouped (1 < groups, not depthwise), pointwise (a convolution with a kernel of one),
    first (reads a model input through operations on one tensor only), last (a model output is
    computed from its output so), attention_scores and attention_values (products of two activations
    around a softmax), call (a function's call, for which modelopt has no module), and roles
    (granplugin.network.role_traits). `bn` names the batch norm that can be folded into it,
    `unfolded` says why the one behind it cannot. `spread` is
    the largest over the median of the weight's output-channel ranges, with that batch norm folded.
    `calls` counts uses in one forward pass; `varying` tells that they see different shapes, or
    that sizes of inputs may vary, of which the first's are here. `unusable` says why its quantizers would have no effect. A `call` is
    a function's in a module's forward, and no module: `parameters` are the stored tensors that are
    its weight and bias, none where these are computed; a `reversed` weight is stored as (in, out).
    `given` has by operand how the network quantizes the layer already; it is None where the network
    came in float.
    """

    name: str
    type: str
    sites: tuple[Site, ...] = ()
    calls: int = 1
    groups: int = 1
    traits: frozenset[str] = field(default_factory=frozenset)
    bn: str | None = None
    spread: float | None = None
    varying: bool = False
    unusable: str | None = None
    call: bool = False
    parameters: tuple[str, ...] = ()
    reversed: bool = False
    unfolded: str | None = None
    given: tuple[tuple[Operand, Given], ...] | None = None

    @property
    def kind(self) -> Kind | None:
        """None for what is no product."""
        # The weight, where there is one, is the first of OPERANDS.
        return _kind_of(self.type, bool(self.sites) and self.sites[0].operand == "weight")

    @property
    def weighs(self) -> bool:
        """Whether it multiplies what it is given by its weight, and is no lookup."""
        return {"weight", "input"}.issubset(self.multiplied) and self.type not in LOOKUPS

    @property
    def multiplied(self) -> tuple[Operand, ...]:
        """The operands of its product; none for what is no product."""
        kind = self.kind
        return kind.multiplied if kind else ()

    @property
    def operands(self) -> tuple[Operand, ...]:
        return tuple(site.operand for site in self.sites)

    def site(self, operand: Operand) -> Site | None:
        for site in self.sites:
            if site.operand == operand:
                return site
        return None

    def shape(self, operand: Operand) -> Shape | None:
        site = self.site(operand)
        return None if site is None else site.shape

    @property
    def size(self) -> int:
        """Values in the weight."""
        weight = self.shape("weight")
        return math.prod(weight) if weight else 0


def sites_of(
    name: str,
    type: str,
    shapes: Mapping[Operand, Shape | None],
    groups: int = 1,
    tensors: Mapping[Operand, int | None] = MappingProxyType({}),
    concats: Mapping[Operand, int] = MappingProxyType({}),
) -> tuple[Site, ...]:
    """The sites of a layer, one for each operand that has a shape; tensors' numbers and those of
    concatenations where they are known.

    >>> [(site.name, site.channel_axis) for site in sites_of(
    ...     "fc", "Linear", {"weight": (8, 4), "input": (1, 5, 4)})]
    [('fc.weight', 0), ('fc.input', 2)]
    """
    return tuple(
        Site(
            name,
            operand,
            shape,
            _channel_axis(type, operand, shape, groups),
            tensors.get(operand),
            concats.get(operand),
        )
        for operand in OPERANDS
        if (shape := shapes.get(operand)) is not None
    )


def _kind_of(type: str, weighted: bool) -> Kind | None:
    # ONNX has one word for a product with a weight and for one of two activations.
    return _LINEAR if weighted and type == "MatMul" else PRODUCTS.get(type)


def _channel_axis(type: str, operand: Operand, shape: Shape, groups: int) -> int | None:
    kind = _kind_of(type, operand == "weight")
    if operand == "weight":
        axis = 0 if kind is None else kind.weight_channels
        # With groups the output channels of a transposed convolution lie on two axes.
        return None if axis and groups > 1 else axis
    if kind is None:
        return len(shape) - 1 if type in _LAST else 1
    return kind.channel_axis(len(shape))


def layer_to_json(layer: Layer) -> dict[str, Any]:
    """A JSON object; what is None or empty is left out."""
    found = {
        f.name: sorted(value) if isinstance(value, frozenset) else value
        for f in fields(layer)
        if (value := getattr(layer, f.name)) is not None and value is not False
    }
    sites = {site.operand: site_to_json(site) for site in layer.sites}
    told = {key: v for key, v in {**found, "sites": sites}.items() if v not in ([], {}, ())}
    if layer.given is not None:
        told["given"] = {operand: given_to_json(each) for operand, each in layer.given}
    return told


def layer_from_json(data: Mapping[str, Any]) -> Layer:
    """The inverse of layer_to_json."""
    name = data["name"]
    sites = tuple(
        site_from_json(name, operand, site) for operand, site in data.get("sites", {}).items()
    )
    held: dict[str, Any] = {"sites": sites, "traits": frozenset(data.get("traits", ()))}
    if "given" in data:
        held["given"] = tuple((at, given_from_json(each)) for at, each in data["given"].items())
    return Layer(**{**data, **held, "parameters": tuple(data.get("parameters", ()))})


def site_to_json(site: Site) -> dict[str, Any]:
    """What is known of the tensor, as JSON values; what is not known is left out."""
    known = {
        "shape": list(site.shape),
        "channel_axis": site.channel_axis,
        "tensor": site.tensor,
        "concat": site.concat,
    }
    return {key: value for key, value in known.items() if value is not None}


def site_from_json(place: str, operand: Operand, data: Mapping[str, Any]) -> Site:
    """The inverse of site_to_json."""
    return Site(
        place,
        operand,
        tuple(data["shape"]),
        data.get("channel_axis"),
        data.get("tensor"),
        data.get("concat"),
    )
