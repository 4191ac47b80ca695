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


FEW = ("dense connections", "maximum", "convolution without bias of one channel read twice", "gate")


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
    rtx = backends.load("tensorrt_rtx")
    if not rtx.unavailable() and rtx.can_run():
        assert probe.probe_structures("tensorrt_rtx") == ()
