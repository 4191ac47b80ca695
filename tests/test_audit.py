"""What an engine promises before a build, and the verdict on each row after it."""

from __future__ import annotations

import dataclasses

import pytest
from conftest import run_main
from hypothesis import given
from hypothesis import strategies as st
from plan_values import quantized_row

from granplugin import backends
from granplugin.audits.audit import audit
from granplugin.backends.base import LayerPrecision
from granplugin.capabilities import Promise

needs_rtx = pytest.mark.skipif(
    backends.backend_of("tensorrt_rtx").unavailable() is not None,
    reason="tensorrt_rtx has no package for this platform",
)
PROMISES = {
    kind: Promise(kind, "a reason", "a source")
    for kind in ("native", "lowered", "simulated", "refused")
}


def row(layer="conv", role="weight"):
    shape = (8, 8, 3, 3) if role == "weight" else (1, 8, 8, 8)
    return quantized_row(f"{layer}.{role}", shape, rule="rule 1", where="r.yaml:3:1")


precisions = st.lists(st.sampled_from(["int8", "fp8", "float", "unknown"]), max_size=3)


@given(precisions, st.sampled_from([*PROMISES, None]), st.sampled_from(["weight", "input"]))
def test_honoured_is_said_only_where_every_call_ran_in_the_format(ran, promise, role):
    layers = [LayerPrecision("conv", precision, "k") for precision in ran]
    layers.append(LayerPrecision("another", "int8", "k"))
    promises = {f"conv.{role}": PROMISES[promise]} if promise else {}
    (verdict,) = audit([row(role=role)], layers, promises)
    if promise == "refused":
        assert verdict.kind == "wrong"
    elif not ran or "unknown" in ran:
        assert verdict.kind == "unknown"
    elif "float" in ran:
        assert verdict.kind == ("degraded" if promise else "unknown")
        assert verdict.detail.startswith("float")
    else:
        assert verdict.kind == ("honoured" if set(ran) == {"int8"} else "unknown")
    assert verdict.where == "r.yaml:3:1"


def test_an_engine_that_tells_nothing_of_its_layers_gets_no_verdicts():
    assert audit([row()], [], {}) == ()


def test_what_is_read_as_int8_and_multiplied_in_float_is_told_apart():
    layers = [LayerPrecision("conv", "float", "runtime_fusion", "fused-dequant")]
    (verdict,) = audit([row()], layers, {"conv.weight": PROMISES["native"]})
    assert (verdict.promise, verdict.kind, verdict.detail) == (
        "native",
        "degraded",
        "fused-dequant",
    )


@needs_rtx
def test_the_quickstarts_rows_are_all_honoured_by_tensorrt_rtx(quickstart):
    for variant in quickstart.report.variants:
        (engine,) = [e for e in variant.engines if e.engine == "tensorrt_rtx"]
        assert engine.kernels > 50 and engine.moved.total > 1e6
        assert engine.honoured == len(engine.verdicts) == variant.quantized_sites
        assert engine.cannot_run is None or not engine.metrics
    assert "tensorrt_rtx" in quickstart.stdout
    assert "tensorrt_rtx" in (quickstart.folder / "report.md").read_text()


@needs_rtx
def test_what_tensorrt_rtx_does_not_have_is_refused_at_the_rules_line(project):
    rules = [{"match": "depthwise", "input": {"per_channel": {"axis": 1}}}]
    recipe = project.recipe(engines=["tensorrt_rtx"], rules=rules)
    code, _, err = run_main("plan", recipe, "--out", project.out)
    assert code == 2
    line = recipe.read_text().splitlines().index("- match: depthwise") + 1
    assert err.startswith(f"{recipe}:{line}:3: tensorrt_rtx does not have int8 per_channel")
    assert "on_unsupported: lower" in err
    assert not project.out.exists()


@needs_rtx
def test_simulated_rows_are_built_and_said_to_run_in_float(project):
    rules = [{"match": "depthwise", "weight": {"per_channel": {"axis": 2}}}]
    project.recipe(engines=["tensorrt_rtx"], rules=rules, on_unsupported="simulate")
    done = project.apply()
    assert done.code == 0, done.stderr
    variant = project.report().variants[-1]
    verdicts = {v.site: v for v in variant.engines[0].verdicts}
    assert verdicts["depthwise.weight"].verdict == "degraded"
    assert verdicts["depthwise.weight"].promise == "simulated"
    assert verdicts["conv.weight"].verdict == "honoured"
    assert "depthwise.weight degraded: float" in " ".join(done.stdout.split())


