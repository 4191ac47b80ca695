"""What the other verbs print with --json, as schemas."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from granplugin.engines import PromiseKind
from granplugin.report.schema.analysis import Analysis
from granplugin.report.schema.check import CheckOutput
from granplugin.report.schema.parts import Coverage, Machine, MovedBytes
from granplugin.report.schema.run import Interval, LintFinding
from granplugin.results.audited import Kind as VerdictKind
from granplugin.results.parts import Number, Part


class SiteRow(Part):
    """One site's decision."""

    layer: str
    type: str
    role: str
    shape: list[int] = Field(description="Axis 0 of an input or output stands for any batch.")
    format: str
    granularity: str | None
    block: list[int] | None = Field(description="The values that share one scale.")
    scales: int
    calibrator: str | None
    amax: float | None
    dynamic: bool = Field(description="Scales are computed at run time, sample by sample.")
    on_unsupported: list[str] | None = Field(description="As a rule says; null: the recipe's.")
    bn: str | None
    bn_name: str | None = Field(default=None, description="The batch norm that `bn` is of.")
    rule: str
    where: str
    note: str | None
    share: str | None = Field(description="Sites with the same word here have one scale.")
    given: str | None = Field(
        default=None, description="A key of the ranges that the network came with, where kept."
    )
    setting: dict[str, Any] | None = Field(
        description="Granularity and calibrator as a recipe has them."
    )
    channel_axis: int | None
    tensor: int | None = Field(description="Sites that read or write the same tensor share it.")
    concat: int | None = Field(description="Of which its tensor is an input or the result.")


class RuleRow(Part):
    """What became of a rule."""

    rule: str
    where: str
    matched: int = Field(description="Layers.")
    decides: int = Field(description="Keys of sites on which it had the last word.")


class SitePromise(Part):
    """What an engine makes of a site, known before a build."""

    kind: PromiseKind
    reason: str
    source: str
    made: str | None = Field(
        default=None, description="What is made of the site, where the engine does not have it."
    )


class LastRun(Part):
    """What an engine did of the same plan when that was last applied."""

    version: str
    layers: int = Field(description="Calls of weighted layers that it tells of.")
    int8_layers: int = Field(description="Those of them that it ran in 8 bits.")
    native_layers: int = Field(description="Layers whose promises are native.")
    native_in_float: list[str] = Field(description="Those of them that it ran in float.")


class PlanOutput(Part):
    """`granplugin plan --json`."""

    version: int = 1
    recipe: str
    variant: str
    rows: list[SiteRow]
    rules: list[RuleRow]
    notes: list[str]
    promises: dict[str, dict[str, SitePromise]] = Field(
        default={}, description="Engine -> site -> promise."
    )
    last: dict[str, LastRun] = Field(
        default={}, description="Engine -> what it did of this plan, where that was applied here."
    )
    coverage: Coverage | None = Field(
        default=None, description="Of all that the network multiplies; null: not counted."
    )


class WhyOutput(Part):
    """`granplugin plan --why LAYER --json`."""

    version: int = 1
    layer: str
    story: list[str]


class EngineState(Part):
    engine: str
    what_for: str
    version: str | None
    unavailable: str | None
    cannot_run: str | None = Field(description="Why it builds here but cannot run.")
    targets: list[str] = Field(description="GPUs it can build for, where it is told which.")


class DoctorOutput(Part):
    """`granplugin doctor --json`."""

    version: int = 1
    granplugin: str
    machine: Machine
    gpu: str = Field(description="Its name, target and driver, or none and why.")
    engines: list[EngineState]
    missing: list[str] = Field(description="Packages granplugin needs that are not installed.")


class RunKept(Part):
    """A run folder."""

    run: str
    created: str | None = Field(description="Of its report; null: none that can be read.")
    recipes: list[str]
    variants: int
    result_bytes: int = Field(description="Of models, reports and logs.")
    cache_bytes: int = Field(
        description="Of what stages kept: `granplugin clean` frees it, and the next run makes it "
        "again."
    )


