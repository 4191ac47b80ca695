"""What an audit says: a verdict on each row, and findings on what costs or is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from granplugin.engines import PromiseKind

Kind = Literal["honoured", "degraded", "wrong", "unknown"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an engine made of one row.

    honoured: the layer's kernels multiply in the row's format, or, where its weight alone is
    quantized, read it in the format; degraded: `detail` is fused-dequant (read in the format,
    multiplied in float), weight-only (the input is float) or float; wrong: built although it is
    known to be computed wrongly; unknown: the engine does not tell.
    """

    site: str
    where: str
    promise: PromiseKind | None
    kind: Kind
    detail: str


Severity = Literal["refused", "wrong", "advice"]
"""refused: the engine is not built; wrong: it computes other numbers than were meant; advice: it
costs."""


@dataclass(frozen=True)
class Finding:
    """One thing that costs, is wrong, or keeps the engine from being built.

    `code` is stable, a key of CODES; `layer` is the ONNX node, or the kernel where no node has it;
    `where` is the rule's line, where there is a recipe. `says` is what it costs and `instead` what
    to write; `bytes` are those that it moves for one batch, by the plan, None where that is not
    known.
    """

    code: str
    layer: str
    where: str | None
    says: str
    instead: str
    bytes: int | None = None
    severity: Severity = "advice"

    @property
    def wrong(self) -> bool:
        return self.severity == "wrong"
