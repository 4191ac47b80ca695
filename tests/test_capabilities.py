"""Capabilities: the tables agree with what was observed, and promises follow from them."""

from __future__ import annotations

import ast
import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_values import layer_of

from granplugin.backends import backend_of
from granplugin.backends.nvidia.builder import Builder
from granplugin.capabilities import (
    KINDS,
    Book,
    Cell,
    Table,
    backends,
    cell_promise,
    listing,
    load_table,
)
from granplugin.capabilities import probe as probing
from granplugin.capabilities.cells import cells
from granplugin.capabilities.networks import network
from granplugin.capabilities.probe import probe
from granplugin.capabilities.promise import scales_of
from granplugin.capabilities.table import OPS, parse
from granplugin.errors import EngineError
from granplugin.graph.edit.qdq import _layout
from granplugin.planning.rows import FloatRow, QuantizedRow, Row
from granplugin.quant.granularity import DoesNotApply, parse_granularity
from granplugin.quant.layers import Layer

RTX = load_table("tensorrt_rtx", "1.7.1.116")


def layer(name, type, given, output, weight=None, groups=1, traits=frozenset()):
    shapes = {"weight": weight, "input": given, "output": output}
    return layer_of(name, type, shapes, groups=groups, traits=traits)


IMAGE = (1, 64, 16, 16)
CONV = layer("conv", "Conv2d", IMAGE, IMAGE, (64, 64, 3, 3))
DEPTHWISE = layer(
    "dw", "Conv2d", IMAGE, IMAGE, (64, 1, 3, 3), groups=64, traits=frozenset({"depthwise"})
)
LINEAR = layer("fc", "Linear", (1, 8, 64), (1, 8, 64), (64, 64))
GEMM = layer("head", "Linear", (1, 64), (1, 64), (64, 64))
POOL = layer("pool", "MaxPool2d", IMAGE, (1, 64, 8, 8))


def row(layer: Layer, role: str, granularity, format: str = "int8") -> Row:
    facts = dict(at=layer.site(role), type=layer.type, rule="r", where="r.yaml:1:1")
    if granularity == "float":
        return FloatRow(**facts)
    found = QuantizedRow(**facts, format=format, granularity=parse_granularity(granularity))
    assert found.block  # DoesNotApply where it has none
    return found


INT8 = ("int8", "int8")


def rows(layer: Layer, weight, its_input, formats=INT8) -> list[Row]:
    return [
        row(layer, "weight", weight, formats[0]),
        row(layer, "input", its_input, formats[1]),
    ]


def promises(table: Table, layer: Layer, of_layer, targets=()):
    """Operand -> promise, for the quantized ones of a layer's rows."""
    return Book(table, targets=targets).of_layer(layer, [r for r in of_layer if r.quantized])


def kinds(layer: Layer, weight, its_input, backend="tensorrt_rtx", formats=INT8):
    promised = promises(load_table(backend), layer, rows(layer, weight, its_input, formats))
    return {role: promise.kind for role, promise in promised.items()}


# The networks of rtx_matrix.csv: op -> (op of the table, weight and input shapes, axes by word).
IMAGE, IMAGE_AXES = (
    (4, 64, 16, 16),
    {0: "batch", 1: "channel", 2: "position", 3: "space"},
)
CONV_AXES, GEMM_AXES = {0: "out", 1: "in", 2: "kernel"}, {0: "out", 1: "in"}
MATMUL_AXES = {1: "out", 0: "in"}
MATRIX_OPS = {
    "conv": ("conv", (64, 64, 3, 3), CONV_AXES, IMAGE, IMAGE_AXES),
    "conv1x1": ("conv", (64, 64, 1, 1), CONV_AXES, IMAGE, IMAGE_AXES),
    "dwconv": ("depthwise", (64, 1, 3, 3), CONV_AXES, IMAGE, IMAGE_AXES),
    "gconv": ("grouped", (64, 32, 3, 3), CONV_AXES, IMAGE, IMAGE_AXES),
    "convt": ("transposed", (64, 64, 3, 3), {**CONV_AXES, 0: "in", 1: "out"}, IMAGE, IMAGE_AXES),
    "matmul": ("matmul_2d", (64, 64), MATMUL_AXES, (4, 64), {0: "batch", 1: "channel"}),
    "matmul3": (
        "matmul", (64, 64), MATMUL_AXES, (4, 8, 64), {0: "batch", 1: "token", 2: "channel"},
    ),
    "gemm": ("gemm", (64, 64), GEMM_AXES, (4, 64), {0: "batch", 1: "channel"}),
}  # fmt: skip
VECTOR = {
    "out": "per_channel", "channel": "per_channel", "in": "per_channel(in)",
    "kernel": "per_channel(kernel)", "batch": "per_batch", "token": "per_token",
    "position": "per_position",
}  # fmt: skip
CUT = {"out": "out", "in": "in", "kernel": "kernel", "channel": "in", "space": "space"}


