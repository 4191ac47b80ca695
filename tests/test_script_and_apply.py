"""What a script writes and what `apply` writes, from the same recipe and samples."""

from __future__ import annotations

from pathlib import Path

import modelopt.torch.quantization as mtq
import onnx
import pytest
import torch
from conftest import NETS, Project

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


@pytest.mark.parametrize(
    ("bn", "precision"), [("keep", "fp16"), ("keep", "bf16"), ("fold", "fp32"), ("fold", "fp16")]
)
def test_a_script_writes_the_bytes_that_apply_writes(bn, precision, tmp_path):
    project = applied(tmp_path, bn, precision)
    names = [each.name for each in onnx.load_from_string(project.onnx()).graph.initializer]
    assert "depthwise.weight/int8" in names
    assert ("conv.bias" in names) == (bn == "fold")
    assert written_by_script(project, precision) == project.onnx()
