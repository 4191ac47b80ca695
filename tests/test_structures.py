"""Structures of several layers that an engine computes wrongly: data, a probe, and equal forms."""

from __future__ import annotations

from typing import get_args

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper
from test_qdq import model_of, run

from granplugin import backends
from granplugin.capabilities import probe
from granplugin.capabilities import table as tables
from granplugin.capabilities.structures import INPUT, STRUCTURES, example, structure
from granplugin.capabilities.table import Structure, load_table
from granplugin.graph.edit.extrema import quantized_extrema
from granplugin.graph.edit.forms import FORMS, asked_forms, in_forms
from granplugin.graph.files import save


def test_every_structure_has_a_network_and_every_case_a_form_that_there_is():
    assert set(STRUCTURES) == set(get_args(Structure))
    for backend, versions in tables.backends().items():
        for version in versions:
            assert set(load_table(backend, version).forms) <= set(FORMS)


FEW = (
    "dense connections", "maximum", "convolution without bias, pooled and clipped", "gate",
)  # fmt: skip


def test_the_probe_finds_what_openvino_computes_wrongly_and_that_the_forms_repair_it(monkeypatch):
    pytest.importorskip("openvino")
    found = probe.probe_structures("openvino", FEW)
    observed = {each.structure: each.observed for each in found}
    assert observed == dict(zip(FEW, ["miscompile"] * 3 + ["right"], strict=True))
    assert not any(each.differs for each in found)
    # A case that the table lacks is found, and one that is no longer so.
    known = load_table("openvino")
    (case,) = (each for each in known.cases if "maximum" in each.structure)
    wrong = case.model_copy(update={"structure": frozenset({"gate"}), "form": None})
    monkeypatch.setattr(
        probe, "load_table", lambda *of: tables.Table("openvino", "1", known.rules, None, (wrong,))
    )
    found = probe.probe_structures("openvino", ("maximum", "gate"))
    assert [(each.table, each.observed, each.differs) for each in found] == [
        ("right", "miscompile", True),
        ("miscompile", "right", True),
    ]


@pytest.mark.parametrize("name", ["maximum", "kept maximum", "minimum", "global maximum pool"])
def test_a_maximum_with_minus_infinity_changes_no_number(tmp_path, name):
    plain = ir.from_proto(structure(name))
    assert asked_forms(plain, list(FORMS)) == ("extremum",)
    equal = in_forms(plain, ["extremum"])
    assert not asked_forms(equal, list(FORMS))
    outputs = []
    for model in (plain, equal):
        save(model, tmp_path / "model.onnx")
        outputs.append(run(tmp_path / "model.onnx", {INPUT: example()}, "y")[0])
    assert np.array_equal(*outputs)