def word(said: str, shape: tuple[int, ...], axes: dict[int, str]) -> tuple[str, int | None]:
    """The matrix's `('block', 1, 16)` -> the table's word, and the block size."""
    plain = {"": "float", "tensor": "per_tensor", "tensor1": "per_tensor(1-D)"}
    if said in plain:
        return plain[said], None
    if said == "elem":
        return "per_element", None
    kind, axis, *size = ast.literal_eval(said)
    if kind == "axis":
        return ("per_tensor(1-D)" if shape[axis] == 1 else VECTOR[axes[axis]]), None
    size = min(size[0], shape[axis])
    if size == 1:
        return "per_element", None
    others = [n for n, length in enumerate(shape) if n != axis and length > 1]
    if size == shape[axis] and len(others) == 1:
        # One block is the whole axis of a matrix: one scale along the other.
        (axis,) = others
        return VECTOR[axes[axis]], None
    if size == shape[axis] and axes[axis] == "channel" and len(shape) == 3:
        return "per_row", None
    return f"per_block({CUT[axes[axis]]})", size


def matrix_cell(line: dict[str, str]) -> Cell:
    op, weight_shape, weight_axes, input_shape, input_axes = MATRIX_OPS[line["op"]]
    weight, weight_size = word(line["weight_gran"], weight_shape, weight_axes)
    its_input, input_size = word(line["act_gran"], input_shape, input_axes)
    size = weight_size or input_size
    return Cell(
        op,
        line["dtype"],
        weight,
        its_input,
        size=size,
        graph=line["graph"],
        stored=False,
    )


OBSERVED = {
    "quantized": "quantized",
    "float": "float",
    "fused-dequant": "fused-dequant",
    "parse-rejected": "error",
    "build-failed": "error",
    "MISCOMPILE?": "miscompile",
}


def matrix() -> list[dict[str, str]]:
    path = Path(__file__).parent / "data" / "rtx_matrix.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_rtx_table_agrees_with_every_observed_build():
    lines = matrix()
    found = [(line, RTX.rule(matrix_cell(line)).engine) for line in lines]
    wrong = [(line, said) for line, said in found if said != OBSERVED[line["status"]]]
    for line, said in wrong:
        print(f"{said} instead of {line['status']}: {line}")
    assert (len(lines), len(wrong)) == (530, 0)


def test_observed_errors_and_miscompiles_are_refused_and_nothing_else_is():
    for line in matrix():
        promise = cell_promise(RTX, matrix_cell(line))
        failed = "SUSPECT_MISCOMPILE" in line["lint_or_error"] or line["status"] in (
            "parse-rejected",
            "build-failed",
        )
        assert (promise.kind == "refused") == failed, line
        assert (promise.kind == "native") >= (line["status"] == "quantized"), line


@pytest.mark.parametrize("backend", backends())
def test_the_defaults_of_tensorrt_are_native_everywhere(backend):
    for layer in (CONV, DEPTHWISE, LINEAR, GEMM):
        assert kinds(layer, "per_channel", "per_tensor", backend) == {
            "weight": "native",
            "input": "native",
        }


