"""What a script writes and what `apply` writes, from the same recipe and samples."""

from __future__ import annotations

from pathlib import Path

import modelopt.torch.quantization as mtq
import numpy as np
import onnx
import pytest
import torch
from conftest import NETS, Project
from onnx import numpy_helper

import granplugin
from granplugin.recipe.callables import resolve

RESIDUAL = NETS.replace(
    "self.depthwise_bn(self.depthwise(x)).relu()",
    "(x + self.depthwise_bn(self.depthwise(x))).relu()",
)
RULES = [
    {"match": "depthwise", "weight": {"per_block": {"size": 3, "axis": 3}}, "skip": "per_tensor"},
]


def written_by_script(project: Project, precision: str) -> bytes:
    """What a script writes of the project's recipe.yaml on the samples that `apply` draws."""
    recipe = granplugin.load(project.folder / "recipe.yaml")
    batches = [
        {name: torch.from_numpy(array) for name, array in batch.items()}
        for batch in granplugin.calibration_batches(recipe)
    ]
    torch.manual_seed(0)  # the network draws its weights; apply's are so
    model = resolve(recipe.recipe.model.callable)().eval()
    model = granplugin.prepare(model, recipe, batches[0])
    config = granplugin.modelopt_config(recipe, model)
    model = mtq.quantize(model, config, lambda model: [model(**batch) for batch in batches])
    path = project.folder / "script.onnx"
    return granplugin.export_onnx(model, batches[0], path, precision=precision).read_bytes()


def applied(folder: Path, bn: str, precision: str) -> Project:
    project = Project(folder)
    project.write("nets.py", RESIDUAL)
    project.arrays["images"] *= 1e4  # too large for float16 in places
    data = {"npz": "data.npz", "inputs": {"image": "images"}}
    project.recipe(
        data={"calibration": {**data, "samples": 40}, "batch_size": 24, "seed": 3},
        defaults="tensorrt@11", rules=[{"match": "*", "bn": bn}, *RULES],
        precision=precision, metrics=None, baselines=None,
    )  # fmt: skip
    done = project.apply()
    assert done.code == 0, done.stderr
    return project


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_with_batch_norms_kept_a_script_writes_the_bytes_that_apply_writes(tmp_path, precision):
    project = applied(tmp_path, "keep", precision)
    assert any(t.name == "depthwise.weight/int8" for t in tensors(project.onnx()))
    assert written_by_script(project, precision) == project.onnx()


def test_with_batch_norms_folded_only_ranges_of_what_the_network_computes_differ_in_last_bits(
    tmp_path,
):
    project = applied(tmp_path, "fold", "fp32")
    ours, theirs = (
        {t.name.removesuffix("/folded"): numpy_helper.to_array(t) for t in tensors(written)}
        for written in (written_by_script(project, "fp32"), project.onnx())
    )
    sites = [name for name in theirs if not name.startswith("val_")]
    assert "depthwise.weight/int8" in sites and "conv.bias" in sites
    for name in sites:
        assert ours[name].dtype == theirs[name].dtype
        if name in ("depthwise.input/scale", "head.input/scale"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6)
        else:
            np.testing.assert_array_equal(ours[name], theirs[name], name)


def tensors(written: bytes) -> list[onnx.TensorProto]:
    return list(onnx.load_from_string(written).graph.initializer)
