"""report.json: what was built, what was measured, on which machine. Versioned; nothing else is
needed to print a run again."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from granplugin.engines import ENGINES, PromiseKind
from granplugin.report.schema.parts import Coverage, Machine, MovedBytes
from granplugin.results.agreed import Agreement
from granplugin.results.audited import Kind as VerdictKind
from granplugin.results.audited import Severity
from granplugin.results.parts import Number, Part

LimitVerdict = Literal["met", "missed", "cannot tell"]
VariantKind = Literal["baseline", "recipe", "variant"]
Precision = Literal["fp32", "fp16", "bf16"]


class Interval(Part):
    """A 95 % interval of a difference, in `unit`; the bounds are null where `method` says why."""

    value: Number
    low: Number | None
    high: Number | None
    unit: str
    n: int
    method: str
    verdict: Literal["better", "worse", "no measurable difference"]
    gained: int | None = Field(
        default=None, description="Of hits and misses: samples that only this has right."
    )
    lost: int | None = Field(default=None, description="Samples that only the baseline has right.")


class MetricValue(Part):
    """One metric of one variant on one engine."""

    value: Number
    unit: str
    low: float | None = Field(default=None, description="95 % interval of the value itself.")
    high: float | None = None
    lower_is_better: bool = False
    vs: dict[str, Interval] = Field(default={}, description="Baseline -> this minus baseline.")
    outputs: dict[str, Number] = Field(
        default={}, description="The figure of each output by itself, where there are several."
    )


class Ratio(Part):
    """This variant's median latency over a baseline's, with a 95 % interval."""

    value: float
    low: float
    high: float


class ClockValue(Part):
    """What the GPU ran at; null where it does not tell."""

    sm_mhz: float | None
    memory_mhz: float | None
    temperature_c: float | None
    power_w: float | None


class LatencyValue(Part):
    """Latency of one batch size, over interleaved rounds. On a GPU it is the device's time, by
    CUDA events, with all data there."""

    batch: int
    median_ms: float
    p90_ms: float
    iqr: float = Field(description="Interquartile range over median.")
    rounds: int
    vs: dict[str, Ratio] = Field(
        default={}, description="Baseline -> ratio, its interval beyond the builds' spread."
    )
    graph_ms: float | None = Field(
        default=None, description="Median as a CUDA graph; null on a CPU, or not capturable."
    )
    build_spread: float = Field(
        default=0.0, description="How far apart two builds of one network were, as a part."
    )
    clocks: list[ClockValue] = Field(default=[], description="Of the GPU, before and after.")


class LayerRan(Part):
    """What the engine says it ran a weighted layer in."""

    layer: str
    precision: Literal["int8", "fp8", "nvfp4", "float", "wrong", "unknown"]
    kernel: str
    detail: str = Field(
        default="",
        description="Of a float layer, what it reads in fewer bits: weight-only, fused-dequant; float "
        "where an NVIDIA engine tells that nothing is; or why it is wrong.",
    )
    arithmetic: str = Field(
        default="",
        description="What float is computed in, whatever the file says: fp32, bf16, fp16; empty "
        "where the engine does not tell.",
    )


class SiteVerdict(Part):
    """What an engine made of one row."""

    site: str
    where: str = Field(description="The deciding rule's file:line:column.")
    promise: PromiseKind | None = Field(
        description="Before the build; null where nothing is known of the engine."
    )
    verdict: VerdictKind
    detail: str


class LintFinding(Part):
    """What something costs on an engine, and what to write instead."""

    code: str
    layer: str
    where: str | None = Field(default=None, description="The deciding rule's line.")
    says: str
    instead: str
    bytes: int | None = Field(default=None, description="Moved for one batch, by the plan.")
    severity: Severity = Field(
        default="advice",
        description="refused: the engine is not built; wrong: it computes other numbers than were "
        "meant; advice: it costs.",
    )


class Held(Part):
    """An engine against the reference (ONNX Runtime, optimizations off) on the same file."""

    output: str = Field(description="The one where the engine is worst.")
    apart_db: float = Field(description="SQNR of the engine's output to the reference's.")
    engine_db: float = Field(description="SQNR of the engine's output to the float network's.")
    reference_db: float = Field(description="The same of the reference's.")
    samples: int
    wrong: bool = Field(
        description="It computes something else than the file says: farther from the reference, and "
        "from the float network, than other arithmetic explains."
    )


class ComputedWrongly(Part):
    """Q/DQ that an engine computes wrongly: of a layer's product, or of one other site."""

    name: str
    where: str = Field(description="The rule's file:line:column.")
    write: str = Field(description="What leaves it float.")
    sites: list[str]


