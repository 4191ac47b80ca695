"""The audit of a file, as text of 80 columns or JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from granplugin.report.findings_text import WIDTH, finding_lines, names, wrapped
from granplugin.report.schema.run import LintFinding
from granplugin.report.schema.verbs import AuditedSite, AuditOutput

_COLUMNS = ("role", "scales", "promise", "verdict")


def lines(audit: Any) -> Iterator[str]:
    """What came of it in a line, a table of the sites - those alike on one line - then lint."""
    version = f" {audit.version}" if audit.version else ""
    yield from wrapped(f"{audit.onnx.name} on {audit.engine}{version}, {audit.source}", "")
    counts = Counter(site.verdict.kind for site in audit.sites)
    moved = "" if audit.plan.traffic is None else f", {audit.plan.traffic / 1e6:.2f} MB moved"
    kinds = ("honoured", "degraded", "wrong", "unknown")
    told = ", ".join(f"{counts[kind]} {kind}" for kind in kinds if counts[kind])
    yield f"{told or 'no site'} of {len(audit.sites)}; {len(audit.plan.kernels)} kernels{moved}"
    if audit.sites:
        yield ""
        yield from _table(audit)
    if audit.findings:
        yield ""
        yield from finding_lines(audit.findings)
    for note in audit.notes:
        yield from wrapped(f"note: {note}", "")


def _table(audit: Any) -> Iterator[str]:
    groups: dict[tuple, list[Any]] = {}
    for site in audit.sites:
        verdict = site.verdict
        detail = verdict.detail if verdict.kind == "degraded" else ""
        cells = (
            site.row.role, f"{site.row.format} {site.row.granularity}",
            site.promise.kind if site.promise else "-",
            f"{verdict.kind}: {detail}" if detail else verdict.kind,
        )  # fmt: skip
        reason = verdict.detail if verdict.kind in ("wrong", "unknown") else ""
        groups.setdefault((*cells, reason), []).append(site)
    timed = any(site.time_ms is not None for site in audit.sites)
    widths = [max(len(word), *(len(key[i]) for key in groups)) for i, word in enumerate(_COLUMNS)]
    room = max(WIDTH - sum(widths) - 2 * len(widths) - 9 * timed, 12)
    yield _line("layer", _COLUMNS, widths, room, "ms" if timed else None)
    for key, found in groups.items():
        name = names([site.row.layer for site in found[:1]])
        if len(found) > 1:
            name = f"{_cut(name, room - len(f' +{len(found) - 1}'))} +{len(found) - 1}"
        ms = None
        if timed:
            known = [site.time_ms for site in found if site.time_ms is not None]
            ms = f"{sum(known):.3f}" if known else "-"
        yield _line(_cut(name, room), key[:4], widths, room, ms)
        if key[4]:
            yield from wrapped(key[4], "    ")
        if not key[3].startswith("honoured"):
            where = [site.where for site in found]
            listed = names([site.row.layer for site in found], where)
            if len(found) > 1 or any(where) or len(found[0].row.layer) > room:
                yield from wrapped(listed, "    ")


def _line(name: str, cells: Any, widths: list[int], room: int, ms: str | None) -> str:
    padded = [f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)]
    end = [] if ms is None else [f"{ms:>7}"]
    return "  ".join([f"{name:<{room}}", *padded, *end]).rstrip()


def _cut(name: str, room: int) -> str:
    """A name's end, which tells one layer from the next."""
    return name if len(name) <= room else f"...{name[3 - room :]}"


def to_json(audit: Any) -> str:
    """The same, whole."""
    output = AuditOutput(
        onnx=str(audit.onnx),
        engine=audit.engine,
        engine_version=audit.version,
        plan=audit.source,
        kernels=len(audit.plan.kernels),
        traffic_bytes=audit.plan.traffic,
        sites=[
            AuditedSite(
                layer=site.row.layer,
                type=site.row.type,
                role=site.row.role,
                format=site.row.format,
                granularity=site.row.granularity,
                promise=site.promise.kind if site.promise else None,
                verdict=site.verdict.kind,
                detail=site.verdict.detail,
                where=site.where,
                ms=site.time_ms,
            )
            for site in audit.sites
        ],
        findings=[LintFinding(**vars(found)) for found in audit.findings],
        notes=list(audit.notes),
        exit_code=audit.exit_code,
    )
    return output.model_dump_json(indent=1)
