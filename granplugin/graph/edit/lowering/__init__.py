"""Granularities an engine does not have, made from those it has: passes on the marked graph.

Each pass stands in a module of its own with its proof, and leaves markers, rows and amax from which
Q/DQ is written as for any other row. The proofs speak of real numbers: what is rounded to a format
is rounded from the same float32 quotient x / s as in the oracle, so the stored numbers are the
same bit for bit; the float arithmetic behind them differs by its own rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from granplugin.graph.edit.additions import Additions
from granplugin.graph.edit.contract import Seen, contract, gone, misfit
from granplugin.graph.edit.lowering.division import Divisions, undivided
from granplugin.graph.edit.lowering.row_scale import scale_rows
from granplugin.graph.edit.lowering.simulated import multiply_back, simulate
from granplugin.graph.edit.lowering.weights import WEIGHT_PASSES, Marked, change_weight
from granplugin.graph.edit.nodes import markers, scope_of, site_of
from granplugin.graph.methods import How, methods
from granplugin.planning.rows import QuantizedRow
from granplugin.quant.formats import FORMATS, scale_of


def _requires(
    before: Seen,
    additions: Additions,
    rows: Sequence[QuantizedRow],
    amax: Mapping[str, np.ndarray],
    how: Mapping[str, How],
) -> str | None:
    if why := misfit(rows, amax):
        return why
    folded = {row.bn_name for row in rows if row.bn == "fold"}
    for node in before.nodes.get("BatchNormalization", ()):
        if scope_of(node) in folded:
            return f"{node.name} is not folded yet"
    return None


def _ensures(
    before: Seen,
    after: Seen,
    left: tuple[Sequence[QuantizedRow], Mapping[str, np.ndarray]],
    additions: Additions,
    rows: Sequence[QuantizedRow],
    amax: Mapping[str, np.ndarray],
    how: Mapping[str, How],
) -> str | None:
    kept, ranges = left
    for row in kept:
        if row.dynamic and row.observed in after.sites:
            return f"{row.site} is dynamic still"
    if lost := {row.observed for row in kept}.intersection(gone(before, after)):
        return f"{min(lost)} has lost a marker"
    return misfit([row for row in kept if row.observed in after.sites], ranges)


@contract(_requires, _ensures)
def lower(
    additions: Additions,
    rows: Sequence[QuantizedRow],
    amax: Mapping[str, np.ndarray],
    how: Mapping[str, How],
) -> tuple[Sequence[QuantizedRow], Mapping[str, np.ndarray]]:
    """Edit the marked graph, in place, where `how` (by row.site) or a dynamic row asks for it.

    `rows` are all that are quantized. Returned are the rows and amax that are left to write as
    Q/DQ. Requires that batch norms are folded and that each row that is not dynamic has an amax for
    each of its blocks. Ensures the same of what is left, of which no row is dynamic, and that its
    markers stay. Raises ModelError for what cannot be made as asked.
    """
    chosen = methods(rows, how)
    if not chosen:
        return rows, amax
    found: dict[str, list[ir.Node]] = {}
    for marker in markers(additions.graph):
        found.setdefault(site_of(marker), []).append(marker)
    left, amax = {row.observed: row for row in rows}, dict(amax)
    divisions = Divisions(additions)
    for observed, of_site in found.items():
        row = left.get(observed)
        if row is None or row.site not in chosen:
            continue
        method = chosen[row.site]
        fmt = FORMATS[row.format]
        if method == "simulated" and (row.operand == "weight" or (fmt.integer and not row.dynamic)):
            simulate(additions, of_site, row, amax[row.site])
            del left[observed]
            continue
        cells = None if row.dynamic else scale_of(amax[row.site], fmt)
        if cells is not None and method in WEIGHT_PASSES:
            site = f"{row.layer}.weight"
            weight = Marked(left[site], found.get(site, []))
            left[site], amax[site] = change_weight(
                additions, method, Marked(row, of_site), cells, weight, amax[site]
            )
        for marker in of_site:
            scale = divisions.divide(marker, row, cells)
            if method == "row_scale":
                scale_rows(additions, marker, row, scale)
            elif method == "simulated":
                multiply_back(additions, marker, row, scale)
        left[observed], amax[row.site] = undivided(row, cells)
    return tuple(left.values()), amax
