"""Scales of run time: the oracle, ONNX Runtime and modelopt agree, sample by sample."""

from __future__ import annotations

import modelopt.torch.quantization as mtq
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lowering import KINDS, LINEAR3, LINEAR4, RNG, asking, build, inputs_of
from test_qdq import run

import granplugin
from granplugin import backends
from granplugin.graph.read.agreement import agreement
from granplugin.graph.read.verify_lowered import run_time_scales
from granplugin.modelopt_bridge import fake_quantize, sites_of
from granplugin.quant.formats import FORMATS
from granplugin.quant.formats import fake_quantize as oracle


def granularities(kind):
    return ["per_tensor", "per_token"] if kind in (LINEAR3, LINEAR4) else ["per_tensor"]


CASES = [(kind, granularity) for kind in KINDS for granularity in granularities(kind)]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(CASES),
    st.sampled_from(["int8", "fp8"]),
    st.integers(0, 99),
    st.integers(1, 4),
    st.sampled_from([1, 1e-3, 1e-9, 1e9]),
)
def test_oracle_onnxruntime_and_modelopt_agree(tmp_path_factory, case, fmt, seed, batch, size):
    kind, granularity = case
    path = tmp_path_factory.mktemp("case") / "model.onnx"
    x = inputs_of(RNG(seed), (batch, *kind.shape[1:])) * np.float32(size)
    rows, asked = asking(kind.rows("layer", granularity, fmt, weight_fmt=fmt), "dynamic")
    w, _, amax = build(path, kind, rows, asked, x, seed)
    found = agreement(path, rows, amax, {"x": x}, fake_quantize, asked, {"layer": w})
    assert found.modelopt_worst_steps <= 1


@pytest.mark.parametrize(("kind", "granularity"), CASES, ids=str)
def test_modelopts_scales_are_each_samples_own_too(kind, granularity):
    (row, _), _ = asking(kind.rows("layer", granularity), "dynamic")
    x = inputs_of(RNG(3), (4, *kind.shape[1:]))
    together = fake_quantize(x, row, None)
    alone = [fake_quantize(x[i : i + 1], row, None) for i in range(4)]
    assert together.tobytes() == np.concatenate(alone).tobytes()
    scale, block = run_time_scales(row, x)
    expected = oracle(x, scale, block, FORMATS["int8"])
    assert np.abs(together - expected).max() <= scale.max()


def test_openvino_multiplies_them_in_int8(tmp_path):
    pytest.importorskip("openvino")
    openvino = backends.backend_of("openvino")
    for number, (kind, granularity) in enumerate(CASES):
        path, x = tmp_path / f"{number}.onnx", inputs_of(RNG(0), (2, *kind.shape[1:]))
        rows, asked = asking(kind.rows("layer", granularity), "dynamic")
        if "Transpose" in kind.type and kind.groups > 1:
            continue
        build(path, kind, rows, asked, x)
        engine = openvino.build(path, tmp_path / str(number))
        (found,) = openvino.layers(engine)
        assert found.precision == "int8", (kind, granularity)
        with openvino.open(engine) as runner:
            y = runner.run({"x": x})["y"]
        (expected,) = run(path, {"x": x})
        assert np.abs(y - expected).max() <= 1e-5 * np.abs(expected).max()


class Mlp(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)

    def forward(self, x):
        return self.down(self.up(x).relu())


RECIPE = """
version: 1
model: {callable: "some.module:net"}
data: {calibration: {callable: "some.module:data"}}
rules:
  - {match: up, input: {per_token: {dynamic: true}}}
  - {match: down, input: {per_tensor: {dynamic: true}}}
"""


def test_a_script_quantizes_and_exports_them_without_calibration_data(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    torch.manual_seed(0)
    x = torch.from_numpy(inputs_of(RNG(0), (4, 6, 8)))
    model = granplugin.prepare(Mlp().eval(), tmp_path / "r.yaml", x[:2])
    model = mtq.quantize(model, granplugin.modelopt_config(tmp_path / "r.yaml", model))
    assert [site["dynamic"] for site in sites_of(model) if site["role"] == "input"] == [True] * 2
    path = granplugin.export_onnx(model, x[:2], tmp_path / "m.onnx")
    (y,) = run(path, {"x": x.numpy()})
    with torch.no_grad():
        expected = model(x).numpy()
        alone = torch.cat([model(x[i : i + 1]) for i in range(4)]).numpy()
    assert np.abs(y - expected).max() <= 1e-4 * np.abs(expected).max()
    assert np.allclose(alone, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
