"""Where a quantizer may sit: one operand of a product, or of another place, and its tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Shape = tuple[int, ...]
Operand = Literal["weight", "input", "other", "skip", "output"]
"""weight: values of the network's own; other: the second activation of a product of two; skip: what
a residual add adds the result to."""
OPERANDS: tuple[Operand, ...] = get_args(Operand)
MULTIPLIED: tuple[Operand, ...] = ("weight", "input", "other")
"""What a place computes its result from; of a product, integers only where all of them are."""


@dataclass(frozen=True, slots=True)
class Site:
    """An operand of the place (a module, or a node of a file) that is called `place`.

    Axis 0 of `shape` is 1 but for a weight's: it stands for any batch. `channel_axis` is the axis
    of the (output) channels, None where no single axis has them. Sites that read or write the same
    `tensor` have its number, None where that is not known. `concat` numbers the concatenation of
    which that tensor is an input or the result. `index` counts the operands of an operator that
    takes several alike.

    >>> Site("block.0.conv", "weight", (8, 3, 3, 3), 0).name
    'block.0.conv.weight'
    """

    place: str
    operand: Operand
    shape: Shape
    channel_axis: int | None = None
    tensor: int | None = None
    concat: int | None = None
    index: int = 0

    @property
    def word(self) -> str:
        """The operand in a table: `input`, or `input 2` for the second that is alike."""
        return f"{self.operand} {self.index + 1}" if self.index else self.operand

    @property
    def name(self) -> str:
        return f"{self.place}.{self.word}"

    @property
    def constant(self) -> bool:
        """Whether no data changes it: it has no batch, and its range is found without data."""
        return self.operand == "weight"
