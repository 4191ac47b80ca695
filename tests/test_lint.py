"""Lint: each finding is told where it is so, and what it says to write instead ends it."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import onnx
import pytest
from conftest import run_main
from qdq_files import Net, inspected, residual
from test_audit import needs_rtx

from granplugin.audits.lint import CODES
from granplugin.audits.lint_pages import page
from granplugin.capabilities import Cell
from granplugin.capabilities.networks import network
from granplugin.pipelines.audit import audit
from granplugin.report.render import terminal
from granplugin.report.schema.run import LintFinding
from granplugin.report.view.elements import Section
from granplugin.report.view.findings import findings_items


def findings(model, folder, library="tensorrt_rtx"):
    """Code -> findings, of an engine that is built, or for tensorrt of one that honours all."""
    path, layers = folder / "model.onnx", None
    onnx.save(model, path)
    if library == "tensorrt":
        layers = folder / "layers.json"
        layers.write_text(inspected(model))
    found = {}
    for finding in audit(path, library, layers=layers).findings:
        found.setdefault(finding.code, []).append(finding)
    return found


def one_conv(given, **weight):
    """One convolution of what `given` makes of the input."""
    net = Net()
    return net.model(net.conv(given(net), **weight))


def scalar(net):
    return net.qdq("x")


def grouped(groups):
    net = Net()
    return net.model(net.node("Relu", net.conv(net.qdq("x"), group=groups)))


def two_readers(*scales):
    net = Net()
    first, second = (net.conv(net.qdq("x", scale)) for scale in scales)
    return net.model(net.node("Mul", first, second))


@needs_rtx
@pytest.mark.parametrize(
    ("code", "costly", "instead", "advice"),
    [
        ("fp32-output", one_conv(scalar), one_conv(scalar, axis=None), "weight: per_tensor"),
        (
            "weight-dequantized-at-run-time",
            one_conv(lambda net: "x"),
            one_conv(scalar),
            "quantize its input too",
        ),
        (
            "weight-dequantized-at-run-time",
            one_conv(scalar, axis=1),
            one_conv(scalar, axis=0),
            "weight: per_channel",
        ),
        (
            "scale-shape-1",
            one_conv(lambda net: net.qdq("x", [0.03], axis=0)),
            one_conv(scalar),
            "as a scalar",
        ),
        ("padded-depthwise", grouped(32), grouped(2), "format: float"),
        ("qdq-cuts-add", residual("product"), residual("shared"), "skip"),
        ("two-scales", two_readers(0.03, 0.04), two_readers(0.03, 0.03), "one range"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_written_instead_ends_the_finding(tmp_path, code, costly, instead, advice):
    found = findings(costly, tmp_path)
    assert found[code] and all(advice in each.instead for each in found[code])
    assert code not in findings(instead, tmp_path)


@needs_rtx
def test_costs_are_the_bytes_of_the_plan(tmp_path):
    values = 32 * 8 * 8
    (fp32,) = findings(one_conv(scalar), tmp_path)["fp32-output"]
    assert fp32.bytes == 4 * values  # 4 instead of 2 bytes, written and read
    (padded,) = findings(grouped(32), tmp_path)["padded-depthwise"]
    # 3 of 4 channels: zeros that are read, written and read again; and their weights.
    assert padded.bytes == 3 * 3 * values + 3 * 32 * 9
    (weight,) = findings(one_conv(lambda net: "x"), tmp_path)["weight-dequantized-at-run-time"]
    assert weight.bytes == 2 * 2 * 32 * 32 * 9


@needs_rtx
@pytest.mark.parametrize("scales", ["weight", "input"])
def test_scales_that_fit_no_tensor_are_wrong_and_no_success(tmp_path, scales):
    said = {"weight": "per_channel", "input": "per_tensor", scales: "per_block(in)"}
    path = tmp_path / "model.onnx"
    onnx.save(network(Cell("matmul_2d", "int8", size=16, graph="fp16", **said)), path)
    found = audit(path, "tensorrt_rtx")
    assert {site.verdict.kind for site in found.sites} == {"wrong"}
    assert "scale-broadcast" in {finding.code for finding in found.findings}
    assert found.exit_code == 3


@pytest.mark.parametrize(
    ("library", "axis", "pays"),
    [
        ("tensorrt", 0, True),
        ("tensorrt", None, True),
        pytest.param("tensorrt_rtx", 0, True, marks=needs_rtx),
        pytest.param("tensorrt_rtx", None, False, marks=needs_rtx),
    ],
)
def test_a_float_skip_is_told_where_a_quantized_one_pays(tmp_path, library, axis, pays):
    """On TensorRT always, on TensorRT-RTX behind a weight with several scales."""
    told = findings(residual("float", axis), tmp_path, library).get("float-residual", [])
    assert [finding.instead for finding in told] == ["write skip: per_tensor"] * pays
    assert "float-residual" not in findings(residual("shared", axis), tmp_path, library)


@pytest.mark.parametrize("said", [{}, {"output_dtype": onnx.TensorProto.FLOAT16}])
def test_fp32_scales_in_a_half_graph_are_told_unless_the_output_is_half(tmp_path, said):
    net = Net()
    x = net.node("QuantizeLinear", "x", net.constant(np.float32(0.1)), net.constant(np.int8(0)))
    x = net.node("DequantizeLinear", x, *net.nodes[-1].input[1:], **said)
    found = findings(net.model(net.conv(x), opset=23), tmp_path, "tensorrt")
    assert ("fp32-scale" in found) == (not said)


def test_findings_alike_are_one_paragraph_of_80_columns_with_the_layers_counted(tmp_path):
    net = Net()
    x = "x"
    for _ in range(8):
        x = net.conv(net.qdq(x, zero=np.uint8(0)))
    found = findings(net.model(x), tmp_path, "tensorrt")["uint8-zero-point"]
    told = findings_items([LintFinding(**vars(each)) for each in found])
    lines = terminal.render(Section("", tuple(told))).splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) <= 5
    assert lines[0].startswith("uint8-zero-point (8 layers")
    assert lines[-1].endswith("and 5 more")


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_a_page_of_its_own(code):
    told = page(code)
    lines = told.splitlines()
    assert 12 <= len(lines) <= 40 and max(map(len, lines)) <= 80
    heads = [line for line in lines if line.isupper() and not line.startswith(" ")]
    assert heads == ["WHAT", "WHY IT MATTERS", "PICTURE", "THE WAY OUT"]


def test_there_is_no_page_without_a_code():
    pages = {
        file.name.removesuffix(".txt") for file in (files("granplugin.audits") / "pages").iterdir()
    }
    assert pages == set(CODES)


def test_a_page_is_printed_and_a_code_that_is_none_is_told():
    done = run_main("audit", "--explain", "int32-bias")
    assert (done.code, done.stderr) == (0, "") and "QuantizeBias" in done.stdout
    done = run_main("audit", "--explain", "int32-bais")
    assert (done.code, done.stdout) == (2, "") and "did you mean 'int32-bias'?" in done.stderr
    assert run_main("audit").code == 2


def test_every_code_is_a_word_of_its_own():
    assert all(code.replace("-", "").isalnum() and code == code.lower() for code in CODES)