@pytest.mark.parametrize(
    "layer, weight, its_input, weight_kind, input_kind",
    [
        (LINEAR, "per_channel", "per_token", "native", "lowered"),
        (DEPTHWISE, "per_channel", "per_channel", "native", "lowered"),
        (LINEAR, "per_channel", {"per_token": {"dynamic": True}}, "native", "lowered"),
        (GEMM, "per_channel", {"per_token": {"dynamic": True}}, "native", "lowered"),
        (CONV, "per_tensor", {"per_tensor": {"dynamic": True}}, "native", "lowered"),
        (CONV, "per_tensor", "per_channel", "native", "lowered"),
        (LINEAR, "per_channel", "per_channel", "native", "lowered"),
        (CONV, {"per_channel": {"axis": 1}}, "per_tensor", "simulated", "simulated"),
        (CONV, {"per_channel": {"axis": 1}}, "per_channel", "simulated", "simulated"),
        (LINEAR, {"per_block": {"size": 16}}, "per_tensor", "refused", "refused"),
        (LINEAR, "per_channel", {"per_block": {"size": 16}}, "simulated", "simulated"),
        (CONV, "per_channel", "per_element", "simulated", "simulated"),
        (CONV, "per_element", "per_tensor", "refused", "refused"),
    ],
)
def test_what_tensorrt_rtx_promises(layer, weight, its_input, weight_kind, input_kind):
    assert kinds(layer, weight, its_input) == {
        "weight": weight_kind,
        "input": input_kind,
    }


def test_a_role_that_is_native_alone_names_the_other_as_its_cause():
    promised = promises(RTX, LINEAR, rows(LINEAR, {"per_block": {"size": 16}}, "per_tensor"))
    assert (promised["weight"].cause, promised["input"].cause) == ("weight", "weight")
    assert promised["input"].reason == f"because of its weight: {promised['weight'].reason}"


def test_half_a_convolution_runs_in_float_and_weights_alone_are_native_in_linears():
    int4 = ("int4", "int4")
    block = {"per_block": {"size": 32}}
    assert kinds(CONV, "per_channel", "float") == {"weight": "simulated"}
    assert kinds(CONV, "float", "per_tensor") == {"input": "simulated"}
    assert kinds(LINEAR, "per_channel", "float") == {"weight": "native"}
    assert kinds(LINEAR, block, "float", formats=int4) == {"weight": "native"}


def test_mixed_formats_blame_both_sides():
    mixed = rows(CONV, "per_channel", "per_tensor", ("fp8", "int8"))
    found = {role: (p.kind, p.cause) for role, p in promises(RTX, CONV, mixed).items()}
    assert found == {"weight": ("refused", "weight"), "input": ("refused", "input")}


def test_targets_without_a_format_refuse_it():
    fp8 = rows(CONV, "per_channel", "per_tensor", ("fp8", "fp8"))
    on = {
        targets: promises(RTX, CONV, fp8, targets=targets)["weight"].kind
        for targets in ((), ("sm89",), ("sm86", "sm89"))
    }
    assert on == {(): "native", ("sm89",): "native", ("sm86", "sm89"): "refused"}


def test_a_pool_and_an_output_have_promises_of_their_own():
    assert promises(RTX, POOL, [row(POOL, "input", "per_tensor")])["input"].kind == "native"
    assert promises(RTX, CONV, [row(CONV, "output", "per_element")])["output"].kind == "simulated"


@pytest.mark.parametrize("size, kind", [(64, "native"), (128, "native"), (16, "refused")])
def test_tensorrt_documents_int4_weights_in_blocks_of_64_and_128(size, kind):
    wide = layer("fc", "Linear", (1, 8, 256), (1, 8, 64), (64, 256))
    weight = {"per_block": {"size": size}}
    assert kinds(wide, weight, "float", "tensorrt", ("int4", "int4")) == {"weight": kind}


GRANULARITIES = st.sampled_from(
    ["per_tensor", "per_channel", "per_token", "per_element"]
    + [{word: {"dynamic": True}} for word in ("per_tensor", "per_token")]
    + [{"per_channel": {"axis": axis}} for axis in (1, 2, 3)]
    + [{"per_block": {"size": 16, "axis": axis}} for axis in (0, 1, 2, -1)]
    + [{"per_block": {"shape": shape}} for shape in ([1, 16, 3, 3], [8, 8], [1, 4, 64], [16, 1])]
)


def sites(layer: Layer, role: str) -> st.SearchStrategy[Row | None]:
    def make(granularity) -> Row | None:
        try:
            return row(layer, role, granularity)
        except DoesNotApply:
            return None

    return GRANULARITIES.map(make)


