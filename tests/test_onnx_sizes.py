"""Axes that an ONNX file leaves open: kept open where the recipe says so, and told where data need it."""

from __future__ import annotations

import onnx
import pytest
import yaml
from conftest import run_main
from onnx import parser

NET = """<ir_version: 10, opset_import: ["": 21]>
net (float[n, 3, h, w] image) => (float[n, 4] y)
<float[4, 3, 3, 3] weight = {WEIGHT}> {
    conv = Conv<pads: ints = [1, 1, 1, 1]>(image, weight)
    relu = Relu(conv)
    pooled = GlobalAveragePool(relu)
    y = Flatten(pooled)
}""".replace("WEIGHT", ", ".join(f"0.{at % 97}" for at in range(108)))
DATA = """
import numpy as np


def images():
    random = np.random.default_rng(0)
    for height, width in ((8, 12), (16, 8)):
        yield {"image": random.standard_normal((2, 3, height, width), np.float32)}
"""
SHAPES = {"image": {"min": [1, 3, 8, 8], "opt": [2, 3, 16, 12], "max": [2, 3, 16, 16]}}


def apply(dynamic, **more):
    onnx.save(parser.parse_model(NET), "net.onnx")
    with open("data.py", "w") as file:
        file.write(DATA)
    recipe = {
        "version": 1,
        "name": "r",
        "model": {"onnx": "net.onnx", **({"dynamic": dynamic} if dynamic else {})},
        "data": {"calibration": {"callable": "data.py:images"}, "batch_size": 2},
        "metrics": ["sqnr_db"],
        "engines": ["openvino"],
        "latency": {"rounds": 6, "seconds": 0.001},
        **more,
    }
    with open("r.yaml", "w") as file:
        yaml.safe_dump(recipe, file)
    return run_main("apply", "r.yaml", "--out", "run")


def test_axes_that_are_dynamic_stay_open_and_an_engine_is_built_for_their_sizes(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    done = apply({"image": {2: "height", 3: "width"}}, build={"shapes": SHAPES})
    assert done.code == 0, done.stderr
    (image,) = onnx.load("run/variants/r/model.onnx").graph.input
    dims = image.type.tensor_type.shape.dim
    assert [each.dim_param or each.dim_value for each in dims] == ["batch", 3, "height", "width"]


@pytest.mark.parametrize(
    ("dynamic", "said"),
    [
        (
            {},
            "the data have 8 to 16 on axis 2 of image and 8 to 12 on axis 3 of image; to keep that "
            "open in the files that are written, write dynamic: {image: {2: h, 3: w}} here",
        ),
        ({"image": {1: "c"}}, "axis 1 of image is fixed to 3, and model.dynamic names it"),
        (
            {"picture": {1: "c"}},
            "it has no input 'picture', which model.dynamic names; it has image",
        ),
    ],
)
def test_what_the_file_or_the_recipe_keeps_fixed_is_told(tmp_path, monkeypatch, dynamic, said):
    monkeypatch.chdir(tmp_path)
    done = apply(dynamic)
    assert done.code == 2 and said in done.stderr and "r.yaml:" in done.stderr
