"""Files of every producer are audited: made by the library itself where it is installed, else in its
form by hand."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import run_main
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from qdq_files import Net
from qdq_matrix import cases, differing
from qdq_styles import PATTERNS, STYLES
from test_audit import needs_rtx

from granplugin.pipelines.audit import audit

SYMMETRIC = {"ActivationSymmetric": True, "WeightSymmetric": True}
INT8 = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8, "per_channel": True}


class Samples(CalibrationDataReader):
    def __init__(self):
        self.left = [np.random.default_rng(0).standard_normal((2, 8, 8, 8)).astype(np.float32)]

    def get_next(self):
        return {"x": self.left.pop()} if self.left else None


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A float network: a residual block, a pool and a linear layer."""
    net = Net(half=False)
    random = np.random.default_rng(0)

    def conv(x, channels=8):
        weight = random.standard_normal((channels, 8, 3, 3)).astype(np.float32) / 9
        bias = np.ones(channels, np.float32)
        return net.node("Conv", x, net.constant(weight), net.constant(bias), pads=[1] * 4)

    first = net.node("Relu", conv("x"))
    total = net.node("Relu", net.node("Add", conv(first), first))
    pooled = net.node("Flatten", net.node("GlobalAveragePool", total))
    y = net.node("MatMul", pooled, net.constant(random.standard_normal((8, 4)).astype(np.float32)))
    path = tmp_path_factory.mktemp("plain") / "plain.onnx"
    onnx.save(net.model(y, (2, 8, 8, 8), opset=17), path)
    return path


def by_onnxruntime(plain, out, how):
    static = {
        "default": {},
        "symmetric": {**INT8, "extra_options": SYMMETRIC},
        "for TensorRT": {**INT8, "extra_options": {**SYMMETRIC, "QuantizeBias": False}},
        "QOperator": {"quant_format": QuantFormat.QOperator},
        "int16": {"activation_type": QuantType.QInt16, "extra_options": SYMMETRIC},
    }
    if how == "dynamic":
        quantize_dynamic(plain, out)
    else:
        quantize_static(plain, out, Samples(), **static[how])


@pytest.mark.parametrize(
    ("how", "codes"),
    [
        ("default", {"asymmetric", "int32-bias"}),
        ("symmetric", {"int32-bias"}),
        ("QOperator", {"asymmetric", "qoperator"}),
        ("int16", {"unsupported-type", "int32-bias"}),
        ("dynamic", {"integer-operators"}),
    ],
)
def test_what_onnxruntime_writes_is_refused_with_every_way_out(plain, tmp_path, how, codes):
    by_onnxruntime(plain, tmp_path / "model.onnx", how)
    found = audit(tmp_path / "model.onnx", "tensorrt_rtx")
    assert found.exit_code == 2
    assert {finding.code for finding in found.refusals} == codes


@needs_rtx
def test_onnxruntimes_files_for_tensorrt_are_audited(plain, tmp_path):
    by_onnxruntime(plain, tmp_path / "model.onnx", "for TensorRT")
    sites = {site.row.site: site for site in audit(tmp_path / "model.onnx", "tensorrt_rtx").sites}
    convs = {name: each.verdict.kind for name, each in sites.items() if name.startswith("Conv")}
    assert convs and set(convs.values()) == {"honoured"}
    assert not {site.verdict.kind for site in sites.values()} & {"wrong"}


@pytest.mark.parametrize(
    ("form", "code"),
    [(QuantFormat.QOperator, "packed-weights"), (QuantFormat.QDQ, "scale-negative")],
)
def test_4_bit_weights_of_onnxruntime_are_told(tmp_path, form, code):
    net = Net(half=False)
    weight = net.random.standard_normal((64, 32)).astype(np.float32)
    model = net.model(net.node("MatMul", "x", net.constant(weight)), (4, 64))
    quantizer = MatMulNBitsQuantizer(model, block_size=32, is_symmetric=True, quant_format=form)
    quantizer.process()
    quantizer.model.save_model_to_file(str(tmp_path / "model.onnx"))
    found = audit(tmp_path / "model.onnx", "tensorrt_rtx")
    assert [finding.code for finding in found.refusals] == [code]


@needs_rtx
def test_what_modelopt_exports_of_torch_is_honoured(tmp_path):
    import modelopt.torch.quantization as mtq
    import torch
    from torch import nn

    network = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1)).eval()
    sample = torch.randn(1, 8, 8, 8)
    network = mtq.quantize(network, mtq.INT8_DEFAULT_CFG, lambda each: each(sample))
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(network, sample, tmp_path / "model.onnx", dynamo=False)
    done = run_main("audit", tmp_path / "model.onnx")
    assert (done.code, done.stderr) == (0, "")
    assert "4 honoured of 4" in done.stdout


@needs_rtx
def test_verdicts_are_what_the_layers_show_and_the_same_in_every_style():
    """bench/audit_matrix.py has all patterns."""
    for of_pattern in cases(["residual", "c2f", "pad", "resize", "concat half", "attention"]):
        assert [case.faults for case in of_pattern] == [()] * len(STYLES)
        assert not differing(of_pattern), of_pattern[0].pattern


def test_there_are_patterns_for_the_matrix():
    assert len(PATTERNS) >= 60 and len(STYLES) == 4


WRITTEN = Path(__file__).with_name("data") / "producers"
"""What bench/producers.py kept: one network, as each library itself writes it."""


def verdicts_of(path):
    """Site -> verdict; our exporter calls a node node/Op."""
    found = audit(path, "tensorrt_rtx")
    return found, {
        re.sub(r"/\w+(?=\.)", "", site.row.site): site.verdict.kind for site in found.sites
    }


@needs_rtx
def test_modelopts_own_file_has_the_verdicts_that_ours_has():
    _, ours = verdicts_of(WRITTEN / "granplugin.onnx")
    _, theirs = verdicts_of(WRITTEN / "modelopt-int8.onnx")
    # Of the last product modelopt quantizes the input alone, where there is one row.
    both = {site for site in ours.keys() & theirs.keys() if not site.startswith("MatMul")}
    assert {site: theirs[site] for site in both} == {site: ours[site] for site in both}
    assert len(both) == 5 and set(ours.values()) == {"honoured"}


@needs_rtx
@pytest.mark.parametrize(
    ("file", "kinds", "codes"),
    [
        ("modelopt-fp8", {"honoured"}, set()),
        ("NNCF", {"honoured", "wrong"}, {"uint8-zero-point", "qdq-cuts-add"}),
        (
            "Olive-symmetric",
            {"honoured", "degraded"},
            {"qdq-before-activation", "qdq-cuts-add", "qdq-twice", "qdq-unread"},
        ),
    ],
)
def test_what_other_libraries_wrote_is_audited(file, kinds, codes):
    found, verdicts = verdicts_of(WRITTEN / f"{file}.onnx")
    assert set(verdicts.values()) == kinds
    assert {finding.code for finding in found.findings} == codes and not found.refusals