@needs_rtx
def test_a_broken_promise_is_exit_code_3(project, monkeypatch):
    project.recipe(engines=["tensorrt_rtx"])
    module = backends.backend_of("tensorrt_rtx")
    honest = module.layers

    def layers(engine):
        first, *others = honest(engine)
        return (dataclasses.replace(first, precision="float"), *others)

    monkeypatch.setattr(module, "layers", layers)
    done = project.apply()
    assert done.code == 3
    assert "degraded: float" in done.stdout


def test_an_optional_engine_that_is_not_installed_is_left_out_and_said_so(project, monkeypatch):
    module = backends.backend_of("tensorrt_rtx")
    monkeypatch.setattr(module, "unavailable", lambda: "tensorrt_rtx is not installed")
    project.recipe(optional_engines=["tensorrt_rtx"])
    done = project.apply()
    assert done.code == 0, done.stderr
    assert "engine tensorrt_rtx was left out: tensorrt_rtx is not installed" in done.stdout


def test_a_plan_says_what_each_engine_promises(project):
    recipe = project.recipe(engines=["openvino", "onnxruntime"])
    code, out, _ = run_main("plan", recipe, "--out", project.out)
    assert code == 0
    assert "openvino promises: 6 native" in out
    assert "onnxruntime promises: 6 native" in out


@needs_rtx
def test_lowered_rows_run_in_int8_on_an_engine_that_does_not_have_them(project):
    rules = [{"match": "depthwise", "input": {"per_channel": {"axis": 1}}}]
    project.recipe(engines=["tensorrt_rtx", "onnxruntime"], rules=rules, on_unsupported="lower")
    done = project.apply()
    assert done.code == 0, done.stderr
    variant = project.report().variants[-1]
    verdicts = {v.site: v for v in variant.engines[0].verdicts}
    assert verdicts["depthwise.input"].promise == "lowered"
    assert verdicts["depthwise.input"].verdict == "honoured"
    folder = project.out / "variants/recipe"
    assert (folder / "tensorrt_rtx.onnx").read_bytes() != (folder / "model.onnx").read_bytes()


@needs_rtx
def test_what_no_lowering_makes_is_an_error_even_with_lower_and_float_with_simulate(project):
    rules = [{"match": "conv", "weight": "per_element"}]
    project.recipe(engines=["tensorrt_rtx"], rules=rules, on_unsupported="lower")
    done = project.apply()
    assert done.code == 2
    assert "on_unsupported: simulate" in done.stderr
    project.recipe(engines=["tensorrt_rtx"], rules=rules, on_unsupported="simulate")
    done = project.apply()
    assert done.code == 0, done.stderr
    verdicts = {v.site: v for v in project.report().variants[-1].engines[0].verdicts}
    assert verdicts["conv.weight"].promise == "simulated"
    assert verdicts["conv.weight"].verdict == "degraded"
    assert verdicts["depthwise.weight"].verdict == "honoured"


@needs_rtx
def test_what_the_defaults_alone_ask_of_a_layer_is_built_and_told_and_no_error(project):
    net = """
import torch
from torch import nn


def tiny():
    up = nn.ConvTranspose2d(1, 4, 2, stride=2)
    return nn.Sequential(up, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
"""
    project.write("nets.py", net)
    images = {"npz": "data.npz", "inputs": {"input": "images"}}
    data = {"calibration": images, "evaluation": {**images, "labels": "labels"}}
    project.recipe(engines=["tensorrt_rtx"], data=data)
    done = project.apply()
    assert done.code == 0, done.stderr
    verdicts = {v.site: v for v in project.report().variants[-1].engines[0].verdicts}
    assert (verdicts["0.weight"].promise, verdicts["0.weight"].verdict) == ("simulated", "degraded")
    project.recipe(
        engines=["tensorrt_rtx"], data=data, rules=[{"match": "0", "weight": "per_tensor"}]
    )
    assert "transposed convolutions always run in float" in project.apply().stderr