@given(
    st.data(),
    st.sampled_from([CONV, DEPTHWISE, LINEAR, GEMM, POOL]),
    st.sampled_from([*backends()]),
)
def test_every_row_of_every_layer_has_a_promise_with_a_reason_and_a_source(data, layer, backend):
    drawn = [data.draw(sites(layer, role)) for role in layer.operands]
    of_layer = [each for each in drawn if each is not None]
    promised = promises(load_table(backend), layer, of_layer)
    assert promised.keys() == {each.operand for each in of_layer}
    for promise in promised.values():
        assert promise.kind in KINDS and promise.reason and promise.source
        assert (promise.kind == "native") == (promise.cause is None)
        assert (promise.kind == "lowered") == (promise.lowering is not None)


@given(sites(CONV, "weight") | sites(LINEAR, "weight") | sites(DEPTHWISE, "weight"))
def test_a_weights_scales_are_named_as_they_are_written(drawn):
    if drawn is None:
        return
    _, attributes, _ = _layout(drawn, np.ones(drawn.grid, np.float32))
    said, size = scales_of(drawn)
    axis = attributes.get("axis")
    if axis is None:
        assert said == "per_tensor"
    elif attributes.get("block_size") == 1:
        assert said == "per_element"
    else:
        inside = "kernel" if axis > 1 else ("out", "in")[axis]
        kind = "per_block" if "block_size" in attributes else "per_channel"
        assert said.partition("(")[0] == kind and size == attributes.get("block_size")
        assert (
            (said == "per_channel") if (kind, inside) == ("per_channel", "out") else inside in said
        )


@pytest.mark.parametrize("backend", [*backends()])
def test_a_product_of_two_activations_is_promised_where_both_have_one_scale(backend):
    shapes = {"input": (1, 8, 64), "other": (1, 64, 8), "output": (1, 8, 8)}
    matmul = layer_of("scores", "MatMul", shapes)
    table = load_table(backend)
    promised = promises(
        table, matmul, [row(matmul, each, "per_tensor") for each in ("input", "other")]
    )
    assert {each: promise.kind for each, promise in promised.items()} == {
        "input": "native", "other": "native",
    }  # fmt: skip
    cut = [row(matmul, "input", "per_tensor"), row(matmul, "other", {"per_channel": {"axis": 1}})]
    if backend != "onnxruntime":  # which computes every Q/DQ
        assert promises(table, matmul, cut)["other"].kind != "native", "scales along the sum"


def test_versions_find_the_nearest_table_that_is_not_newer():
    found = {
        v: load_table("tensorrt", v).version for v in ("10.3", "10.16.1", "11.4", "12.0", "8.6")
    }
    assert found == {
        "10.3": "10",
        "10.16.1": "10",
        "11.4": "11",
        "12.0": "11",
        "8.6": "10",
    }
    assert load_table("tensorrt").note is None and load_table("tensorrt", "11.4").note is None
    assert "12.0 is not known" in load_table("tensorrt", "12.0").note
    assert RTX.note is None
    assert "1.8.0 is not known" in load_table("tensorrt_rtx", "1.8.0").note
    with pytest.raises(EngineError, match="did you mean 'tensorrt'"):
        load_table("tensort")


def test_the_table_is_asked_once_for_each_case_of_ten_thousand_rows():
    kinds_of = (CONV, DEPTHWISE, LINEAR, GEMM)
    layers = [
        replace(kind, name=name, sites=tuple(replace(site, place=name) for site in kind.sites))
        for n in range(1250)
        for kind in kinds_of
        for name in [f"{n}.{kind.name}"]
    ]
    of_one, asked = ("per_channel", "per_tensor"), []

    class Asked(Table):
        def rule(self, cell: Cell):
            asked.append(cell)
            return super().rule(cell)

    book = Book(Asked(RTX.backend, RTX.version, RTX.rules))
    told = [p for layer in layers for p in book.of_layer(layer, rows(layer, *of_one)).values()]
    assert Counter(p.kind for p in told) == {"native": 10_000}
    assert len(asked) == len(kinds_of)


LAST = "  - {engine: undocumented, why: nothing is known}\n"
HEAD = 'backend: x\nversion: "1"\nsource: seen\nrules:\n'


