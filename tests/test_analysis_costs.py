"""A layer's setting on each engine: promised as `plan` says, its costs measured as by `apply`."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from conftest import RECIPES, lend, run_main
from hypothesis import given
from hypothesis import strategies as st
from plan_values import layer_of

from granplugin import backends
from granplugin.analysis.costs import (
    costs,
    promises,
    setting_costs,
    whole_plans,
)
from granplugin.analysis.kernel_owners import NO_LAYER, owners_of
from granplugin.backends.engine_plan import EngineLayer, EnginePlan, EngineTensor
from granplugin.planning.plan import make_plan
from granplugin.planning.rows import Plan, QuantizedRow
from granplugin.quant.calibrators import Calibrator
from granplugin.quant.granularity import PerChannel, PerTensor
from granplugin.quant.layers import WEIGHTED, Layer
from granplugin.quant.site import MULTIPLIED
from granplugin.recipe.load import load_recipe
from granplugin.runs.calibrated import calibrate
from granplugin.runs.jobs import plan_jobs
from granplugin.runs.session import Session
from granplugin.store.run_folder import open_run

RECIPE = RECIPES / "digits_mobilenet.yaml"
RTX = backends.backend_of("tensorrt_rtx")
needs_rtx = pytest.mark.skipif(
    RTX.unavailable() is not None, reason="tensorrt_rtx has no package for this platform"
)


@pytest.fixture(scope="module")
def known(quickstart, tmp_path_factory):
    """The quickstart's session in a run folder of its own, its plans, float model and statistics:
    nothing is traced, calibrated or exported again."""
    folder = tmp_path_factory.mktemp("costs") / "run"
    lend(quickstart.folder, folder, "layers", "statistics", "float")
    with open_run(folder) as run:
        session = Session(load_recipe(RECIPE), run)
        jobs = plan_jobs([session.loaded], session.layers)
        plans = {job.name: job.plan for job in jobs}
        calibrated = calibrate(session, jobs)
        yield session, plans, calibrated.floats, calibrated.statistics


@pytest.fixture
def builds(monkeypatch) -> list:
    """The files that TensorRT-RTX was given."""
    build, seen = RTX.build, []

    def watched(onnx, out, options):
        seen.append(onnx)
        return build(onnx, out, options)

    monkeypatch.setattr(RTX, "build", watched)
    return seen


def test_promises_are_those_of_granplugin_plan(project):
    rules = [
        {"match": "conv", "input": {"per_channel": {"axis": 1}}},
        {"match": "depthwise", "weight": {"per_channel": {"axis": 2}}},
    ]
    engines = ["openvino", *([] if RTX.unavailable() else ["tensorrt_rtx"])]
    recipe = project.recipe(engines=["onnxruntime"], optional_engines=["openvino"], rules=rules)
    code, out, err = run_main("plan", recipe, "--out", project.out, "--json")
    assert code == 0, err
    said = json.loads(out)["promises"]
    with open_run(project.out) as run:
        session = Session(load_recipe(recipe), run)
        plan = make_plan(session.loaded, session.layers)
        found = promises(session, {"recipe": plan})["recipe"]
        # What is not installed promises, too.
        everywhere = promises(session, {"recipe": plan}, [*engines, "tensorrt", "tensorrt_rtx"])
    assert found.keys() == said.keys() == {"onnxruntime", "openvino"}
    for engine, by_site in found.items():
        assert {site: (p.kind, p.reason, p.source) for site, p in by_site.items()} == {
            site: (p["kind"], p["reason"], p["source"]) for site, p in said[engine].items()
        }
    kinds = {engine: of["depthwise.weight"].kind for engine, of in everywhere["recipe"].items()}
    assert kinds["tensorrt"] != "native" and kinds["tensorrt_rtx"] != "native"


@needs_rtx
def test_kernels_and_mb_of_the_layers_sum_up_to_those_of_apply(known, quickstart, builds):
    session, plans, float_onnx, statistics = known
    plans = {name: plans[name] for name in ("tensorrt@11", "digits_mobilenet", "bn-kept")}
    found = costs(session, plans, float_onnx, statistics)
    assert len(builds) == 3
    for variant in quickstart.report.variants:
        if variant.name not in plans:
            continue
        (applied,) = [e for e in variant.engines if e.engine == "tensorrt_rtx"]
        of_layers = [c["tensorrt_rtx"] for (name, _), c in found.items() if name == variant.name]
        assert sum(cost.kernels for cost in of_layers) == applied.kernels
        assert sum(cost.mb for cost in of_layers) == pytest.approx(applied.moved.total / 1e6)
        assert sum(cost.scales for cost in of_layers) == sum(
            row.scales for row in plans[variant.name].quantized if row.operand in MULTIPLIED
        )
    for layer in session.layers:
        if layer.type == "Conv2d":
            fine, kept = (found[n, layer.name]["tensorrt_rtx"] for n in ("tensorrt@11", "bn-kept"))
            assert (fine.promise, kept.promise) == ("native", "native")
            assert (fine.scales, kept.scales) == (1 + layer.shape("weight")[0], 2)
            assert fine.kernels >= 2 and fine.mb >= kept.mb > 0


@needs_rtx
def test_settings_that_differ_in_calibrators_alone_are_built_once_and_kept(known, builds):
    session, plans, float_onnx, statistics = known
    given = (session, plans["without-rescue"])
    rows = {row.site: row for row in given[1].rows}
    fine = {row.site: row for row in plans["tensorrt@11"].rows}
    settings = {}
    for name in (layer.name for layer in session.layers if layer.type in WEIGHTED):
        weight, read = rows[f"{name}.weight"], rows[f"{name}.input"]
        entropy = replace(read, calibrator=Calibrator("entropy"))
        settings[name] = [(weight, read), (weight, entropy), (fine[weight.site], entropy)]
    first = setting_costs(*given, settings, float_onnx, statistics, ["tensorrt_rtx"])
    assert len(builds) == 2
    for plain, calibrated, finer in first.values():
        assert plain == calibrated and plain["tensorrt_rtx"].kernels > 0
        assert finer["tensorrt_rtx"].scales >= plain["tensorrt_rtx"].scales
    moved = [sum(of[j]["tensorrt_rtx"].mb for of in first.values()) for j in range(3)]
    assert moved[0] == moved[1] < moved[2]
    assert first == setting_costs(*given, settings, float_onnx, statistics, ["tensorrt_rtx"])
    assert len(builds) == 2


def test_what_was_not_measured_says_why(known, monkeypatch):
    session, plans, float_onnx, statistics = known
    monkeypatch.setattr(RTX, "unavailable", lambda: "tensorrt_rtx is not installed")
    plans = {"defaults": plans["tensorrt@11"]}
    weighted = {layer.name for layer in session.layers if layer.type in WEIGHTED}
    for (_, layer), of in costs(session, plans, float_onnx, statistics).items():
        assert {(cost.kernels, cost.mb) for cost in of.values()} == {(None, None)}
        assert of["tensorrt_rtx"].note == "not measured: tensorrt_rtx is not installed"
        assert of["openvino"].note == "not measured: openvino does not tell its kernels"
        assert of["tensorrt_rtx"].promise == ("native" if layer in weighted else None)


@needs_rtx
def test_a_build_that_fails_leaves_its_costs_unknown_and_is_tried_again(known, builds):
    session, plans, float_onnx, statistics = known
    limited = Session(load_recipe(RECIPE, ["build.memory_mb=1"]), session.run)
    plans = {"float": plans["fp16"]}
    for tries in (1, 2):
        found = costs(limited, plans, float_onnx, statistics, ["tensorrt_rtx"])
        assert len(found) == len(session.layers) + 1
        for of in found.values():
            assert (of["tensorrt_rtx"].kernels, of["tensorrt_rtx"].mb) == (None, None)
            assert of["tensorrt_rtx"].note.startswith("not measured: tensorrt_rtx could not build")
        assert len(builds) == tries


@needs_rtx
def test_what_is_built_as_something_else_is_said_to_be(known):
    session, plans, float_onnx, statistics = known
    rows = []
    for row in plans["tensorrt@11"].rows:
        if row.site == "features.1.project.conv.input":
            row = replace(row, granularity=PerChannel())
        rows.append(row)
    found = costs(session, {"x": Plan(tuple(rows))}, float_onnx, statistics, ["tensorrt_rtx"])
    cost = found["x", "features.1.project.conv"]["tensorrt_rtx"]
    assert cost.promise in ("lowered", "simulated")
    assert cost.note == f"measured as {cost.promise}"
    assert cost.kernels > 0
    assert found["x", "features.2.expand.conv"]["tensorrt_rtx"].note is None


SHAPES = {"weight": (8, 8, 3, 3), "input": (1, 8, 4, 4), "skip": (1, 8, 4, 4)}
LAYERS = (
    layer_of("a", shapes=SHAPES, tensors={"input": 0}),
    layer_of("b", shapes=SHAPES, tensors={"input": 1, "skip": 1}),
    layer_of("c", shapes=SHAPES, tensors={"input": 2}),
)


def row(layer, role, bn="fold", calibrator="max"):
    (site,) = (s for each in LAYERS if each.name == layer for s in each.sites if s.operand == role)
    return QuantizedRow(
        at=site, type="Conv2d", format="int8", granularity=PerTensor(), bn=bn,
        calibrator=Calibrator(calibrator), rule="rule", where="r.yaml:1:1",
    )  # fmt: skip


BASE = Plan(
    tuple(row(x.name, role) for x in LAYERS for role in SHAPES if role != "skip" or x.name == "b")
)
settings = st.lists(
    st.tuples(st.sampled_from(["fold", "keep"]), st.sampled_from(["max", "entropy", "mse"])),
    max_size=5,
)


@given(st.dictionaries(st.sampled_from("abc"), settings))
def test_as_few_whole_plans_as_the_layer_with_most_settings_has_hold_all_of_them(chosen):
    pairs = {
        name: [tuple(row(name, role, *each) for role in ("weight", "input")) for each in of]
        for name, of in chosen.items()
    }
    plans = whole_plans(BASE, LAYERS, pairs)
    assert len(plans) == max(map(len, pairs.values()), default=0)
    for name, of in pairs.items():
        got = [tuple(r for r in p.rows if r.layer == name and r.operand != "skip") for p in plans]
        assert got[: len(of)] == of
    for plan in plans:
        assert [r.site for r in plan.rows] == [r.site for r in BASE.rows]
        by_site = {r.site: r for r in plan.rows}
        # It has one Q/DQ with what reads the same tensor, and the batch norm is its layer's.
        assert by_site["b.skip"].calibrator == by_site["b.input"].calibrator
        assert by_site["b.skip"].bn == by_site["b.weight"].bn
        others = [r for r in plan.rows if not chosen.get(r.layer)]
        assert others == [r for r in BASE.rows if not chosen.get(r.layer)]


def kernel(kind, read, written, *nodes):
    tensors = [
        [EngineTensor(n, (1,), "int8", 1) for n in names.split()] for names in (read, written)
    ]
    return EngineLayer(f"{kind} {written}", kind, tensors[0], (), tensors[1], nodes)


def test_each_kernel_works_for_one_layer():
    layers = [
        Layer("q", "Linear"), Layer("k", "Linear"), Layer("conv", "Conv2d", bn="norm"),
        Layer("out", "Linear"), Layer("pool", "AvgPool2d"), Layer("lost", "Linear"),
    ]  # fmt: skip
    products = {"q/MatMul": "q", "k/MatMul": "k", "attn/MatMul": "attn", "out/Gemm": "out",
                "conv/Conv": "conv", "lost/MatMul": "lost"}  # fmt: skip
    cases = [
        (kernel("kgen", "image", "x8", "conv.input/QuantizeLinear"), "conv"),
        (kernel("kgen", "", "w", "conv.weight/DequantizeLinear", "conv/Conv"), "conv"),
        (kernel("correlation", "x8 w", "y32", "conv/Conv"), "conv"),
        (kernel("Reformat", "y32", "y"), "conv"),
        (kernel("kgen", "y", "y8", "norm/BatchNormalization", "q.input/QuantizeLinear"), "conv"),
        (kernel("gemm", "y8", "qk", "q/MatMul", "k/MatMul"), "q"),
        (kernel("gemm", "qk", "attended", "attn/MatMul"), NO_LAYER),
        (kernel("kgen", "attended", "softened", "attn/Softmax", "pool/ReduceMean"), NO_LAYER),
        (kernel("kgen", "softened", "pooled", "pool/ReduceMean"), "pool"),
        (kernel("Reformat", "pooled", "laid"), "out"),
        (kernel("gemm", "laid", "z", "out/Gemm"), "out"),
        (kernel("kgen", "z qk", "output", "sum/Add", "out/Gemm"), "out"),
    ]
    plan = EnginePlan(tuple(k for k, _ in cases), (), "a test")
    owners, elsewhere = owners_of(plan, products, layers)
    assert owners == [owner for _, owner in cases]
    assert elsewhere == {"k": "q", "lost": NO_LAYER}
