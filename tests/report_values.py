"""Small values of every schema that has a view, with names that a reader of HTML or Markdown must
not take for marks."""

from __future__ import annotations

from granplugin.report.schema.check import CheckedRecipe, CheckOutput
from granplugin.report.schema.parts import Machine, MovedBytes
from granplugin.report.schema.run import (
    ComputedWrongly,
    EngineResult,
    Held,
    Interval,
    LatencyValue,
    LayerRan,
    LimitResult,
    LintFinding,
    MetricValue,
    Override,
    Provable,
    Ratio,
    Report,
    SiteVerdict,
    VariantResult,
    WrongFile,
)
from granplugin.report.schema.verbs import (
    AuditedSite,
    AuditOutput,
    CapabilitiesOutput,
    CapabilityRow,
    ChangedLayer,
    ChannelFacts,
    CleanOutput,
    ComparedRun,
    ComparedSide,
    CompareOutput,
    CompareRunsOutput,
    DoctorOutput,
    EngineState,
    EngineTotals,
    InspectedLayer,
    InspectOutput,
    PlanOutput,
    ProbedCase,
    ProbedCell,
    RuleRow,
    RunFigure,
    RunKept,
    RunsOutput,
    SitePromise,
    SiteRow,
    Unsited,
    WhyOutput,
)

HOSTILE = "<script>alert('x')</script>|`*\"&lt;"
PROVABLE = Provable(significant_drop=0.5, drop=0.69, back=0.2, drop_with_back=1.18)
MOVED = MovedBytes(activations=10_000, weights=5000, scales=70, other=0, total=15_070)
MACHINE = Machine(system="Linux", processor="one", cores=2, python="3.12", packages={"torch": "2"})


def finding(layer: str) -> LintFinding:
    return LintFinding(code="fp32-output", layer=layer, says="slow", instead="write", bytes=9000)


def engine(name: str, against: float | None, built: bool) -> EngineResult:
    """OpenVINO-like where it is not only built."""
    interval = against is not None and Interval(
        value=against, low=against - 1, high=against + 1, unit="%", n=9, method="paired",
        verdict="worse" if against < -1 else "no measurable difference",
    )  # fmt: skip
    vs = {"fp32": interval} if interval else {}
    ratio = {"fp32": Ratio(value=0.9, low=0.8, high=1.1)} if interval else {}
    metric = MetricValue(value=98.5, unit="%", low=97.0, high=99.0, vs=vs)
    latency = LatencyValue(batch=1, median_ms=0.5, p90_ms=0.6, iqr=0.1, rounds=9, vs=ratio)
    verdict = SiteVerdict(
        site=f"{HOSTILE}.weight", where="r.yaml:3:5", promise="native", verdict="degraded",
        detail="float",
    )  # fmt: skip
    return EngineResult(
        engine=name,
        version="1.2",
        engine_bytes=1000,
        build_seconds=0.5,
        metrics={} if built else {"top1": metric},
        latency=[] if built else [latency],
        layers=[LayerRan(layer=HOSTILE, precision="float", kernel="k", detail="float")],
        cannot_run="there is no driver" if built else None,
        kernels=5 if built else None,
        moved=MOVED if built else None,
        batch=9 if built else None,
        verdicts=[verdict] if built and interval else [],
        made={f"{HOSTILE}.input": "simulated"} if built else {},
        findings=[finding(HOSTILE)] if built else [],
    )


def troubled(name: str = HOSTILE) -> Report:
    """A run of which one engine computes the recipe wrongly, and the other refuses it."""
    made = report(name)
    fp32, mine = made.variants
    part = ComputedWrongly(name=HOSTILE, where="r.yaml:3:5", write="format: float", sites=[HOSTILE])
    held = Held(output=HOSTILE, apart_db=5, engine_db=5, reference_db=30, samples=9, wrong=True)
    traced = WrongFile(held=held, sets=[[part]], left_float=[part], note="", builds=7)
    first, second = mine.engines
    first = first.model_copy(update={"traced": traced, "native_layers": 4, "native_in_float": 1})
    second = second.model_copy(update={"refused": HOSTILE, "untimed": HOSTILE})
    mine = mine.model_copy(update={"engines": [first, second]})
    return made.model_copy(update={"variants": [fp32, mine]})


