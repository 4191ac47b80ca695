"""What an engine made of the quantized sites of a Q/DQ ONNX file: promises, plan, verdicts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from granplugin import capabilities
from granplugin.audits.engine_plans import installed
from granplugin.audits.lint import lint
from granplugin.audits.ran import ran_of
from granplugin.backends.base import LayerPrecision
from granplugin.backends.engine_plan import EnginePlan
from granplugin.backends.nvidia.kernels import Kernels
from granplugin.backends.nvidia.libraries import LIBRARIES
from granplugin.capabilities import Book, Cell, Promise, cell_promise
from granplugin.capabilities.promise import operation, scales_of
from granplugin.graph.read.loading import read_model
from granplugin.graph.read.quantized_graph import QuantizedGraph, QuantizedOperand, read_quantized
from granplugin.planning.rows import FileRow, QuantizedRow, Row
from granplugin.quant.formats import FORMATS
from granplugin.quant.layers import PRODUCTS
from granplugin.quant.site import MULTIPLIED
from granplugin.report.build.verbs import audit_output
from granplugin.report.result import Result
from granplugin.report.schema.verbs import AuditOutput
from granplugin.results.audited import Finding, Verdict
from granplugin.words import counted


@dataclass(frozen=True)
class FileSite:
    """One quantized operand of the file with what was promised and what came of it, None where no
    engine was built; `time_ms` is that of its node's kernels in a profile, `where` the recipe's line
    where there is one."""

    row: FileRow | QuantizedRow
    promise: Promise | None
    verdict: Verdict | None
    time_ms: float | None = None
    where: str | None = None


@dataclass(frozen=True, repr=False)
class FileAudit(Result):
    """What an engine made of a file. `source` says where its plan is from; `refusals` are why there
    is none."""

    onnx: Path
    engine: str
    version: str | None
    source: str
    plan: EnginePlan | None
    sites: tuple[FileSite, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    refusals: tuple[Finding, ...] = ()

    def output(self) -> AuditOutput:
        """Every site, and lint."""
        return audit_output(self)

    @property
    def exit_code(self) -> int:
        """0 all honoured, 2 not built, 3 not honoured, 4 cannot tell."""
        if self.refusals:
            return 2
        kinds = {site.verdict.kind for site in self.sites if site.verdict is not None}
        if kinds & {"degraded", "wrong"} or any(found.wrong for found in self.findings):
            return 3
        return 4 if "unknown" in kinds or not kinds else 0


def examine(
    library: str, path: Path, plan: EnginePlan, rows: Sequence[Row]
) -> tuple[tuple[LayerPrecision, ...], tuple[Finding, ...]]:
    """What an engine made of the sites that no product reads (skip inputs, pools), under the names
    of their sites, and lint; of one of our own files, whose plan has these rows. What lies between a
    product's Q/DQ and the product, as its own padding does, is told by what the product reads."""
    quantized = read_quantized(read_model(path), path)
    kernels = Kernels(library, plan, quantized.products)
    lines = {row.site: row.where for row in rows}
    named = {operand.row.site: quantized.site(operand) for operand in quantized.operands}
    multiplied = {row.site for row in rows if row.operand in MULTIPLIED and row.type in PRODUCTS}
    passive = (operand for operand in quantized.operands if not operand.product)
    sites = [
        replace(ran_of(operand, kernels), layer=named[operand.row.site])
        for operand in passive
        if named[operand.row.site] in lines.keys() - multiplied
    ]
    where = {site: lines[name] for site, name in named.items() if name in lines}
    findings = lint(library, quantized, kernels, where)
    layers = {row.layer for row in rows}
    return tuple(sites), tuple(
        replace(each, layer=scope) if (scope := each.layer.rpartition("/")[0]) in layers else each
        for each in findings
    )


