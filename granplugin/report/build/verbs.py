"""What the verbs found -> what they print with --json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from granplugin.capabilities import Line, Table
from granplugin.capabilities.legality import Written
from granplugin.planning.coverage import Coverage
from granplugin.planning.row_json import row_to_json
from granplugin.planning.rows import Plan, Row
from granplugin.quant.folding import typical
from granplugin.quant.site import Shape
from granplugin.report.build.covered import covered
from granplugin.report.build.moved import moved_bytes
from granplugin.report.schema.run import EngineResult, LintFinding
from granplugin.report.schema.verbs import (
    AuditedSite,
    AuditOutput,
    CapabilitiesOutput,
    CapabilityCase,
    CapabilityRow,
    ChangedLayer,
    ChannelFacts,
    ComparedSide,
    CompareOutput,
    EngineTotals,
    FasterForm,
    InspectedLayer,
    InspectOutput,
    LastRun,
    PlanOutput,
    ProbedCase,
    ProbedCell,
    RuleRow,
    SitePromise,
    SiteRow,
    Unsited,
)

if TYPE_CHECKING:
    from granplugin.audits.audit_file import FileAudit
    from granplugin.audits.comparison import Comparison
    from granplugin.capabilities.probe import Probed, ProbedStructure
    from granplugin.network.weight_facts import WeightFacts
    from granplugin.pipelines.inspect import Inspected, Inspection


def audit_output(audit: FileAudit) -> AuditOutput:
    """Every site of an audited file."""
    return AuditOutput(
        onnx=str(audit.onnx),
        engine=audit.engine,
        engine_version=audit.version,
        plan=audit.source,
        kernels=None if audit.plan is None else len(audit.plan.kernels),
        moved=None if audit.plan is None else moved_bytes(audit.plan.moved),
        sites=[
            AuditedSite(
                layer=site.row.layer,
                type=site.row.type,
                role=site.row.at.word,
                format=site.row.format,
                granularity=str(site.row.granularity),
                promise=site.promise.kind if site.promise else None,
                verdict=site.verdict.kind if site.verdict else None,
                detail=site.verdict.detail if site.verdict else "",
                where=site.where,
                ms=site.time_ms,
            )
            for site in audit.sites
        ],
        refusals=[LintFinding(**vars(found)) for found in audit.refusals],
        findings=[LintFinding(**vars(found)) for found in audit.findings],
        notes=list(audit.notes),
        exit_code=audit.exit_code,
    )


def compare_output(comparison: Comparison) -> CompareOutput:
    """Every layer of two engines."""
    a, b = (
        EngineTotals(
            name=name,
            kernels=len(plan.kernels),
            batch=plan.batch,
            moved=moved_bytes(plan.moved),
        )
        for name, plan in zip(comparison.names, comparison.plans, strict=True)
    )
    return CompareOutput(
        a=a,
        b=b,
        layers=[
            ChangedLayer(
                layer=layer.layer,
                nodes=list(layer.nodes),
                changed=layer.changed,
                a=ComparedSide(**vars(layer.a)),
                b=ComparedSide(**vars(layer.b)),
            )
            for layer in comparison.layers
        ],
        notes=list(comparison.notes),
    )


def capabilities_output(table: Table, lines: Sequence[Line]) -> CapabilitiesOutput:
    """What a table promises."""
    rows = [
        CapabilityRow(
            op=line.op,
            formats=list(line.formats),
            graphs=list(line.graphs),
            weight=line.weight,
            input=line.input,
            other=line.other,
            output=line.output,
            size=line.size,
            stored=line.stored,
            engine=line.engine,
            promise=line.promise.kind,
            reason=line.promise.reason,
            source=line.promise.source,
        )
        for line in lines
    ]
    return CapabilitiesOutput(
        backend=table.backend,
        table=table.version,
        note=table.note or None,
        rows=rows,
        cases=[
            CapabilityCase(
                structures=sorted(case.structure),
                engine=case.engine,
                form=case.form,
                why=case.why,
                source=case.source,
            )
            for case in table.cases
        ],
        faster=[
            FasterForm(form=each.form, why=each.why, source=each.source) for each in table.faster
        ],
    )


def probe_output(
    table: Table, cells: Sequence[Probed], structures: Sequence[ProbedStructure]
) -> CapabilitiesOutput:
    """The cells and structures of a table that differ from what was built."""
    differing = [
        ProbedCell(
            op=found.cell.op,
            format=found.cell.format,
            weight=found.cell.weight,
            input=found.cell.input,
            other=found.cell.other,
            graph=found.cell.graph,
            table=found.table,
            observed=found.observed,
            detail=found.detail,
        )
        for found in cells
        if found.differs
    ]
    return CapabilitiesOutput(
        backend=table.backend,
        table=table.version,
        probed=len(cells),
        differing=differing,
        structures=len(structures),
        differing_structures=[ProbedCase(**vars(found)) for found in structures if found.differs],
    )


def plan_output(
    recipe: str,
    variant: str,
    plan: Plan,
    written: Mapping[str, Written],
    found: Coverage,
    last: Mapping[str, EngineResult],
) -> PlanOutput:
    """Every site of a plan, with what each engine promises of it as it is written there, and what
    it did of it the `last` time."""
    return PlanOutput(
        recipe=recipe,
        variant=variant,
        rows=list(map(site_row, plan.rows)),
        rules=[
            RuleRow(rule=use.rule, where=use.where, matched=use.matched, decides=use.decides)
            for use in plan.uses
        ],
        notes=list(plan.notes),
        promises={engine: _promises(of_engine) for engine, of_engine in written.items()},
        last={name: _last(did) for name, did in last.items()},
        coverage=covered(found),
    )


def _last(did: EngineResult) -> LastRun:
    return LastRun(
        version=did.version,
        layers=len(did.layers),
        int8_layers=did.int8_layers,
        native_layers=did.native_layers,
        native_in_float=did.broken_layers,
    )


def site_row(row: Row) -> SiteRow:
    """One decision."""
    return SiteRow(**row_to_json(row))


def _promises(written: Written) -> dict[str, SitePromise]:
    return {
        site: SitePromise(
            kind=promise.kind,
            reason=promise.reason,
            source=promise.source,
            made=written.made.get(site),
        )
        for site, promise in written.promises.items()
    }


def inspect_output(inspection: Inspection) -> InspectOutput:
    """Every layer of a model."""
    return InspectOutput(
        recipe=str(inspection.recipe),
        defaults=inspection.defaults,
        parameters=inspection.parameters,
        layers=[_layer(each, inspection.missing) for each in inspection.layers],
        others=[Unsited(**asdict(each)) for each in inspection.others],
        missing=inspection.missing,
        refused=inspection.refused,
        coverage=covered(inspection.coverage) if inspection.coverage else None,
    )


def _layer(each: Inspected, missing: str | None) -> InspectedLayer:
    layer, facts = each.layer, each.weight
    calls = layer.calls if layer.site("input") is not None else 0
    folded = facts if facts and layer.bn else None
    return InspectedLayer(
        name=layer.name,
        type=layer.type,
        traits=sorted(layer.traits),
        calls=None if missing else calls,
        parameters=each.parameters,
        macs=each.macs,
        weight_shape=_shape(layer.shape("weight")),
        input_shape=_shape(layer.shape("input")),
        output_shape=_shape(layer.shape("output")),
        skip_shape=_shape(layer.shape("skip")),
        bn=layer.bn,
        weight=_channels(facts, "before") if facts else None,
        folded=_channels(folded, "after") if folded else None,
        unfolded=_unfolded(folded) if folded else None,
        defaults=list(map(site_row, each.defaults)),
        rules=list(map(site_row, each.rules)),
        unusable=layer.unusable,
    )


def _shape(shape: Shape | None) -> list[int] | None:
    return None if shape is None else list(shape)


def _channels(facts: WeightFacts, when: Literal["before", "after"]) -> ChannelFacts:
    if when == "before":
        return ChannelFacts(
            amax=float(facts.ranges_before.max()),
            spread=facts.spread_before,
            widest=facts.widest_before,
            dead=list(facts.dead_before),
            outliers=list(facts.outliers_before),
        )
    return ChannelFacts(
        amax=float(facts.ranges_after.max()),
        spread=facts.spread_after,
        widest=facts.widest_after,
        dead=list(facts.dead_after),
        outliers=list(facts.outliers_after),
    )


def _unfolded(facts: WeightFacts) -> float | None:
    before, channel = facts.ranges_before, facts.widest_after
    if channel is None or not before.any():
        return None
    return float(before[channel]) / typical(before)