@pytest.mark.parametrize(
    ("kind", "asked"), [("Relu", True), ("Flatten", True), ("Max", False), ("Add", False)]
)
def test_an_extremum_behind_which_other_values_are_computed_with_stays(kind, asked):
    constants = {"s": np.float32(0.1), "z": np.int8(0), "axes": np.array([2, 3])}
    nodes = [
        helper.make_node("ReduceMax", ["x", "axes"], ["a"], name="m/ReduceMax"),
        helper.make_node(kind, ["a", "x"] if kind in ("Max", "Add") else ["a"], ["b"]),
        helper.make_node("QuantizeLinear", ["b", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    model = model_of(nodes, {"x": ["n", 4, 6, 6]}, {"y": None}, constants)
    assert bool(quantized_extrema(model)) == asked


def test_the_reference_and_engines_that_cannot_run_have_no_structures_to_probe():
    assert probe.probe_structures("onnxruntime") == ()
    rtx = backends.backend_of("tensorrt_rtx")
    if not rtx.unavailable() and rtx.can_run():
        assert probe.probe_structures("tensorrt_rtx") == ()


def joint(scales=48, op="MatMul", cut="Split", between="Transpose"):
    """An attention of two heads over 5 tokens, its one linear layer cut in three."""
    rng, n = np.random.default_rng(0), helper.make_node
    constants = {
        "w": rng.integers(-127, 128, (16, 48)).astype(np.int8),
        "ws": rng.uniform(0.001, 0.01, scales).astype(np.float32), "wz": np.zeros(scales, np.int8),
        "s": np.float32(0.02), "z": np.int8(0), "b": rng.standard_normal(48).astype(np.float32),
        "shape": np.array([-1, 5, 3, 2, 8]), "axes": np.array([0]),
        **{f"at{number}": np.array([number]) for number in range(4)},
    }  # fmt: skip
    product = [n("MatMul", ["d", "wd"], ["m"], name="qkv/MatMul"), n("Add", ["m", "b"], ["p"])]
    if op == "Gemm":
        product = [n("Gemm", ["d", "wd", "b"], ["p"], name="qkv/Gemm")]
    turned = {"perm": [2, 0, 3, 1, 4]} if between == "Transpose" else {}
    pieces = [
        n("Slice", ["t", f"at{at}", f"at{at + 1}", "axes"], [f"{name}0"])
        for at, name in enumerate("qkv")
    ]
    if cut == "Split":
        pieces = [n("Split", ["t"], ["q0", "k0", "v0"], axis=0, num_outputs=3)]
    elif cut == "Neg":
        pieces = [n("Neg", ["t"], [f"{name}0"]) for name in "qkv"]
    squeezed = "Identity" if cut == "Neg" else "Squeeze"
    nodes = [
        n("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        n("DequantizeLinear", ["xq", "s", "z"], ["d"], name="x/DQ"),
        n("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="w/DQ", axis=1),
        *product,
        n("Reshape", ["p", "shape"], ["r"]),
        n(between, ["r"], ["t"], **turned),
        *pieces,
        *(n(squeezed, [f"{k}0", "axes"][: 2 - (cut == "Neg")], [k]) for k in "qkv"),
        n("Transpose", ["k"], ["kt"], perm=[0, 1, 2, 4, 3] if cut == "Neg" else [0, 1, 3, 2]),
        n("MatMul", ["q", "kt"], ["scores"]),
        n("Softmax", ["scores"], ["shares"]),
        n("MatMul", ["shares", "v"], ["y"]),
    ]
    given = ["n", 16] if op == "Gemm" else ["n", 5, 16]
    return model_of(nodes, {"x": given}, {"y": None}, constants)


@pytest.mark.parametrize(
    ("network", "asked"),
    [
        ({}, True), ({"op": "Gemm"}, True), ({"cut": "Slice"}, True), ({"cut": "Neg"}, False),
        ({"scales": ()}, False), ({"between": "Relu"}, False),
    ],
)  # fmt: skip
def test_a_product_that_is_cut_gets_a_maximum_that_changes_no_number(tmp_path, network, asked):
    plain = joint(**network)
    assert bool(asked_forms(plain, ["uncut"])) == asked
    if not asked:
        return
    equal = in_forms(plain, ["uncut"])
    assert not asked_forms(equal, ["uncut"])
    shape = (10, 16) if network.get("op") == "Gemm" else (2, 5, 16)
    x, outputs = np.random.default_rng(1).standard_normal(shape).astype(np.float32), []
    for model in (plain, equal):
        save(model, tmp_path / "model.onnx")
        outputs.append(run(tmp_path / "model.onnx", {"x": x}, "y")[0])
    assert np.array_equal(*outputs)


def test_the_maximum_keeps_tensorrt_rtx_from_cutting_the_weight(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    from granplugin.backends.nvidia.builder import Builder

    assert "uncut" in load_table("tensorrt_rtx").forms
    with Builder("tensorrt_rtx", tmp_path) as builder:
        for model, kind in ((joint(), "runtime_fusion"), (in_forms(joint(), ["uncut"]), "gemm")):
            plan = builder.build(ir.to_proto(model))
            kinds = [each.kind for each in plan.layers if "qkv/MatMul" in each.onnx_nodes]
            assert kind in kinds
