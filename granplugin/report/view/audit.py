"""The audit of a file: what came of it, a table of the sites, those alike on one line, and lint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from granplugin.report.schema.verbs import AuditedSite, AuditOutput
from granplugin.report.view.elements import (
    Cell,
    Column,
    Item,
    Row,
    Section,
    Table,
    cells,
    columns,
    items,
)
from granplugin.report.view.findings import findings_items
from granplugin.report.view.moved import moved_told
from granplugin.report.view.senses import SENSES
from granplugin.results.audited import Kind as VerdictKind
from granplugin.words import counted, first, with_lines


def audit_view(audit: AuditOutput) -> Section:
    """What became of each site of an ONNX file on an engine."""
    version = f" {audit.engine_version}" if audit.engine_version else ""
    head = (
        Item(f"{Path(audit.onnx).name} on {audit.engine}{version}, {audit.plan}"),
        Item(_summary(audit)),
    )
    refusals = findings_items(audit.refusals)
    parts = [
        (sites_table(audit.sites),) if audit.sites else (),
        (
            *refusals,
            *findings_items(audit.findings),
            *items(f"note: {note}" for note in audit.notes),
        ),
    ]
    return Section("", (*head, *(Section("", part) for part in parts if part)))


def _summary(audit: AuditOutput) -> str:
    if audit.kernels is None:
        told = counted({finding.code for finding in audit.refusals}, "reason")
        return f"{counted(audit.sites, 'site')} and no verdict: {told} why it is not built"
    counts = Counter(site.verdict for site in audit.sites)
    told = ", ".join(f"{counts[kind]} {kind}" for kind in get_args(VerdictKind) if counts[kind])
    known = audit.moved is not None and audit.moved.activations is not None
    moved = f", {moved_told(audit.moved)}" if audit.moved and known else ""
    return f"{told or 'no site'} of {len(audit.sites)}; {audit.kernels} kernels{moved}"


def sites_table(sites: Sequence[AuditedSite]) -> Table:
    """What came of each site: those alike on one line, and what is not known once for each reason."""
    groups: dict[tuple[str | None, ...], list[AuditedSite]] = {}
    for site in sites:
        how = site.detail
        if site.verdict == "honoured":  # the kernel stands behind it
            how = how.rpartition("; ")[0]
        told = site.verdict in ("degraded", "honoured") and how
        verdict = f"{site.verdict}: {how}" if told else site.verdict
        reason = site.detail if site.verdict in ("wrong", "unknown") else ""
        # What is not known is not known of any of them: why is all there is to tell.
        of = ("", "", "") if site.verdict == "unknown" else _of(site)
        groups.setdefault((*of, verdict, reason), []).append(site)
    return Table(
        columns(
            Column("layer", "name", fills=True),
            *(Column(head) for head in ("role", "scales", "promise", "verdict")),
            "ms",
        ),
        tuple(_row((*_common(found), *alike[-2:]), found) for alike, found in groups.items()),
        spaced=True,
    ).known


def _of(site: AuditedSite) -> tuple[str | None, ...]:
    return site.role, f"{site.format} {site.granularity}", site.promise


def _common(sites: Sequence[AuditedSite]) -> Iterator[str | None]:
    """What sites have in common of role, scales and promise; where they differ, that they do."""
    for values in zip(*map(_of, sites), strict=True):
        yield values[0] if len(set(values)) == 1 else "several"


def _row(alike: tuple[str | None, ...], sites: Sequence[AuditedSite]) -> Row:
    *told, verdict, reason = alike
    kind = sites[0].verdict
    known = [site.ms for site in sites if site.ms is not None]
    return Row(
        cells(
            Cell(sites[0].layer, more=len(sites) - 1),
            *told,
            Cell(verdict or "", SENSES[kind]) if kind else None,
            f"{sum(known):.3f}" if known else None,
        ),
        notes=tuple(_notes(reason or "", sites)),
    )


def _notes(reason: str, sites: Sequence[AuditedSite]) -> Iterator[str]:
    """The reason; and of what is not honoured all layers by name, and the recipe's lines."""
    if reason:
        yield reason
    if sites[0].verdict not in ("honoured", None):
        named = dict.fromkeys((site.layer, site.where) for site in sites)
        layers, where = [layer for layer, _ in named], [where for _, where in named]
        if len(sites) > 1 or any(where):
            yield with_lines(layers, where)
        elif len(layers[0]) > 40:
            yield first(layers)