class RunsOutput(Part):
    """`granplugin runs --json`."""

    version: int = 1
    folder: str
    runs: list[RunKept]


class CleanOutput(Part):
    """`granplugin clean --json`."""

    version: int = 1
    freed: dict[str, int] = Field(description="Run -> bytes of its cache.")
    busy: list[str] = Field(description="Runs that are in use, and stay as they are.")


class CapabilityRow(Part):
    """What one operation is promised with these scales."""

    op: str
    formats: list[str]
    graphs: list[str] = Field(description="Precisions of what is not quantized.")
    weight: str = Field(description="none: of two activations.")
    input: str
    other: str = Field(description="The second of two activations; float for what has a weight.")
    output: str
    size: int | None = Field(description="Block size.")
    stored: bool = Field(description="Whether the file holds the weight in its format.")
    engine: str = Field(description="What the engine does with the plain Q/DQ.")
    promise: PromiseKind
    reason: str
    source: str


class ProbedCell(Part):
    """A small network that was rebuilt, and did not do what the table says."""

    op: str
    format: str
    weight: str
    input: str
    other: str
    graph: str
    table: str
    observed: str
    detail: str


class CapabilityCase(Part):
    """Structures of several layers that an engine does not compute rightly in the plain form."""

    structures: list[str]
    engine: str = Field(description="miscompile or error.")
    form: str | None = Field(
        description="The equal form that the engine is given; null: none, and what it computes "
        "wrongly is left float."
    )
    why: str
    source: str


class FasterForm(Part):
    """An equal form that an engine is given because it computes it sooner."""

    form: str
    why: str
    source: str


class ProbedCase(Part):
    """A structure that was rebuilt, and is not computed as the table says."""

    structure: str
    table: str
    observed: str
    detail: str
    form: str | None
    repaired: bool = Field(description="Whether the forms are computed rightly.")


class CapabilitiesOutput(Part):
    """`granplugin capabilities --json`; with --probe, what differs instead of rows."""

    version: int = 2
    backend: str
    table: str = Field(description="The version the table is of.")
    note: str | None = Field(default=None, description="What to know of the whole table.")
    rows: list[CapabilityRow] = []
    probed: int | None = Field(default=None, description="Cells that were rebuilt.")
    differing: list[ProbedCell] = []
    cases: list[CapabilityCase] = []
    faster: list[FasterForm] = []
    structures: int | None = Field(default=None, description="Structures that were rebuilt.")
    differing_structures: list[ProbedCase] = []


class AuditedSite(Part):
    """One quantized operand of a node, what was promised of it and what the engine does."""

    layer: str = Field(description="The ONNX node; an unnamed one is node_of_ and its output.")
    type: str
    role: str = Field(description="weight, input (input 2: a second one) or skip.")
    format: str
    granularity: str
    promise: PromiseKind | None
    verdict: VerdictKind | None = Field(description="null: no engine was built.")
    detail: str = Field(
        description="Of degraded: fused-dequant, weight-only or float; of honoured: the kernel, "
        "behind how where it is not read in its format at once."
    )
    where: str | None = Field(description="The recipe's line, with --plan.")
    ms: float | None = Field(description="Time of its node's kernels, with --profile.")


class AuditOutput(Part):
    """`granplugin audit --json`."""

    version: int = 2
    onnx: str
    engine: str
    engine_version: str | None
    plan: str = Field(description="Where the engine's plan is from.")
    kernels: int | None = Field(description="null: no engine was built.")
    moved: MovedBytes | None = Field(description="null: no engine was built.")
    sites: list[AuditedSite]
    refusals: list[LintFinding] = Field(
        default=[], description="Why no engine was built, everything that is known."
    )
    findings: list[LintFinding]
    notes: list[str]
    exit_code: int


class ComparedSide(Part):
    """What one engine does for a layer."""

    kernels: int
    bytes: int | None = Field(description="Read and written, weights and other constants too.")
    arithmetic: str = Field(description="Types that its product reads > writes.")
    time_ms: float | None = Field(description="With profiles.")