def notes_of(
    quantized: QuantizedGraph, plan: EnginePlan | None, layers: Path | None
) -> Iterator[str]:
    """What to know before reading the verdicts; `layers` is the file the plan was read from."""
    if not (quantized.operands or quantized.hidden):
        yield "nothing in this file is quantized, so there is nothing to honour"
    named = {node for kernel in (plan.kernels if plan else ()) for node in kernel.onnx_nodes}
    if (
        layers is not None
        and quantized.operands
        and not any(o.node in named for o in quantized.operands)
    ):
        yield (
            f"no node of the file is in {layers.name}: it is of another model, or was built "
            "without --profilingVerbosity=detailed"
        )
    untyped = [
        pair for pair in quantized.pairs if pair.pair.q is not None and _untyped(pair.pair.q)
    ]
    if untyped:
        yield (
            f"{counted(untyped, 'QuantizeLinear')} without a zero point: TensorRT rounds to int8 "
            "there, and ONNX, as ONNX Runtime has it, to uint8; write a zero point of int8"
        )


def _untyped(q: onnx.NodeProto) -> bool:
    said = any(attribute.name == "output_dtype" and attribute.i for attribute in q.attribute)
    return q.op_type == "QuantizeLinear" and not any(q.input[2:3]) and not said


def promises_of(quantized: QuantizedGraph, backend: str, version: str | None) -> dict[str, Promise]:
    """Site -> what the engine promises for it; of the version that is installed where the plan tells
    none. Of what no table knows there is none."""
    table = capabilities.load_table(backend, version or installed(backend))
    stops = LIBRARIES[backend].moves_not
    stopped = {o.row.site: o for o in quantized.operands if not stops.isdisjoint(o.moved)}
    rows: dict[str, list[FileRow]] = defaultdict(list)
    for operand in quantized.operands:
        if operand.row.operand in MULTIPLIED and operand.row.site not in stopped:
            rows[operand.node].append(operand.row)
    layers = {layer.name: layer for layer in quantized.layers}
    skips = _skips(quantized)
    book = Book(
        table,
        quantized.precision,
        shared=frozenset(name for name, (_, one) in skips.items() if one),
    )
    promises = {
        f"{layer.name}.{role}": promise
        for layer in quantized.layers
        if all(row.format in FORMATS or row.format == "uint8" for row in rows[layer.name])
        for role, promise in book.of_layer(layer, rows[layer.name]).items()
    }
    alone = {node for node, of in rows.items() if [row.operand for row in of] == ["weight"]}
    for operand in quantized.operands:
        if operand.node in alone and operand.quantize is not None and operand.row.site in promises:
            scales, size = scales_of(operand.row)
            cell = Cell(
                operation(layers[operand.node]), operand.row.format, weight=scales, size=size,
                graph=quantized.precision, stored=False,
            )  # fmt: skip
            promises[operand.row.site] = cell_promise(table, cell)
    for name, (operand, _) in skips.items():
        if name in layers:
            at = replace(operand.row.at, place=name)
            given = book.of_layer(layers[name], [*rows[name], replace(operand.row, at=at)])
            promises[operand.row.site] = given["skip"]
    for site, operand in stopped.items():
        op = next(op for op in operand.moved if op in stops)
        promises[site] = Promise(
            "simulated",
            f"Q/DQ in front of a {op} stays there, and what is behind it runs in float",
            table.rules[0].source,
        )
    return promises


def _skips(quantized: QuantizedGraph) -> dict[str, tuple[QuantizedOperand, bool]]:
    """Product -> the skip input that its result is added to, and whether a layer reads it through
    the same Q/DQ."""
    readers = {o.dequantize for o in quantized.operands if o.row.operand == "input" and o.product}
    skips: dict[str, tuple[QuantizedOperand, bool]] = {}
    for operand in quantized.operands:
        product = quantized.added_to(operand) if operand.row.operand == "skip" else None
        if product is not None:
            skips.setdefault(product, (operand, operand.dequantize in readers))
    return skips