class WrongFile(Part):
    """A variant's file that an engine computes wrongly, and what of it: found by building it with
    less and less quantized."""

    held: Held
    sets: list[list[ComputedWrongly]] = Field(
        description="Each is wrong with nothing else quantized, and right without any one of it."
    )
    left_float: list[ComputedWrongly] = Field(
        description="In the engine's own file, which it computes rightly: the row is of that file. "
        "Empty: there is none, and the row is of the wrong one."
    )
    note: str = Field(description="Why there is none.")
    builds: int


class EngineResult(Part):
    """One variant on one engine."""

    engine: str
    version: str
    engine_bytes: int | None = Field(description="Null where it is not known: imported results.")
    build_seconds: float | None
    metrics: dict[str, MetricValue]
    latency: list[LatencyValue] = []
    held: Held | None = Field(
        default=None,
        description="Null for the reference itself, and where it does not run this file.",
    )
    traced: WrongFile | None = Field(
        default=None, description="Null where the engine computes what the variant's file says."
    )
    layers: list[LayerRan] = Field(default=[], description="Empty where the engine does not tell.")
    cannot_run: str | None = Field(
        default=None, description="Why it was only built and audited on this machine."
    )
    refused: str | None = Field(
        default=None,
        description="Why there is nothing of it: it refused the file, or failed at it.",
    )
    optional: bool = Field(
        default=False, description="The recipe does without it where it is not there or refuses."
    )
    untimed: str | None = Field(
        default=None, description="Why a latency is missing that was asked for."
    )
    kernels: int | None = Field(default=None, description="Kernels of the engine's plan.")
    moved: MovedBytes | None = Field(
        default=None, description="By all kernels, for one batch; null: there is no plan."
    )
    batch: int | None = Field(
        default=None,
        description="Samples of a batch that the engine is built for, where it is one number: "
        "`moved` and `engine_bytes` are of that.",
    )
    targets: list[str] = Field(
        default=[],
        description="GPUs it is built for, as the recipe names them; none: the engine's default.",
    )
    verdicts: list[SiteVerdict] = []
    native_layers: int = Field(
        default=0, description="Layers whose promises are native, of those that are told of."
    )
    native_in_float: int = Field(
        default=0, description="Those of them that it runs in float: promises that it breaks."
    )
    made: dict[str, str] = Field(
        default={},
        description="Site -> what was made of it for this engine, which does not have it: lowered, "
        "coarsened to ..., simulated (float on the device, accuracy only), left float.",
    )
    imported: bool = Field(default=False, description="Built and run on another machine.")
    findings: list[LintFinding] = Field(default=[], description="Advice, from the engine's plan.")

    @property
    def honoured(self) -> int:
        return sum(verdict.verdict == "honoured" for verdict in self.verdicts)

    @property
    def broken_promises(self) -> list[SiteVerdict]:
        """Rows that the engine was to have natively, and has not."""
        return [
            v for v in self.verdicts if v.promise == "native" and v.verdict in ("degraded", "wrong")
        ]

    @property
    def ran(self) -> bool:
        """Whether it has outputs."""
        return self.cannot_run is None and self.refused is None

    @property
    def fails(self) -> bool:
        """Whether it does not do what the recipe requires of it: a targeted one, to have what it
        was to have natively and to compute what the file says; one that is not optional, to take
        the file."""
        wrong = self.held is not None and self.held.wrong
        targeted = ENGINES[self.engine].targeted
        if self.refused is not None:
            return targeted or not self.optional
        return targeted and (wrong or self.traced is not None or bool(self.broken_promises))

    @property
    def broken_layers(self) -> list[str]:
        """Layers with a row that it was to have natively, and has not."""
        return list(dict.fromkeys(v.site.rpartition(".")[0] for v in self.broken_promises))

    @property
    def arithmetic(self) -> tuple[str, ...]:
        """What it computes float in, where it tells."""
        return tuple(sorted({each.arithmetic for each in self.layers} - {""}))

    @property
    def int8_layers(self) -> int:
        return sum(layer.precision in ("int8", "fp8") for layer in self.layers)