class ChangedLayer(Part):
    """ONNX nodes that a kernel of either engine fuses."""

    layer: str
    nodes: list[str]
    changed: bool
    a: ComparedSide
    b: ComparedSide


class EngineTotals(Part):
    name: str
    kernels: int
    batch: int | None = Field(description="Samples it is built for; null: open, or not told.")
    moved: MovedBytes


class CompareOutput(Part):
    """`granplugin compare --json`."""

    version: int = 2
    a: EngineTotals
    b: EngineTotals
    layers: list[ChangedLayer]
    notes: list[str]


class RunFigure(Part):
    """A metric of a variant, in two runs."""

    variant: str = Field(description="Of both; A's and B's where the recipes have two names.")
    metric: str
    unit: str
    a: Number | None
    b: Number | None
    difference: Interval | None = Field(
        description="B minus A, its verdict about B; null where a run does not have samples' figures."
    )


class ComparedRun(Part):
    """A run that is compared."""

    run: str
    created: str
    engine: str = Field(description="Whose accuracy is compared.")
    samples: int


class CompareRunsOutput(Part):
    """`granplugin compare RUN RUN --json`."""

    version: int = 1
    a: ComparedRun
    b: ComparedRun
    paired: bool = Field(description="Whether both were measured on the same samples.")
    figures: list[RunFigure]
    notes: list[str]


class ChannelFacts(Part):
    """The ranges - largest |value| - of a weight's output channels, numbered from 0."""

    amax: float = Field(description="The whole weight's.")
    spread: float | None = Field(
        description="The largest range over the median of those that are not 0; null: all are 0."
    )
    widest: int | None = Field(description="The channel with the largest range.")
    dead: list[int] = Field(description="Channels that are all zeros.")
    outliers: list[int] = Field(description="Over 10 times the median, widest first.")


class InspectedLayer(Part):
    """One module that has sites. Axis 0 of inputs and outputs stands for any batch."""

    name: str
    type: str
    traits: list[str]
    calls: int | None = Field(description="In one forward pass; null where none could be run.")
    parameters: int
    macs: int | None = Field(
        description="Multiply-accumulates a sample; null where shapes vary or are not known."
    )
    weight_shape: list[int] | None
    input_shape: list[int] | None
    output_shape: list[int] | None
    skip_shape: list[int] | None = Field(description="Of what a residual add adds its output to.")
    bn: str | None = Field(description="The batch norm that can be folded into it.")
    weight: ChannelFacts | None = Field(description="As the model has it.")
    folded: ChannelFacts | None = Field(description="With that batch norm folded in.")
    unfolded: float | None = Field(
        default=None,
        description="How many times the median the range of the widest folded channel is without "
        "the folding.",
    )
    defaults: list[SiteRow] = Field(description="What the recipe's defaults alone give its sites.")
    rules: list[SiteRow] = Field(description="Sites of which the rules make something else.")
    unusable: str | None = Field(description="Why it cannot be quantized.")


class Unsited(Part):
    """Modules of one class that hold parameters and always stay float."""

    type: str
    modules: int
    parameters: int


class InspectOutput(Part):
    """`granplugin inspect --json`."""

    version: int = 1
    recipe: str
    defaults: str = Field(description="The preset's name, or `defaults` where they are spelt out.")
    parameters: int
    layers: list[InspectedLayer] = Field(description="In the order they run.")
    others: list[Unsited]
    missing: str | None = Field(description="Why no forward pass could be run.")
    refused: str | None = Field(description="Why the rules do not fit the layers.")
    coverage: Coverage | None = Field(
        default=None, description="The recipe's, of all that the network multiplies."
    )


OUTPUTS: dict[str, Any] = {
    "audit": AuditOutput,
    "analysis": Analysis,
    "compare": CompareOutput,
    "compare_runs": CompareRunsOutput,
    "capabilities": CapabilitiesOutput,
    "inspect": InspectOutput,
    "plan": PlanOutput,
    "why": WhyOutput,
    "check": CheckOutput,
    "doctor": DoctorOutput,
    "runs": RunsOutput,
    "clean": CleanOutput,
}