def report(name: str = HOSTILE) -> Report:
    """fp32 and a recipe on an engine that runs and one that is only built."""
    variants = [
        VariantResult(
            name=title, kind=kind, recipe=None, onnx="model.onnx", onnx_bytes=10_000,
            precision="fp32", quantized_sites=2, scales=3, folded=1,
            engines=[engine("openvino", against, False), engine("tensorrt_rtx", against, True)],
        )
        for title, kind, against in (("fp32", "baseline", None), (name, "recipe", -3.0))
    ]  # fmt: skip
    override = Override(
        variant=name, layer="conv", role="weight", default="per_channel", now="per_tensor",
        rule=HOSTILE, where="r.yaml:3:5", ran="float",
    )  # fmt: skip
    limit = LimitResult(
        limit="top1_drop", variant=name, bound=1, measured=4, verdict="missed", why=HOSTILE
    )
    return Report(
        granplugin="0.2", name=name, recipes=["r.yaml"], created="today", seconds=1,
        machine=MACHINE, defaults="tensorrt@11", calibration_samples=8, evaluation_samples=9,
        evaluated_on="evaluation", batch_size=2, provable=PROVABLE, variants=variants,
        overrides=[override] * 5, notes=[HOSTILE], limits=[limit],
    )  # fmt: skip


def site(layer: str, role: str = "weight", format: str = "int8") -> SiteRow:
    quantized = format != "float"
    return SiteRow(
        layer=layer, type="Conv2d", role=role, shape=[8, 1, 3, 3], format=format,
        granularity="per_channel" if quantized else None, block=None, scales=8 * quantized,
        calibrator="max" if quantized else None, amax=2.5 if role == "input" else None,
        dynamic=False, on_unsupported=None, bn="fold", bn_name="bn", rule="coarse",
        where="r.yaml:3:5", note=HOSTILE if role == "input" else None, share=None, setting=None,
        channel_axis=0, tensor=None, concat=None,
    )  # fmt: skip


def audited(layer: str, verdict: str) -> AuditedSite:
    return AuditedSite(
        layer=layer, type="Conv", role="weight", format="int8", granularity="per_tensor",
        promise="native", verdict=verdict, detail="float", where="r.yaml:3:5", ms=0.25,
    )  # fmt: skip


def inspected(name: str, bn: str | None) -> InspectedLayer:
    facts = ChannelFacts(amax=1.0, spread=20.0, widest=3, dead=[1], outliers=[3])
    return InspectedLayer(
        name=name, type="Conv2d", traits=["depthwise", "first"], calls=2, parameters=72, macs=1000,
        weight_shape=[8, 1, 3, 3], input_shape=[1, 8, 4, 4], output_shape=[1, 8, 4, 4],
        skip_shape=None, bn=bn, weight=facts, folded=facts if bn else None,
        unfolded=1.5 if bn else None, defaults=[site(name), site(name, "input")],
        rules=[site(name, format="float")], unusable=None,
    )  # fmt: skip


def change(layer: str) -> ChangedLayer:
    a = ComparedSide(kernels=1, bytes=1000, arithmetic="int8 > half", time_ms=0.5)
    b = ComparedSide(kernels=2, bytes=None, arithmetic="half > half", time_ms=None)
    return ChangedLayer(layer=layer, nodes=[layer], changed=True, a=a, b=b)


def state(name: str, **more: str | None) -> EngineState:
    known = {"version": "1", "unavailable": None, "cannot_run": None, "targets": ["sm80"]}
    return EngineState(engine=name, what_for="for this", **known | more)