class VariantResult(Part):
    """One variant."""

    name: str
    kind: VariantKind
    recipe: str | None = Field(description="The recipe's file; null for a baseline.")
    plan_key: str = Field(
        default="", description="Of the network and all decisions: the same for the same plan."
    )
    onnx: str = Field(description="Path within the run folder.")
    onnx_bytes: int = Field(description="With the file of weights beside it, where there is one.")
    precision: Precision = Field(description="Of what is not quantized.")
    float32_nodes: list[str] = Field(
        default=[], description="ONNX nodes in float32 all the same: float16 could overflow."
    )
    quantized_sites: int
    scales: int
    folded: int = Field(description="Batch norms folded.")
    zero_sites: list[str] = Field(default=[], description="Only ever saw zeros, so stay float.")
    agreement: Agreement | None = Field(
        default=None, description="Null where nothing is quantized."
    )
    coverage: Coverage | None = Field(
        default=None, description="Of all that the network multiplies; null: not counted."
    )
    same_as: str | None = Field(
        default=None, description="The earlier variant whose files these are: nothing differs."
    )
    engines: list[EngineResult]

    def computed_in(self, engine: EngineResult) -> str | None:
        """What an engine computes its float part in, where that is not what its file says."""
        ran = engine.arithmetic
        return None if not ran or ran == (self.precision,) else " and ".join(ran)

    @property
    def main_engine(self) -> EngineResult:
        """The engine of its accuracy: the first here that measures latency, else the first."""
        here = [engine for engine in self.engines if not engine.imported]
        ran = [engine for engine in here if engine.ran]
        return next((engine for engine in ran if engine.latency), (ran or self.engines)[0])


class Override(Part):
    """One site where a variant differs from the defaults preset."""

    variant: str
    layer: str
    role: str
    default: str
    now: str
    rule: str
    where: str
    ran: str | None = Field(default=None, description="Precision on the latency engine.")


class LimitResult(Part):
    """A limit of the recipe and what was measured against it."""

    limit: str
    variant: str
    bound: float
    measured: float | None
    verdict: LimitVerdict
    why: str
    where: str | None = Field(default=None, description="Its file:line:column.")


class Provable(Part):
    """How small a drop the samples can prove, in points."""

    significant_drop: float = Field(
        description="The smallest observed drop that is significant: all flips are losses."
    )
    drop: float | None = Field(
        description="The smallest true drop that is proven with a probability of 80 % where no "
        "sample becomes right."
    )
    back: float = Field(
        description="Percent of samples that became right with a recipe or variant: the most of "
        "those whose difference from fp32 is not measurable."
    )
    drop_with_back: float | None = Field(description="As `drop`, where so many become right.")


class Report(Part):
    """One run of `granplugin apply`."""

    version: Literal[3] = 3
    granplugin: str
    name: str
    recipes: list[str]
    created: str
    seconds: float
    machine: Machine
    defaults: str = Field(description="The preset that overrides are counted against.")
    calibration_samples: int
    evaluation_samples: int
    evaluated_on: Literal["evaluation", "calibration"]
    evaluation_key: str = Field(
        default="", description="A hash of these samples, their order and labels; empty: not known."
    )
    batch_size: int
    provable: Provable | None = Field(
        description="What so many samples can prove of a share, as top-1; null: none was asked for."
    )
    variants: list[VariantResult]
    overrides: list[Override] = []
    broken_baseline: str | None = Field(
        default=None, description="Why no loss can be judged against fp32; null: it can."
    )
    notes: list[str] = []
    limits: list[LimitResult] = []

    @property
    def by_engine(self) -> list[list[EngineResult]]:
        """Of each engine what it did with each variant, in the order of the variants."""
        return [
            list(of) for of in zip(*(variant.engines for variant in self.variants), strict=True)
        ]

    @property
    def main_engine(self) -> list[EngineResult]:
        """What the engine of the run's table did with each variant: the first here that ran fp32
        and the recipes and measures latency; without one, that has most of this."""

        def lacks(of: list[EngineResult]) -> tuple[bool, ...]:
            kinds = [variant.kind for variant in self.variants]
            wanted = [each for each, kind in zip(of, kinds, strict=True) if kind == "recipe"]
            return (
                of[0].imported,
                not of[0].ran,
                not all(each.ran for each in wanted),
                not any(each.latency for each in of),
            )

        return min(self.by_engine, key=lacks)


def json_schema() -> dict[str, Any]:
    """report.json's JSON Schema."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Report.model_json_schema(mode="serialization"),
    }
