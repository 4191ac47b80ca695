"""granplugin compare: two plans side by side, aligned by ONNX nodes however they are fused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import onnx
import pytest
from conftest import run_main
from hypothesis import given
from hypothesis import strategies as st
from qdq_files import inspected, residual
from test_audit import needs_rtx

from granplugin.audits.comparison import aligned
from granplugin.backends.engine_plan import EngineLayer, EnginePlan, EngineTensor
from granplugin.pipelines.compare import compare

PLANS = Path(__file__).parent / "data" / "engine_plans"


def tensor(name, dtype="int8"):
    return EngineTensor(name, (4, 4), dtype, 16)


def chain(cuts, dtype="int8", size=8):
    """A plan of `size` nodes in a row, fused into one kernel between each two of `cuts`."""
    edges = [0, *sorted(cuts), size]
    kernels = [
        EngineLayer(
            f"k{a}", "gemm", (tensor(f"t{a}", dtype),), (), (tensor(f"t{b}", dtype),),
            tuple(f"op{i}" for i in range(a, b)),
        )
        for a, b in zip(edges, edges[1:], strict=False)
    ]  # fmt: skip
    return EnginePlan(tuple(kernels), (), "made up")


cuts = st.sets(st.integers(1, 7))


@given(cuts, cuts)
def test_every_kernel_and_node_is_in_one_layer_whatever_is_fused(a, b):
    plans = chain(a), chain(b)
    layers = aligned(*plans)
    assert [sum(getattr(layer, side).kernels for layer in layers) for side in "ab"] == [
        len(plan.kernels) for plan in plans
    ]
    assert [sum(getattr(layer, side).bytes for layer in layers) for side in "ab"] == [
        plan.moved.total for plan in plans
    ]
    assert sorted(node for layer in layers for node in layer.nodes) == [f"op{i}" for i in range(8)]
    # Layers are cut where both engines are.
    assert len(layers) == len(a & b) + 1


@given(cuts)
def test_an_engine_does_not_differ_from_itself(a):
    assert not any(layer.changed for layer in aligned(chain(a), chain(a)))
    assert all(layer.changed for layer in aligned(chain(a), chain(a, "half")))


def test_a_quantize_kernel_is_of_the_layer_that_reads_it():
    plan = chain({4})
    quantize = EngineLayer(
        "q", "kgen", (tensor("x", "half"),), (), (tensor("t4"),), ("op4.input/QuantizeLinear",)
    )
    both = aligned(plan, replace(plan, layers=(quantize, *plan.layers)))
    assert [(layer.a.kernels, layer.b.kernels) for layer in both] == [(1, 1), (1, 2)]


@needs_rtx
def test_onnx_files_are_built_and_compared_at_80_columns_without_milliseconds(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name, axis in (("a", 0), ("b", None)):
        onnx.save(residual("shared", axis=axis), f"{name}.onnx")
    done = run_main("compare", "a.onnx", "b.onnx")
    assert (done.code, done.stderr) == (0, "")
    assert "int8 > float | int8 > half" in done.stdout
    assert "ms" not in done.stdout.split()
    assert max(map(len, done.stdout.splitlines())) <= 80
    done = run_main("compare", "a.onnx", "b.onnx", "--backend", "openvino")
    assert done.code == 2 and "engine 'openvino' tells no plan" in done.stderr


def test_layers_files_are_compared_with_times_where_there_are_profiles(tmp_path):
    both = [PLANS / "tensorrt_10.json", PLANS / "tensorrt_11.json"]
    profile = ("--profile", PLANS / "profile.json") * 2
    done = run_main("compare", *both, *profile, "--json")
    told = json.loads(done.stdout)
    jsonschema.validate(told, json.loads(run_main("schema", "compare").stdout))
    assert [layer["a"]["time_ms"] for layer in told["layers"]] == pytest.approx([0.04, 0.02])
    assert not any(layer["changed"] for layer in told["layers"])


def test_an_engines_folder_and_a_variants_folder_are_taken(tmp_path):
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "layers.json").write_text(inspected(residual()))
    found = compare(tmp_path / "engine", PLANS / "rtx_gemm.txt", "tensorrt_rtx")
    assert len(found.plans[0].kernels) == 4
    done = run_main("compare", tmp_path, tmp_path / "engine")
    assert done.code == 2 and "is neither an engine's folder" in done.stderr


@pytest.mark.parametrize("text", ["", "{}", "Layers:\nName: x", '{"Layers": ["conv"]}'])
def test_a_plan_in_an_unknown_form_is_refused_by_name(tmp_path, text):
    path = tmp_path / "layers.json"
    path.write_text(text)
    done = run_main("compare", path, PLANS / "tensorrt_11.json")
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{path}: ") and done.stderr.count("\n") == 1
