"""granplugin audit: any Q/DQ ONNX is read as the granularities it has, and judged by the plan."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from conftest import run_main, too_wide
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from qdq_files import Net, inspected, residual
from test_audit import needs_rtx
from test_qdq import edit, marker, model_of, node_named, row_of

import granplugin
from granplugin.audits.audit_file import notes_of
from granplugin.errors import EngineError, Unhonoured
from granplugin.graph.edit.qdq import insert
from granplugin.graph.files import save
from granplugin.graph.read.loading import read_model
from granplugin.graph.read.quantized_graph import read_quantized
from granplugin.graph.read.verify import read_back
from granplugin.pipelines.audit import audit
from granplugin.quant.granularity import grid, parse_granularity
from granplugin.quant.site import Site
from granplugin.report.schema.verbs import AuditedSite
from granplugin.report.view.audit import sites_table

PLANS = Path(__file__).parent / "data" / "engine_plans"


def written(model, folder, name="model.onnx"):
    onnx.save(model, folder / name)
    return folder / name


def said(path):
    """(op type, role) -> what is found."""
    found = read_quantized(read_model(path), path)
    return {
        (o.op_type, o.row.operand): f"{o.row.format} {o.row.granularity}" for o in found.operands
    }


# -- what is found in files of others ----------------------------------------------------------


def linear(weight_of, op="MatMul", **attributes):
    net = Net(half=False)
    return net.model(net.node(op, net.qdq("x"), weight_of(net), **attributes), ("n", 64))


def blocked_by_modelopt(net):
    """A weight whose blocks modelopt makes the rows of a matrix, and back."""
    values = net.random.standard_normal((32, 64)).astype(np.float32)
    rows = net.node("Reshape", net.constant(values), net.constant(np.array([128, 16])))
    scale = np.abs(values.reshape(128, 16)).max(1) / 127
    back = net.node("Reshape", net.qdq(rows, scale, axis=0), net.constant(np.array([32, 64])))
    return net.node("Transpose", back, perm=[1, 0])


def in_constant_nodes(net):
    held = net.random.standard_normal((64, 32)).astype(np.float32)
    tensors = [held, np.float32(0.02), np.int8(0)]
    names = [net.node("Constant", value=numpy_helper.from_array(np.asarray(t))) for t in tensors]
    q = net.node("QuantizeLinear", *names)
    return net.node("DequantizeLinear", q, *names[1:])


def custom_fp8(net):
    scale = net.constant(np.float32(0.01))
    values = net.constant(net.random.standard_normal((64, 32)).astype(np.float32))
    q = net.node("TRT_FP8QuantizeLinear", values, scale, domain="trt")
    return net.node("TRT_FP8DequantizeLinear", q, scale, domain="trt")


@pytest.mark.parametrize(
    ("weight_of", "attributes", "weight"),
    [
        (lambda net: net.weight((64, 32), 1), {}, "int8 per_channel"),
        (lambda net: net.weight((64, 32), 0), {}, "int8 per_channel(axis 1)"),
        (lambda net: net.weight((64, 32), None), {}, "int8 per_tensor"),
        (lambda net: net.node("Transpose", net.weight((32, 64), 0)), {}, "int8 per_channel"),
        (lambda net: net.weight((32, 64), 0), {"op": "Gemm", "transB": 1}, "int8 per_channel"),
        (lambda net: net.weight((64, 32), 0), {"op": "Gemm"}, "int8 per_channel(axis 1)"),
        (blocked_by_modelopt, {}, "int8 per_block(size 16, axis 1)"),
        (in_constant_nodes, {}, "int8 per_tensor"),
        (custom_fp8, {}, "fp8 per_tensor"),
    ],
)
def test_a_weight_has_the_granularity_that_it_has_where_it_is_multiplied(
    tmp_path, weight_of, attributes, weight
):
    found = said(written(linear(weight_of, **attributes), tmp_path))
    op = attributes.get("op", "MatMul")
    assert found == {(op, "weight"): weight, (op, "input"): "int8 per_tensor"}


@st.composite
def weights(draw):
    """(shape, granularity) of a convolution's or a linear layer's weight, as a recipe can say it,
    but for blocks along several axes, which the file says with more scales than the plan."""
    shape = tuple(draw(st.lists(st.sampled_from([2, 4, 6]), min_size=2, max_size=4)))
    axis = draw(st.integers(0, len(shape) - 1))
    size = draw(st.sampled_from([n for n in (1, 2, 3, 6) if shape[axis] % n == 0]))
    kinds = ["per_tensor", "per_element", {"per_channel": {"axis": axis}}]
    return shape, draw(st.sampled_from([*kinds, {"per_block": {"size": size, "axis": axis}}]))


@settings(max_examples=60, deadline=None)
@given(weights())
def test_what_granplugin_writes_is_found_as_its_plan_says_it(tmp_path_factory, case):
    shape, granularity = case
    block = parse_granularity(granularity).block(Site("layer", "weight", shape, 0))
    row = row_of("layer.weight", shape, block=block)
    path = tmp_path_factory.mktemp("found") / "model.onnx"
    save(insert(layer_of(shape), [row], {"layer.weight": np.ones(grid(shape, block), "f4")}), path)
    (operand,) = read_quantized(read_model(path), path).operands
    assert operand.row.shape == shape
    assert operand.row.grid == row.grid
    assert (operand.quantize, operand.row.operand, operand.row.format) == (None, "weight", "int8")


def layer_of(shape):
    """A marked float graph of one convolution, or of one linear layer."""
    nodes = [marker("w", "layer.weight")]
    if len(shape) == 2:
        nodes.append(onnx.helper.make_node("Transpose", ["layer.weight"], ["t"], perm=[1, 0]))
        nodes.append(onnx.helper.make_node("MatMul", ["x", "t"], ["y"]))
    else:
        kernel = shape[2:]
        conv = onnx.helper.make_node("Conv", ["x", "layer.weight"], ["y"], kernel_shape=kernel)
        nodes.append(conv)
    for node in nodes:
        node.name = f"layer/{node.op_type}"
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return model_of(nodes, {"x": ["n", *shape[1:]]}, {"y": [None] * len(shape)}, {"w": weight})


@pytest.mark.parametrize("content", [b"", b"no ONNX", b"\x08\x0a"])
def test_what_is_no_model_is_refused_on_one_line(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    done = run_main("audit", path)
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{path}: cannot be read") and done.stderr.count("\n") == 1


def test_a_constant_that_is_cut_short_is_refused_on_one_line(tmp_path):
    path = written(residual("shared"), tmp_path)
    model = onnx.load(path)
    scales = {node.input[1] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for tensor in model.graph.initializer:
        if tensor.name in scales:
            tensor.raw_data = tensor.raw_data[:1]
    onnx.save(model, path)
    done = run_main("audit", path)
    assert (done.code, done.stdout) == (2, "")
    assert "cannot be read" in done.stderr and done.stderr.count("\n") == 1


# -- verdicts from an engine built elsewhere ---------------------------------------------------


@pytest.fixture
def exported(tmp_path):
    """A file, and the layers of an engine of it that honours all."""
    model = residual(skip="float")
    layers = tmp_path / "layers.json"
    layers.write_text(inspected(model))
    return written(model, tmp_path), layers


@pytest.mark.parametrize("version", [10, 11])
@pytest.mark.parametrize("named", [True, False])
def test_layers_of_another_machine_are_audited_without_an_engine(tmp_path, version, named):
    model = residual(named=named)
    path, layers = written(model, tmp_path), tmp_path / "layers.json"
    if not named:  # TensorRT's names for nodes without one
        for node in model.graph.node:
            node.name = f"node_of_{node.output[0]}"
    layers.write_text(inspected(model, version))
    done = run_main("audit", path, "--backend", "tensorrt", "--layers", layers)
    assert (done.code, done.stderr) == (0, "")
    assert "8 honoured of 8" in done.stdout
    assert not too_wide(done.stdout)


def kinds_of(path, layers):
    return {
        site.row.site: site.verdict.kind for site in audit(path, "tensorrt", layers=layers).sites
    }


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_what_the_layers_do_not_tell_is_unknown_and_never_honoured(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("layers")
    model = residual()
    path, layers = written(model, folder), folder / "layers.json"
    whole = json.loads(inspected(model))
    convs = [layer["Name"] for layer in whole["Layers"]]
    hit = data.draw(st.sets(st.sampled_from(convs), min_size=1, max_size=3))
    how = data.draw(st.sampled_from(["left out", "renamed", "fused", "untold"]))
    if how == "fused" and len(hit) == 1:
        hit = set(convs[:2])
    told = {layer["Name"]: layer for layer in whole["Layers"]}
    if how == "fused":
        first, *others = sorted(hit)
        for other in others:
            told[first]["Name"] += f" + {other}"
            told[first]["Metadata"] += "\x1f" + told.pop(other)["Metadata"]
    for name in hit if how != "fused" else ():
        if how == "left out":
            del told[name]
        elif how == "renamed":
            told[name]["Metadata"] = told[name]["Metadata"].replace(f": {name}]", f": {name}_2]")
        else:
            del told[name]["Weights"]
    layers.write_text(json.dumps(whole | {"Layers": list(told.values())}))
    for site, kind in kinds_of(path, layers).items():
        assert kind == ("unknown" if site.rpartition(".")[0] in hit else "honoured"), (how, site)
    assert run_main("audit", path, "--backend", "tensorrt", "--layers", layers).code == 4


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_layers_that_are_cut_off_are_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cut")
    model = residual()
    text = inspected(model)
    path, layers = written(model, folder), folder / "layers.json"
    layers.write_text(text[: data.draw(st.integers(0, len(text) - 1))])
    with pytest.raises(EngineError, match="layers.json: "):
        audit(path, "tensorrt", layers=layers)


def test_an_audit_in_a_script_prints_as_the_command_does(exported):
    path, layers = exported
    found = granplugin.audit(str(path), "tensorrt", layers=layers)
    done = run_main("audit", path, "--backend", "tensorrt", "--layers", layers, "--quiet")
    assert (f"{found}\n", found.exit_code) == (done.stdout, done.code)
    assert "<table" in found._repr_html_()


def test_layers_of_another_model_are_told_as_such(exported):
    path, layers = exported
    layers.write_text(layers.read_text().replace("Conv_", "fc_"))
    done = run_main("audit", path, "--backend", "tensorrt", "--layers", layers)
    assert done.code == 4
    assert "no node of the file is in layers.json" in done.stdout


def test_an_operand_that_the_engine_reads_in_float_is_degraded(exported):
    path, layers = exported
    told = json.loads(layers.read_text())
    told["Layers"][0]["Inputs"][0]["Datatype"] = "Half"
    told["Layers"][1]["Weights"]["Type"] = "Half"
    layers.write_text(json.dumps(told))
    found = audit(path, "tensorrt", layers=layers)
    assert [s.verdict.detail for s in found.sites[:4]] == ["weight-only"] * 2 + [
        "fused-dequant"
    ] * 2
    assert found.exit_code == 3


def test_times_are_told_only_with_a_profile(exported, tmp_path):
    path, layers = exported
    names = [layer["Name"] for layer in json.loads(layers.read_text())["Layers"]]
    times = [{"count": 2}, *({"name": name, "timeMs": 3.0} for name in names)]
    (tmp_path / "profile.json").write_text(json.dumps(times))
    argv = ["audit", path, "--backend", "tensorrt", "--layers", layers]
    assert "ms" not in run_main(*argv).stdout.split()
    done = run_main(*argv, "--profile", tmp_path / "profile.json")
    assert done.code == 0 and "6.000" in done.stdout
    assert not too_wide(done.stdout)


def test_a_float_model_has_nothing_to_honour_and_no_success(tmp_path):
    model = Net()
    path = written(model.model(model.node("Relu", "x")), tmp_path)
    layers = tmp_path / "layers.json"
    layers.write_text(inspected(residual()))
    done = run_main("audit", path, "--layers", layers)
    assert done.code == 4
    assert "nothing in this file is quantized" in done.stdout


def test_uint8_is_wrong_whatever_the_engine_says(tmp_path):
    net = Net()
    x = net.qdq("x", zero=np.uint8(0))
    model = net.model(net.conv(x))
    path, layers = written(model, tmp_path), tmp_path / "layers.json"
    layers.write_text(inspected(model))
    found = audit(path, "tensorrt", layers=layers)
    (given_,) = [site for site in found.sites if site.row.operand == "input"]
    assert given_.verdict.kind == "wrong" and "saturates" in given_.verdict.detail
    assert found.exit_code == 3


def test_a_quantize_without_a_zero_point_is_noted(tmp_path):
    net = Net()
    scale = net.constant(np.float16(0.03))
    q = net.node("QuantizeLinear", "x", scale)
    path = written(net.model(net.conv(net.node("DequantizeLinear", q, scale))), tmp_path)
    notes = list(notes_of(read_quantized(read_model(path), path), None, None))
    assert len(notes) == 1 and notes[0].startswith("1 QuantizeLinear without a zero point: ")


def test_what_is_unknown_is_one_row_for_each_reason():
    def site(layer: str, role: str, detail: str) -> AuditedSite:
        return AuditedSite(
            layer=layer, type="Conv", role=role, format="int8", granularity="per_tensor",
            promise=None, verdict="unknown", detail=detail, where=None, ms=None,
        )  # fmt: skip

    sites = [site(f"c{at}", role, "why") for at in range(30) for role in ("weight", "input")]
    table = sites_table([*sites, site("other", "input", "why not")])
    assert [row.cells[0].more for row in table.rows] == [59, 0]
    assert table.rows[0].notes == ("why", "c0, c1, c2 and 27 more")


# -- engines built here ------------------------------------------------------------------------


@needs_rtx
def test_the_output_is_what_the_schema_says(tmp_path):
    path = written(residual("shared"), tmp_path)
    done = run_main("audit", path, "--json")
    assert (done.code, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    jsonschema.validate(told, json.loads(run_main("schema", "audit").stdout))
    assert {site["verdict"] for site in told["sites"]} == {"honoured"}
    assert len(told["sites"]) == 9


@needs_rtx
@pytest.mark.parametrize("names", ["", "same"])
def test_nodes_without_names_of_their_own_are_told_apart(tmp_path, names):
    model = residual("shared")
    for node in model.graph.node:
        node.name = names
    path = written(model, tmp_path)
    before = path.read_bytes()
    found = audit(path, "tensorrt_rtx")
    assert [site.verdict.kind for site in found.sites] == ["honoured"] * 9
    assert len({site.row.site for site in found.sites}) == 9
    assert path.read_bytes() == before


@needs_rtx
def test_q_k_and_v_that_are_one_product_are_honoured(tmp_path):
    net = Net(half=False)
    x = net.qdq("x")
    parts = [net.node("MatMul", x, net.weight((64, 64), 1)) for _ in range(3)]
    total = net.node("Add", net.node("Softmax", parts[0]), net.node("Mul", parts[1], parts[2]))
    path = written(net.model(total, ("n", 16, 64)), tmp_path)
    found = audit(path, "tensorrt_rtx")
    assert {site.verdict.kind for site in found.sites} == {"honoured"}


@needs_rtx
def test_a_plan_gives_the_recipes_lines_and_what_the_file_should_have(applied, tmp_path):
    folder = applied.out / "variants" / "recipe"
    argv = ["audit", folder / "model.onnx", "--plan", applied.out / "plan.json", "--json"]
    told = json.loads(run_main(*argv).stdout)
    assert {site["verdict"] for site in told["sites"]} == {"honoured"}
    assert all("recipe.yaml:" in site["where"] for site in told["sites"])
    plan = json.loads((applied.out / "plan.json").read_text())
    for row in plan["variants"]["recipe"]:
        if row["layer"] == "conv" and row["role"] == "weight":
            row["setting"]["granularity"] = "per_tensor"
    (applied.out / "plan.json").write_text(json.dumps(plan))
    done = run_main(*argv)
    wrong = [site for site in json.loads(done.stdout)["sites"] if site["verdict"] == "wrong"]
    assert [(site["role"], site["detail"]) for site in wrong] == [
        ("weight", "the plan says int8 per_tensor")
    ]
    assert done.code == 3


# -- one change after another: read-back or verdict sees each ----------------------------------

KINDS = {
    "conv": ("Conv", (4, 4, 3, 3), {}),
    "grouped": ("Conv", (4, 2, 3, 3), {"group": 2}),
    "depthwise": ("Conv", (4, 1, 3, 3), {"group": 4}),
    "transposed": ("ConvTranspose", (4, 4, 3, 3), {}),
    "linear": ("Gemm", (4, 4), {"transB": 1}),
}


def quantized(kind, granularity):
    """A graph with a quantized layer of this kind, its rows, ranges and weight."""
    op, shape, attributes = KINDS[kind]
    nodes = [
        marker("x", "layer.input"),
        marker("w", "layer.weight"),
        onnx.helper.make_node(op, ["layer.input", "layer.weight"], ["y"], **attributes),
    ]
    for node in nodes:
        node.name = f"layer/{node.op_type}"
    inputs = (1, 4) if kind == "linear" else (1, 4, 6, 6)
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    model = model_of(nodes, {"x": ["n", *inputs[1:]]}, {"y": [None] * len(inputs)}, {"w": weight})
    rows = [row_of("layer.input", inputs), row_of("layer.weight", shape, granularity)]
    amax = {"layer.input": np.full((1,) * len(inputs), 3.0, np.float32)}
    cells = rows[1].grid
    amax["layer.weight"] = (1 + np.arange(np.prod(cells), dtype=np.float32)).reshape(cells)
    return model, rows, amax, {"layer": weight}


def dq_of(graph, role):
    return node_named(graph, f"layer.{role}/DequantizeLinear")


def _another_axis(graph, role):
    dq = dq_of(graph, role)
    axes = [a for a in dq.attribute if a.name == "axis"]
    if axes:
        axes[0].i = 1 - axes[0].i
    else:
        edit(graph, dq.input[1], lambda scale: np.full(4, scale))
        edit(graph, dq.input[2], lambda zero: np.zeros(4, zero.dtype))


def _shape_of_one(graph, role):
    for name in dq_of(graph, role).input[1:]:
        edit(graph, name, lambda array: array.reshape(-1)[:1])


def _no_dequantize(graph, role):
    dq = dq_of(graph, role)
    layer = next(n for n in graph.node if dq.output[0] in n.input)
    at = list(layer.input).index(dq.output[0])
    layer.input[at] = "w_float" if role == "weight" else "x"
    if role == "weight":
        shape = [d for t in graph.initializer if t.name == dq.input[0] for d in t.dims]
        graph.initializer.append(numpy_helper.from_array(np.ones(shape, "f4"), "w_float"))
    graph.node.remove(dq)
    for node in [n for n in graph.node if role == "input" and n.output[0] == dq.input[0]]:
        graph.node.remove(node)


def _uint8(graph, role):
    dq = dq_of(graph, role)
    name = f"{role}_zero"
    zero = next(t for t in graph.initializer if t.name == dq.input[2])
    graph.initializer.append(
        numpy_helper.from_array(numpy_helper.to_array(zero).astype(np.uint8), name)
    )
    for node in graph.node:
        if node.input[1:2] == dq.input[1:2]:
            node.input[2] = name
    if role == "weight":
        edit(graph, dq.input[0], lambda stored: stored.view(np.uint8))


def _swapped(graph, role):
    """Two scales of a vector, or the weight's and the input's."""
    one, two = dq_of(graph, "weight"), dq_of(graph, "input")
    held = next(t for t in graph.initializer if t.name == one.input[1])
    if role == "weight" and held.dims:
        edit(graph, one.input[1], lambda scale: scale[[1, 0, *range(2, scale.size)]])
    else:
        one.input[1], two.input[1] = two.input[1], one.input[1]


def _halved(graph, role):
    name = dq_of(graph, role).input[1]
    edit(graph, name, lambda s: np.where(np.arange(s.size).reshape(s.shape) == 0, s / 2, s))


MUTATIONS = [_another_axis, _shape_of_one, _no_dequantize, _uint8, _swapped, _halved]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", ["weight", "input"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_a_file_that_differs_from_its_plan_in_one_row_is_unhonoured(
    tmp_path, kind, mutation, role, granularity
):
    model, rows, amax, weights = quantized(kind, granularity)
    path = tmp_path / "model.onnx"
    save(insert(model, rows, amax), path)
    read_back(path, rows, amax, weights)
    changed = onnx.load(path)
    mutation(changed.graph, role)
    assert changed.SerializeToString() != path.read_bytes()
    onnx.save(changed, path)
    with pytest.raises(Unhonoured):
        read_back(path, rows, amax, weights)


@needs_rtx
@pytest.mark.parametrize("mutation", [_another_axis, _shape_of_one, _no_dequantize, _uint8])
@pytest.mark.parametrize("role", ["weight", "input"])
def test_what_an_engine_cannot_honour_is_no_success_without_a_plan_either(tmp_path, mutation, role):
    if (mutation, role) == (_shape_of_one, "weight"):
        pytest.skip(
            "one scale for a weight, written as a vector of one, is per_tensor and honoured"
        )
    model, rows, amax, _ = quantized("conv", "per_channel")
    path = tmp_path / "model.onnx"
    save(insert(model, rows, amax), path)
    assert audit(path, "tensorrt_rtx").exit_code == 0
    changed = onnx.load(path)
    mutation(changed.graph, role)
    onnx.save(changed, path)
    assert audit(path, "tensorrt_rtx").exit_code in (2, 3, 4)


@needs_rtx
def test_a_bias_in_integers_that_the_engine_refuses_is_told_with_the_way_out(tmp_path):
    net = Net(half=False)
    scale = net.constant(np.full(32, 0.01, np.float32))
    bias = net.node("DequantizeLinear", net.constant(np.zeros(32, np.int32)), scale, axis=0)
    y = net.node("Gemm", net.qdq("x"), net.weight((64, 32), 1), bias)
    path = written(net.model(y, ("n", 64)), tmp_path)
    done = run_main("audit", path)
    assert (done.code, done.stderr) == (2, "")
    told = " ".join(done.stdout.split())
    assert "2 sites and no verdict: 1 reason" in told and "32-bit integers" in told
    assert "Gemm_6" in told and "'QuantizeBias': False" in told
