"""The layers of a model as the plan sees them: shapes, traits and the BN behind each."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from granplugin.quant.granularity import ROLES, Role, Shape

CONVOLUTIONS = frozenset(f"Conv{rank}d" for rank in (1, 2, 3))
WEIGHTED = CONVOLUTIONS | {f"ConvTranspose{rank}d" for rank in (1, 2, 3)} | {"Linear"}
NORMS = frozenset({"LayerNorm", *(f"InstanceNorm{rank}d" for rank in (1, 2, 3))})
POOLS = frozenset(
    f"{kind}Pool{rank}d" for kind in ("Max", "Avg", "AdaptiveAvg") for rank in (1, 2, 3)
)
BATCH_NORMS = frozenset(f"BatchNorm{rank}d" for rank in (1, 2, 3))
PASSIVE = NORMS | POOLS | BATCH_NORMS | {"LeakyReLU"}
"""Types without a quantizable weight; with WEIGHTED, every type modelopt gives quantizers and
granplugin sites. (Recurrent layers and embeddings stay float.)"""

MULTIPLIED: tuple[Role, ...] = ("weight", "input")
"""The roles that a layer's product is of; integers only where both are."""
_ALWAYS = ("input", "output")
TRAITS = ("depthwise", "grouped", "pointwise", "first", "last")


@dataclass(frozen=True, slots=True)
class Layer:
    """One module that can be quantized.

    Shapes of input and output have 1 on axis 0, which stands for any batch. `traits` are among
    TRAITS: depthwise (one filter per input channel), grouped (1 < groups, not depthwise),
    pointwise (a convolution with a kernel of one), first (reads a model input through operations
    on one tensor only), last (a model output is computed from its output so). `bn` names the
    batch norm that can be folded into it. `spread` is the largest over the median of the weight's
    output-channel ranges, with that batch norm folded. `calls` counts uses in one forward pass.
    `skip_shape` is that of what a residual add adds its output to, None where it joins none.
    `input_id`, `output_id` and `skip_id` number the tensors: layers that read the same tensor share
    it. `concats` has, for the roles whose tensor is an input or the result of a concatenation, a
    number of that concatenation.
    `varying` tells that calls see different shapes, of which the first's are here.
    `unusable` says why its quantizers would have no effect.
    """

    name: str
    type: str
    calls: int = 1
    input_shape: Shape | None = None
    output_shape: Shape | None = None
    weight_shape: Shape | None = None
    groups: int = 1
    traits: frozenset[str] = field(default_factory=frozenset)
    bn: str | None = None
    spread: float | None = None
    input_id: int | None = None
    output_id: int | None = None
    skip_shape: Shape | None = None
    skip_id: int | None = None
    concats: tuple[tuple[Role, int], ...] = ()
    varying: bool = False
    unusable: str | None = None

    @property
    def roles(self) -> tuple[Role, ...]:
        return tuple(role for role in ROLES if role in _ALWAYS or self.shape(role))

    def shape(self, role: Role) -> Shape | None:
        return {
            "weight": self.weight_shape,
            "input": self.input_shape,
            "output": self.output_shape,
            "skip": self.skip_shape,
        }[role]

    def channel_axis(self, role: Role) -> int | None:
        """The axis of the (output) channels, or None where no single axis has them."""
        shape = self.shape(role)
        if role == "weight":
            if not self.type.startswith("ConvTranspose"):
                return 0
            return 1 if self.groups == 1 else None
        if self.type in ("Linear", "LayerNorm"):
            return len(shape) - 1
        return 1

    @property
    def size(self) -> int:
        """Values in the weight."""
        count = 1
        for length in self.weight_shape or (0,):
            count *= length
        return count


def layer_to_json(layer: Layer) -> dict[str, Any]:
    """A JSON object; what is None or empty is left out."""
    return {
        f.name: sorted(value) if isinstance(value, frozenset) else value
        for f in fields(layer)
        if (value := getattr(layer, f.name)) is not None
        and value is not False
        and value not in (set(), ())
    }


def layer_from_json(data: dict[str, Any]) -> Layer:
    """The inverse of layer_to_json."""
    values = {key: tuple(value) if key.endswith("_shape") else value for key, value in data.items()}
    values["traits"] = frozenset(data.get("traits", ()))
    values["concats"] = tuple(map(tuple, data.get("concats", ())))
    return Layer(**values)