@pytest.mark.parametrize(
    "rule, message",
    [
        ("{op: cnv, engine: float, why: so}", r"rules.1.op"),
        ("{op: conv, engine: flaot, why: so}", r"rules.1.engine"),
        ("{op: conv, weigth: float, engine: float, why: so}", r"rules.1.weigth"),
        ("{op: [conv, conv], engine: float, why: so}", r"each of them once"),
        ("{op: [], engine: float, why: so}", r"not empty"),
        ("{op: conv, engine: float}", r"rules.1.why"),
        ("{op: conv, engine: float, why: A sentence.}", r"rules.1.why"),
        (
            "{op: conv, engine: quantized, lowering: fold, why: so}",
            r"needs no lowering",
        ),
        ("{engine: float, why: so}", r"rule 1 matches everything"),
        ("{op: conv", r"not YAML"),
    ],
)
def test_a_wrong_rule_is_named(rule, message):
    with pytest.raises(EngineError, match=message):
        parse(HEAD + f"  - {rule}\n" + LAST, "x-1.yaml")


def test_the_last_rule_has_to_match_everything():
    with pytest.raises(EngineError, match="the last rule must match everything"):
        parse(HEAD + "  - {op: conv, engine: float, why: so}\n", "x-1.yaml")
    assert parse(HEAD + LAST, "x-1.yaml").rule(Cell("conv", "int8")).source == "seen"


def test_a_listing_has_every_cell_once_and_can_be_json():
    lines = listing(RTX)
    cases = Counter(
        Cell(
            line.op,
            fmt,
            line.weight,
            line.input,
            line.output,
            line.size,
            graph,
            (),
            line.stored,
            line.other,
        )
        for line in lines
        for fmt in line.formats
        for graph in line.graphs
    )
    assert cases == Counter(cells(OPS))
    assert lines[0].promise.kind == "native"


def test_every_cell_has_a_network_that_onnx_accepts():
    for cell in cells(OPS, ("fp16",)):
        onnx.checker.check_model(network(cell), full_check=True)


# `capabilities --probe` tries all of their cells; a build takes a tenth of a second.


def test_the_probe_finds_what_the_rtx_table_says_of_matrices_and_pools(monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(probing, "cells", lambda *asked: cells(*asked)[::2])
    probed = probe("tensorrt_rtx", ("matmul_2d", "maxpool"))
    assert [each for each in probed if each.differs] == []
    assert {each.observed for each in probed} == {
        "quantized", "fused-dequant", "float", "error", "miscompile",
    }  # fmt: skip


def test_the_probe_finds_what_the_openvino_table_says_of_linear_layers(monkeypatch):
    def most(*asked):
        """Other formats than int8 are float there, whatever their granularity."""
        found = cells(*asked)
        others = [cell for cell in found if cell.format != "int8"]
        return [cell for cell in found if cell.format == "int8" or cell in others[::4]]

    monkeypatch.setattr(probing, "cells", most)
    probed = probe("openvino", ("gemm",), ("fp32",))
    assert [each for each in probed if each.differs] == []
    assert {each.observed for each in probed} == {
        "quantized", "fused-dequant", "float", "error", "miscompile",
    }  # fmt: skip


def test_a_hang_or_a_crash_costs_one_cell(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    model = network(Cell("gemm", "int8", "per_channel", "per_tensor"))
    with Builder("tensorrt_rtx", tmp_path, seconds=0) as builder:
        with pytest.raises(EngineError, match="took more than 0 s"):
            builder.build(model)
        builder.seconds = 60
        assert builder.build(model).kernels
        builder.process.kill()
        builder.process.wait()
        with pytest.raises(EngineError, match=r"crashed \(SIGKILL\)"):
            builder.build(model)
        assert builder.build(model).kernels


def test_an_engine_that_is_unknown_or_not_installed_cannot_be_probed(monkeypatch):
    with pytest.raises(EngineError, match="did you mean 'openvino'"):
        probe("openvno")
    module = backend_of("tensorrt")
    monkeypatch.setattr(module, "unavailable", lambda: "tensorrt is not installed; pip install it")
    with pytest.raises(EngineError, match="tensorrt is not installed"):
        probe("tensorrt")
