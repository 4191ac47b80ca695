"""The plan as a value: one row per site - float, or quantized so - with the rule that decided it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from granplugin.quant.calibrators import Calibrator
from granplugin.quant.granularity import Granularity, grid, scales
from granplugin.quant.layers import Layer
from granplugin.quant.site import Operand, Shape, Site
from granplugin.recipe.algorithms import Algorithm
from granplugin.recipe.settings import FLOAT


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRow:
    """What every row says. `at` is the site, `type` that of its layer. `bn` is fold or keep where
    the layer has a batch norm `bn_name` behind it that can be folded, else None. `rule` is the
    deciding rule's id or the preset's name, `where` its file:line:column. `on_unsupported` is what
    a rule says is made of it where an engine does not have it.
    """

    quantized: ClassVar[bool]

    at: Site
    type: str
    bn: str | None = None
    bn_name: str | None = None
    rule: str
    where: str
    note: str | None = None
    on_unsupported: tuple[str, ...] | None = None

    @property
    def site(self) -> str:
        """The site's name."""
        return self.at.name

    @property
    def layer(self) -> str:
        return self.at.place

    @property
    def operand(self) -> Operand:
        return self.at.operand

    @property
    def shape(self) -> Shape:
        return self.at.shape

    @property
    def dynamic(self) -> bool:
        """Whether scales are computed at run time, of each sample's largest |x|: nothing is
        calibrated."""
        return False

    @property
    def observed(self) -> str:
        """The site of the unfolded model where this row's tensor is: a folded layer's output is
        its batch norm's."""
        if self.operand == "output" and self.bn == "fold":
            return f"{self.bn_name}.output"
        return self.site


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatRow(BaseRow):
    """A site that is left alone."""

    quantized: ClassVar[Literal[False]] = False
    format: ClassVar[str] = FLOAT
    scales: ClassVar[int] = 0
    form: ClassVar[tuple[()]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scaled(BaseRow):
    """A site that is quantized. `format` is a key of FORMATS, or what a file has; `block` has the
    rank of the site's shape: one scale per block."""

    quantized: ClassVar[Literal[True]] = True

    format: str

    if TYPE_CHECKING:  # a field of one, computed by the other

        @property
        def block(self) -> Shape: ...

    @property
    def grid(self) -> Shape:
        return grid(self.shape, self.block)

    @property
    def scales(self) -> int:
        return scales(self.shape, self.block)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedRow(_Scaled):
    """A site that is quantized: `amax` pins the range; rows with the same `share` have one scale,
    the largest of theirs. `given` is a key of the ranges that the network came with, where they are
    kept."""

    granularity: Granularity
    calibrator: Calibrator = Calibrator()
    amax: float | None = None
    share: str | None = None
    given: str | None = None

    @property
    def block(self) -> Shape:
        return self.granularity.block(self.at)

    @property
    def dynamic(self) -> bool:
        return self.granularity.at_run_time

    @property
    def form(self) -> tuple[str, Shape, bool]:
        """How it is rounded, but for its ranges: what kernels depend on. None of it if float."""
        return self.format, self.block, self.dynamic

    @property
    def ranges(self) -> str:
        """How its ranges are found, in a word."""
        if self.given is not None:
            return "as given"
        return "at run time" if self.dynamic else str(self.calibrator)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRow(_Scaled):
    """How a file of any origin quantizes a site, whose place is a node: `granularity` in the
    recipe's words, or how scales lie that no recipe's word says; `where` is the file and the node.
    How ranges were found, it does not tell, unless that is `at_run_time`."""

    granularity: str
    block: Shape
    at_run_time: bool = False

    @property
    def dynamic(self) -> bool:
        return self.at_run_time


Row = FloatRow | QuantizedRow
"""Of a plan."""
ScaledRow = QuantizedRow | FileRow
AnyRow = FloatRow | ScaledRow


def as_float(row: Row, **changed: Any) -> FloatRow:
    """The same site left alone."""
    return FloatRow(**{**_common(row), **changed})


def as_quantized(row: Row, format: str, granularity: Granularity, **changed: Any) -> QuantizedRow:
    """The same site quantized so, with a calibrator of its own: nothing of how it was before."""
    return QuantizedRow(**{**_common(row), **changed}, format=format, granularity=granularity)


def _common(row: Row) -> dict[str, Any]:
    return {
        "at": row.at,
        "type": row.type,
        "bn": row.bn,
        "bn_name": row.bn_name,
        "rule": row.rule,
        "where": row.where,
        "note": row.note,
        "on_unsupported": row.on_unsupported,
    }


@dataclass(frozen=True, slots=True)
class RuleUse:
    """What became of a rule: layers matched, and sites where it had the last word on some key."""

    rule: str
    where: str
    matched: int
    decides: int


@dataclass(frozen=True, slots=True)
class Moved:
    """A layer whose weight an algorithm is to change before anything is rounded, and the rule that
    says so."""

    layer: str
    algorithm: Algorithm
    rule: str
    where: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Every site's row, in the order the layers run; what each rule did; what to know; and what is
    changed in the float network first."""

    rows: tuple[Row, ...]
    uses: tuple[RuleUse, ...] = ()
    notes: tuple[str, ...] = ()
    moved: tuple[Moved, ...] = ()

    @property
    def quantized(self) -> tuple[QuantizedRow, ...]:
        return tuple(row for row in self.rows if row.quantized)

    @property
    def folded(self) -> frozenset[str]:
        """The layers whose batch norm is folded."""
        return frozenset(row.layer for row in self.rows if row.bn == "fold")

    def folds(self, layers: Iterable[Layer]) -> tuple[Layer, ...]:
        """Those of the layers whose batch norm is folded."""
        return tuple(layer for layer in layers if layer.name in self.folded)
