"""What is to be in a written file for each row: the rows in it, how each is written, its scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from granplugin.graph.methods import How, methods
from granplugin.graph.read.verify_lowered import (
    written_weight,
)
from granplugin.planning.rows import QuantizedRow, Row
from granplugin.quant.formats import FORMATS, scale_of


class Intended:
    """The rows that are in the file, and what is to be there for each."""

    def __init__(
        self, rows: Sequence[Row], amax: Mapping[str, np.ndarray], how: Mapping[str, How]
    ) -> None:
        dynamic = {row.site for row in rows if row.dynamic}
        self.amax = {
            site: value for site, value in amax.items() if value is not None and site not in dynamic
        }
        self.rows = [
            row for row in rows if row.quantized and (row.dynamic or row.site in self.amax)
        ]
        self.methods = methods(self.rows, how)
        self.inputs = {row.layer: row for row in self.rows if row.operand == "input"}

    def scale(self, row: QuantizedRow) -> np.ndarray | None:
        """The row's scales; None where they are computed at run time."""
        return self.static(row) if row.site in self.amax else None

    def static(self, row: QuantizedRow) -> np.ndarray:
        """The scales of a row that is not dynamic."""
        return scale_of(self.amax[row.site], FORMATS[row.format])

    def weight(
        self, row: QuantizedRow, weights: Mapping[str, np.ndarray]
    ) -> tuple[QuantizedRow, np.ndarray, np.ndarray | None]:
        """The row, amax and floats of a weight as they are to be in the file."""
        amax, weight = self.amax[row.site], weights.get(row.layer)
        source = self.inputs.get(row.layer)
        cells = None if source is None else self.scale(source)
        if source is None or cells is None or weight is None:
            return row, amax, weight
        method = self.methods.get(source.site)
        if method not in ("fold", "rescale"):
            return row, amax, weight
        return written_weight(method, row, amax, weight, source, cells)
