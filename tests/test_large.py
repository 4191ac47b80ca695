"""Models beyond protobuf's 2 GB: their weights lie beside the file, wherever it goes. Here the limit
is lowered, so that a small network goes that way."""

from __future__ import annotations

import json
import mmap
import os

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import run_main

from granplugin.graph import files
from granplugin.graph.edit.precision import convert
from granplugin.graph.mapped import let_go
from granplugin.graph.read.graph import read
from granplugin.store.cache import Cache
from granplugin.store.companions import companions


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(files, "EMBEDDED", 0)
    monkeypatch.setattr(files, "_OUTSIDE", 32)


def constants(path):
    graph = read(path)
    return {name: graph.array(name) for name in graph.stored}


def test_the_same_network_is_written_with_its_weights_outside(
    applied, project, small_limit, tmp_path
):
    project.recipe(variants={"half": {"set": {"precision": "fp16"}}})
    project.exported, project.out = None, tmp_path / "outside"
    done = project.apply()
    assert done.code == 0, done.stderr
    for name in ("fp32", "recipe"):
        path = project.out / "variants" / name / "model.onnx"
        assert len(companions(path)) == 1
        found, held = constants(path), constants(applied.out / "variants" / name / "model.onnx")
        assert found.keys() == held.keys()
        assert all(np.array_equal(found[each], held[each]) for each in held)
    report = json.loads((project.out / "report.json").read_text())
    last = report["variants"][-1]
    assert last["engines"][0]["metrics"]["sqnr_db"]["value"] > 20
    path = project.out / last["onnx"]
    whole = sum(each.stat().st_size for each in (path, *companions(path)))
    assert last["onnx_bytes"] == last["engines"][0]["engine_bytes"] == whole
    again = project.apply()  # everything is taken from the cache, and put in place once more
    assert again.code == 0, again.stderr
    assert {p.name for p in project.out.rglob("*.weights")} >= {
        each.name for path in project.out.glob("variants/*/model.onnx") for each in companions(path)
    }
    exported = run_main(
        "export", project.folder / "recipe.yaml", "--engine", "tensorrt", "--run", project.out,
        "--out", tmp_path / "export",
    )  # fmt: skip
    assert exported.code == 0, exported.stderr
    onnx.checker.check_model(str(tmp_path / "export/variants/recipe/model.onnx"), full_check=True)
    assert len(companions(tmp_path / "export/variants/recipe/model.onnx")) == 1


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_weights_outside_are_lowered_as_those_in_the_file(applied, tmp_path, precision):
    inside, outside = applied.out / "variants/recipe/model.onnx", tmp_path / "outside.onnx"
    ir.save(ir.load(inside), outside, external_data="weights", size_threshold_bytes=32)
    assert (tmp_path / "weights").stat().st_size > 0
    plan = json.loads((applied.out / "plan.json").read_text())["variants"]["recipe"]
    sites = [f"{row['layer']}.{row['role']}" for row in plan]
    found = []
    for path in (inside, outside):
        files.save(convert(path, precision, sites, []), tmp_path / "low.onnx")
        onnx.checker.check_model(str(tmp_path / "low.onnx"))
        found.append(constants(tmp_path / "low.onnx"))
    assert found[0].keys() == found[1].keys()
    assert all(found[0][name].tobytes() == found[1][name].tobytes() for name in found[0])


def test_what_is_outside_is_named_by_its_content_and_goes_where_the_file_goes(
    small_limit, monkeypatch, tmp_path
):
    def model(fill):
        weight = ir.Tensor(np.full((9, 7), fill, np.float32), name="w")
        value = ir.Value(
            name="w", const_value=weight, type=ir.TensorType(weight.dtype), shape=weight.shape
        )
        node = ir.node("Identity", [value], name="copy")
        node.outputs[0].name = "y"
        graph = ir.Graph(
            [], node.outputs, nodes=[node], initializers=[value], opset_imports={"": 21}, name="g"
        )
        return ir.Model(graph, ir_version=10)

    cache = Cache(tmp_path / "cache")
    cache.folder.mkdir()
    one, same, other = (
        cache.made("net", key, ".onnx", lambda path, fill=fill: files.save(model(fill), path))
        for key, fill in (("a", 1), ("b", 1), ("c", 2))
    )
    assert companions(one) == companions(same) != companions(other)
    assert one.read_bytes() == same.read_bytes() != other.read_bytes()
    assert cache.used >= {*companions(one), *companions(other)}
    (kept,) = companions(one)
    assert kept.stat().st_nlink == 1 and os.listdir(cache.folder).count(kept.name) == 1
    monkeypatch.setattr(files, "EMBEDDED", 2**30)  # what came from outside is written there again
    loaded = files.load_float(one)
    assert (loaded.graph.initializers["w"].const_value.numpy() == 1).all()
    files.save(loaded, tmp_path / "copy.onnx")
    assert companions(tmp_path / "copy.onnx")[0].read_bytes() == kept.read_bytes()


def test_whatever_is_a_view_of_a_mapped_file_lets_its_pages_go():
    told = []

    class Mapped(mmap.mmap):
        def madvise(self, *advice):
            told.append(advice)

    array = np.frombuffer(Mapped(-1, 4096), np.float32)
    views = [array, array.reshape(2, -1).T, array.view(np.uint8).data, memoryview(array)[1:]]
    for view in views:
        let_go(view)
    assert told == [(mmap.MADV_DONTNEED,)] * len(views)
    for other in (np.ones(3), memoryview(b"abc"), None):
        let_go(other)