VALUES = (
    report(),
    troubled(),
    AuditOutput(
        onnx="dir/model.onnx", engine="tensorrt_rtx", engine_version="1", plan="built here",
        kernels=3, moved=MOVED,
        sites=[audited(f"layers.{n}.{HOSTILE}", kind) for n, kind in enumerate(
            ("honoured", "honoured", "degraded", "wrong", "unknown")
        )],
        findings=[finding("a"), finding("b")], notes=[HOSTILE], exit_code=3,
    ),
    CompareOutput(
        a=EngineTotals(name="a", kernels=3, batch=1, moved=MOVED),
        b=EngineTotals(name=HOSTILE, kernels=4, batch=1, moved=MOVED),
        layers=[change(f"/net/conv{n}/{HOSTILE}") for n in range(40)], notes=[HOSTILE],
    ),
    CompareRunsOutput(
        a=ComparedRun(run="a", created="today", engine="openvino", samples=9),
        b=ComparedRun(run=HOSTILE, created="today", engine="openvino", samples=9), paired=False,
        figures=[RunFigure(variant=HOSTILE, metric="top1", unit="%", a=9.0, b=8.0, difference=None)],
        notes=[HOSTILE],
    ),
    CapabilitiesOutput(
        backend="tensorrt_rtx", table="1", note=HOSTILE,
        rows=[CapabilityRow(
            op="conv", formats=["int8"], graphs=["fp16"], weight="per_tensor", input="per_tensor",
            output="float", other="float", size=16, stored=False, engine="quantized", promise="native",
            reason=HOSTILE, source="a build",
        )],
    ),
    CapabilitiesOutput(
        backend="tensorrt_rtx", table="1", probed=9,
        differing=[ProbedCell(
            op="conv", format="int8", weight="per_tensor", input="per_tensor", other="float", graph="fp16",
            table="quantized", observed="float", detail=HOSTILE,
        )],
        structures=3,
        differing_structures=[ProbedCase(
            structure="gate", table="right", observed="miscompile", detail=HOSTILE, form=HOSTILE,
            repaired=False,
        )],
    ),
    DoctorOutput(
        granplugin="0.2", machine=MACHINE, gpu=HOSTILE, missing=["onnx"],
        engines=[state("a"), state("b", unavailable=HOSTILE), state("c", cannot_run=HOSTILE)],
    ),
    InspectOutput(
        recipe="r.yaml", defaults="tensorrt@11", parameters=100,
        layers=[inspected(HOSTILE, "bn"), inspected("b", None)],
        others=[Unsited(type="Embedding", modules=1, parameters=5)], missing=HOSTILE, refused=None,
    ),
    PlanOutput(
        recipe="r.yaml", variant="recipe",
        rows=[site(HOSTILE), site(HOSTILE, "input"), site("b", format="float")],
        rules=[RuleRow(rule="coarse", where="r.yaml:3:5", matched=2, decides=3)], notes=[HOSTILE],
        promises={"tensorrt_rtx": {
            f"{HOSTILE}.{n}": SitePromise(kind="lowered", reason=HOSTILE, source="s", made="lowered")
            for n in range(7)
        }},
    ),
    CheckOutput(recipes=[
        CheckedRecipe(recipe=f"{HOSTILE}\x1b[31m", ok=True, checked="text"),
        CheckedRecipe(recipe="b", ok=False, errors=["wrong"], checked="text"),
    ]),
    RunsOutput(folder=HOSTILE, runs=[RunKept(
        run=HOSTILE, created=None, recipes=[HOSTILE], variants=2, result_bytes=1, cache_bytes=10**9,
    )]),
    CleanOutput(freed={HOSTILE: 5}, busy=[HOSTILE]),
    WhyOutput(layer=HOSTILE, story=["r.yaml:3:5  coarse: weight = per_tensor"]),
)  # fmt: skip
