"""What a run's plan asks of a file, beside what the file has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from granplugin.audits.audit_file import FileSite
from granplugin.audits.engine_plans import text_of
from granplugin.errors import UserError
from granplugin.graph.read.quantized_graph import QuantizedGraph
from granplugin.planning.row_json import row_from_json
from granplugin.planning.rows import ScaledRow
from granplugin.quant.formats import FORMATS
from granplugin.quant.site import MULTIPLIED
from granplugin.results.audited import Verdict


class Asked:
    """What a run's plan says of the variant that a file is."""

    def __init__(self, plan: Path, onnx_path: Path, quantized: QuantizedGraph) -> None:
        try:
            variants = json.loads(text_of(plan))["variants"]
            named = {name: rows for name, rows in variants.items() if rows}
            name = onnx_path.resolve().parent.name
            rows = named[name] if name in named else next(iter(named.values()))
            decided = map(row_from_json, rows)
            self.rows = {row.site: row for row in decided if row.quantized}
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as err:
            raise UserError(f"{plan}: is no plan.json of a run: {err!r:.80}") from err
        if name not in named and len(named) > 1:
            raise UserError(
                f"{plan}: it has the variants {', '.join(named)}; audit the file in one's folder"
            )
        self.names = {operand.row.site: quantized.site(operand) for operand in quantized.operands}

    @property
    def where(self) -> dict[str, str]:
        return {
            site: self.rows[name].where for site, name in self.names.items() if name in self.rows
        }

    def compared(self, sites: Sequence[FileSite]) -> list[FileSite]:
        """The sites with the recipe's lines; what the file has otherwise is wrong, and what it does
        not quantize is float."""
        told = [self._told(site) for site in sites]
        for name, row in self.rows.items():
            if name not in self.names.values() and row.operand in MULTIPLIED:
                verdict = Verdict(name, row.where, None, "degraded", "float")
                told.append(FileSite(row, None, verdict, where=row.where))
        return told

    def _told(self, site: FileSite) -> FileSite:
        row = self.rows.get(self.names.get(site.row.site, ""))
        if row is None:
            return site
        if site.verdict is None:
            return replace(site, where=row.where)
        kind, detail = site.verdict.kind, site.verdict.detail
        if (_stored(row), _cells(row)) != (_stored(site.row), _cells(site.row)):
            kind, detail = "wrong", f"the plan says {row.format} {row.granularity}"
        verdict = replace(site.verdict, where=row.where, kind=kind, detail=detail)
        return replace(site, verdict=verdict, where=row.where)


def _stored(row: ScaledRow) -> str:
    """The type of a row's values: formats that differ in their scales alone are the same in a
    file."""
    return FORMATS[row.format].dtype.name if row.format in FORMATS else row.format


def _cells(row: ScaledRow) -> tuple[tuple[int, int], ...]:
    """Along which axes a row's scales differ, and how many there are."""
    return tuple((axis, count) for axis, count in enumerate(row.grid) if count > 1)
