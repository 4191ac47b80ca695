"""What an engine really computes in: its float part by its own name, and promises that it breaks."""

from __future__ import annotations

import dataclasses

import onnx
import pytest
from conftest import run_main
from qdq_files import ATTENTION, NAMELESS

from granplugin import backends


def test_floats_are_named_for_what_they_are_and_broken_promises_counted(applied, monkeypatch):
    pytest.importorskip("openvino")
    openvino = backends.backend_of("openvino")
    layers = openvino.layers

    def one_in_float(engine):
        """As a ViT's are: promised natively, and multiplied in float."""
        return tuple(
            dataclasses.replace(ran, precision="float", arithmetic="fp32")
            if ran.layer == "head"
            else ran
            for ran in layers(engine)
        )

    monkeypatch.setattr(openvino, "layers", one_in_float)
    applied.recipe(
        engines=["openvino"], baselines=["fp32", "fp16"], latency={"rounds": 6, "seconds": 0.01},
        limits={"latency_vs": {"fp16": 0.9}},
    )  # fmt: skip
    done = applied.apply()
    assert done.code == 4, done.stderr
    fp32, fp16, recipe = applied.report().variants
    assert [each.computed_in(each.engines[0]) for each in (fp32, fp16)] == [None, "fp32"]
    (limit,) = applied.report().limits
    assert limit.verdict == "cannot tell"
    assert "openvino computes fp16 in fp32, not in fp16" in limit.why
    (engine,) = recipe.engines
    assert (engine.native_layers, engine.native_in_float) == (3, 1)
    ran = "openvino of recipe: runs 2 of 3 layers in 8 bits; 1 of 3 that it was to have natively"
    for told in (done.stdout, (applied.out / "report.md").read_text()):
        assert "fp16 (in fp32)" in told and "1/3" in told
        assert f"{ran} are float: head" in " ".join(told.split())
    for rules, said in ([], True), ([{"match": "head", "weight": "per_tensor"}], False):
        applied.recipe(engines=["openvino"], rules=rules)
        planned = run_main("plan", applied.folder / "recipe.yaml", "--out", applied.out).stdout
        told = "ran 2 of 3 layers in 8 bits, and 1 of 3 native promises in float: head"
        assert (told in " ".join(planned.split())) == said, "of the same plan alone"


@pytest.mark.parametrize("scaled", [True, False])
def test_openvinos_kernel_of_a_whole_attention_tells_both_products(tmp_path, scaled):
    pytest.importorskip("openvino")
    openvino = backends.backend_of("openvino")
    text = ATTENTION if scaled else ATTENTION.replace("Mul(a, d)", "Identity(a)")
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    engine = openvino.build(tmp_path / "model.onnx", tmp_path / "engine")
    assert [ran.precision for ran in openvino.layers(engine)] == ["int8", "int8"]


def test_the_only_kernel_without_a_name_is_the_only_product_without_a_kernel(tmp_path):
    pytest.importorskip("openvino")
    openvino = backends.backend_of("openvino")
    onnx.save(onnx.parser.parse_model(NAMELESS), tmp_path / "model.onnx")
    engine = openvino.build(tmp_path / "model.onnx", tmp_path / "engine")
    (ran,) = openvino.layers(engine)
    assert ran.precision == "int8"
