"""Granularities no engine has, made from those it has: against the oracle, a reader, and RTX."""

from __future__ import annotations

import dataclasses
import re
from typing import get_args

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from plan_values import quantized_row
from test_qdq import marker, model_of, ops, row_of, run

from granplugin.calibration.statistics import find_amax
from granplugin.capabilities.table import LOWERINGS
from granplugin.errors import ModelError, Unhonoured
from granplugin.graph.edit.fold import weights_of
from granplugin.graph.edit.qdq import insert
from granplugin.graph.files import save
from granplugin.graph.methods import FLOOR, Method, methods
from granplugin.graph.read.agreement import agreement
from granplugin.graph.read.verify import read_back
from granplugin.quant.formats import FORMATS, fake_quantize, quantize, scale_of
from granplugin.quant.granularity import (
    PerBlock,
    PerTensor,
    PerToken,
    parse_granularity,
    reduce_blocks,
)
from granplugin.quant.site import Site

RNG = np.random.default_rng


@dataclasses.dataclass(frozen=True)
class Kind:
    """A layer: its type, the shapes of its input (axis 0 the batch) and weight, its groups."""

    type: str
    shape: tuple[int, ...]
    weight: tuple[int, ...]
    groups: int = 1

    @property
    def channels(self):
        return len(self.shape) - 1 if self.type == "Linear" else 1

    def block(self, granularity):
        return parse_granularity(granularity).block(
            Site("layer", "input", self.shape, self.channels)
        )

    def compute(self, x, w, bias):
        """In float64."""
        x, w, bias = (torch.from_numpy(np.float64(array)) for array in (x, w, bias))
        if self.type == "Linear":
            return torch.nn.functional.linear(x, w, bias).numpy()
        function = getattr(
            torch.nn.functional, self.type.lower().replace("transpose", "_transpose")
        )
        return function(x, w, bias, groups=self.groups).numpy()

    def nodes(self, name, x, y):
        """The layer between tensors x and y, with markers, as the exporter writes it."""
        reads = [marker(x, f"{name}.input"), marker(f"{name}.w", f"{name}.weight")]
        x, w, bias = f"{name}.input", f"{name}.weight", f"{name}.b"
        if self.type != "Linear":
            op, more = self.type.rstrip("123d"), {"kernel_shape": self.weight[2:]}
            own = [helper.make_node(op, [x, w, bias], [y], group=self.groups, **more)]
        elif len(self.shape) == 2:
            own = [helper.make_node("Gemm", [x, w, bias], [y], transB=1)]
        else:
            own = [
                helper.make_node("Transpose", [w], [f"{name}.t"], perm=[1, 0]),
                helper.make_node("MatMul", [x, f"{name}.t"], [f"{name}.m"]),
                helper.make_node("Add", [f"{name}.m", bias], [y]),
            ]
        for node in own:
            node.name = f"{name}/{node.op_type}"
        return reads + own

    def weights(self, rng, name):
        outputs = self.weight[1] * self.groups if "Transpose" in self.type else self.weight[0]
        w = rng.standard_normal(self.weight) * np.exp(rng.uniform(-4, 4, self.weight[:1])).reshape(
            -1, *[1] * (len(self.weight) - 1)
        )
        bias = rng.standard_normal(outputs)
        return {f"{name}.w": w.astype(np.float32), f"{name}.b": bias.astype(np.float32)}

    def rows(self, name, granularity, fmt="int8", weight="per_channel", weight_fmt="int8"):
        axis = 1 if "Transpose" in self.type else 0
        facts = {"type": self.type}
        return [
            quantized_row(f"{name}.input", self.shape, granularity, fmt, self.channels, **facts),
            quantized_row(f"{name}.weight", self.weight, weight, weight_fmt, axis, **facts),
        ]


LINEAR3 = Kind("Linear", (1, 6, 8), (5, 8))
LINEAR4 = Kind("Linear", (1, 2, 3, 8), (5, 8))
LINEAR2 = Kind("Linear", (1, 8), (5, 8))
CONV = Kind("Conv2d", (1, 8, 5, 5), (6, 8, 3, 3))
CONV1 = Kind("Conv1d", (1, 8, 7), (6, 8, 3))
GROUPED = Kind("Conv2d", (1, 8, 5, 5), (6, 4, 3, 3), 2)
DEPTHWISE = Kind("Conv2d", (1, 8, 5, 5), (8, 1, 3, 3), 8)
MULTIPLIED = Kind("Conv2d", (1, 8, 5, 5), (16, 1, 3, 3), 8)
TRANSPOSED = Kind("ConvTranspose2d", (1, 8, 4, 4), (8, 5, 2, 2))
TRANSPOSED2 = Kind("ConvTranspose2d", (1, 8, 4, 4), (8, 5, 2, 2), 2)
KINDS = [
    *(LINEAR2, LINEAR3, LINEAR4, CONV, CONV1, GROUPED),
    *(DEPTHWISE, MULTIPLIED, TRANSPOSED, TRANSPOSED2),
]


def constants_of(path):
    graph = onnx.load(path).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def choices(kind):
    """What can be asked of the kind's input: (how, granularity)."""
    channel = {"per_channel": {"axis": kind.channels}}
    parts = [4 if axis == kind.channels else n for axis, n in enumerate(kind.shape)]
    runs = {"per_block": {"shape": parts}}
    found = [("lower", channel), ("lower", runs), ("dynamic", "per_tensor")]
    if kind.type == "Linear" and len(kind.shape) > 2:
        found += [("lower", "per_token"), ("dynamic", "per_token")]
    if kind is LINEAR3:
        found.append(("lower", {"per_block": {"shape": [1, 2, 8]}}))
    found += [("simulate", "per_element"), ("simulate", channel)]
    return [*found, ("dynamic simulate", "per_tensor"), ("dynamic lower", "per_tensor")]


def at_run_time(row):
    chosen = PerTensor if row.scales == 1 else PerToken
    return dataclasses.replace(row, granularity=chosen(dynamic=True))


def asking(rows, how):
    """The layer's rows and what is asked of its input: a dynamic row asks by itself."""
    if "dynamic" in how:
        rows = [at_run_time(rows[0]), *rows[1:]]
    asked = how.removeprefix("dynamic").strip()
    return rows, {"layer.input": asked} if asked else {}


def inputs_of(rng, shape):
    """Channels 14,000 times apart, exact halves among them, and one row of zeros."""
    x = rng.standard_normal(shape) * np.exp(rng.uniform(0, np.log(14_000), (1, *shape[1:])))
    x = np.where(rng.random(shape) < 0.2, np.rint(2 * x) / 2, x)
    x[0, 0] = 0
    return x.astype(np.float32)


def build(path, kind, rows, how, x, seed=0):
    """Write one layer; returns its weight and bias, and the amax of its rows."""
    weights = kind.weights(RNG(seed), "layer")
    model = model_of(
        kind.nodes("layer", "x", "y"),
        {"x": ["n", *kind.shape[1:]]},
        {"y": [None] * len(kind.shape)},
        weights,
    )
    amax = {}
    for row in rows:
        if row.operand == "weight":
            amax[row.site] = find_amax(row, weight=weights["layer.w"])
        elif not row.dynamic:
            cells = reduce_blocks(np.abs(x), (len(x), *row.block[1:]))
            amax[row.site] = np.maximum(cells, 1e-3)
    save(insert(model, rows, amax, how), path)
    read_back(path, rows, amax, {"layer": weights["layer.w"]}, how)
    return weights["layer.w"], weights["layer.b"], amax


def by_channel(kind, row, amax):
    """The input's scales as they multiply the weight, output channel by output channel."""
    scale = np.repeat(scale_of(amax, FORMATS[row.format]).ravel(), row.block[kind.channels])
    if "Transpose" in kind.type:
        return scale.reshape(-1, *[1] * (len(kind.weight) - 1))
    per_group = kind.weight[0] // kind.groups
    rows = [scale.reshape(kind.groups, -1)[k // per_group] for k in range(kind.weight[0])]
    return np.stack(rows).reshape(*kind.weight[:2], *[1] * (len(kind.weight) - 2))


@st.composite
def cases(draw):
    kind = draw(st.sampled_from(KINDS))
    how, granularity = draw(st.sampled_from(choices(kind)))
    fmt = draw(st.sampled_from(["int8", "int8", "fp8"]))
    weight = draw(st.sampled_from(["per_tensor", "per_channel"]))
    if weight == "per_channel" and "Transpose" in kind.type and kind.groups > 1:
        weight = {"per_channel": {"axis": 1}}
    return kind, how, granularity, fmt, weight, draw(st.integers(0, 99)), draw(st.integers(1, 3))


@settings(max_examples=120, deadline=None)
@given(cases())
def test_a_lowered_layer_computes_what_the_oracle_does(tmp_path_factory, case):
    kind, how, granularity, fmt, weight, seed, batch = case
    path = tmp_path_factory.mktemp("case") / "model.onnx"
    x = inputs_of(RNG(seed), (batch, *kind.shape[1:]))
    rows, asked = asking(kind.rows("layer", granularity, fmt, weight, fmt), how)
    row, weight_row = rows
    w, bias, amax = build(path, kind, rows, asked, x, seed)

    block = (1, *row.block[1:])
    if row.dynamic:
        cells = np.maximum(scale_of(reduce_blocks(np.abs(x), block), FORMATS[fmt]), FLOOR)
    else:
        cells = scale_of(amax["layer.input"], FORMATS[fmt])
        cells = np.repeat(cells, batch, axis=0)
    quantized = fake_quantize(x, cells, block, FORMATS[fmt])
    method = methods(rows, asked)["layer.input"]
    dense = method == "rescale"
    factor = by_channel(kind, row, amax["layer.input"]) if dense else np.float32(1)
    own = find_amax(weight_row, weight=w * factor)
    used = fake_quantize(w * factor, scale_of(own, FORMATS[fmt]), weight_row.block, FORMATS[fmt])
    used = np.float64(used) / factor
    expected = kind.compute(quantized, used, bias)
    (found,) = run(path, {"x": x})
    assert np.isfinite(found).all()
    sums = kind.compute(np.abs(quantized), np.abs(used), np.abs(bias))
    assert (np.abs(found - expected) <= 2**-19 * sums).all()

    stored = [n for n in onnx.load(path).graph.node if n.name == "layer.input/DequantizeLinear"]
    if stored:
        # What stands between the division and the multiplication.
        (integers,) = run(path, {"x": x}, stored[0].output[0])
        scale = constants_of(path)[stored[0].input[1]]
        assert scale.shape == () and np.frexp(scale)[0] == 0.5  # a power of two
        oracle = quantize(x, cells, block, FORMATS[fmt]).astype(np.float32) * scale
        assert integers.tobytes() == oracle.tobytes()
    compared = agreement(path, rows, amax, {"x": x}, None, asked, {"layer": w})
    assert compared.sites == 2


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.sampled_from(sorted(FORMATS)), st.data())
def test_a_simulated_weight_is_the_oracles_bit_for_bit(tmp_path_factory, kind, fmt, data):
    parts = [
        data.draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0])) for n in kind.weight
    ]
    path = tmp_path_factory.mktemp("case") / "model.onnx"
    rows = kind.rows("layer", "per_tensor", weight={"per_block": {"shape": parts}}, weight_fmt=fmt)
    x = inputs_of(RNG(0), kind.shape)
    w, _, amax = build(path, kind, rows, {"layer.weight": "simulate"}, x)
    (stored,) = [t for t in onnx.load(path).graph.initializer if t.name == "layer.weight/baked"]
    scale = scale_of(amax["layer.weight"], FORMATS[fmt])
    expected = fake_quantize(w, scale, tuple(parts), FORMATS[fmt])
    assert numpy_helper.to_array(stored).tobytes() == expected.tobytes()
    assert ops(path).count("DequantizeLinear") == 1


@pytest.mark.parametrize(
    "weight", ["per_tensor", "per_channel", {"per_block": {"shape": [1, 1, 1, 3]}}]
)
@pytest.mark.parametrize("kind", [DEPTHWISE, MULTIPLIED], ids=["depthwise", "multiplied"])
def test_folding_into_a_depthwise_weight_keeps_its_integers(tmp_path, kind, weight):
    for seed in range(20):
        rows = kind.rows("layer", {"per_channel": {"axis": 1}}, weight=weight)
        x = inputs_of(RNG(seed), kind.shape)
        how = {"layer.input": "lower"}
        w, _, amax = build(tmp_path / "model.onnx", kind, rows, how, x, seed)
        (stored,) = (
            numpy_helper.to_array(tensor)
            for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer
            if tensor.name == "layer.weight/int8"
        )
        scale = scale_of(amax["layer.weight"], FORMATS["int8"])
        assert (stored == quantize(w, scale, rows[1].block, FORMATS["int8"])).all()


def test_a_row_of_zeros_stays_zero_and_finite(tmp_path):
    rows, asked = asking(LINEAR3.rows("layer", "per_token"), "dynamic")
    x = np.zeros((2, *LINEAR3.shape[1:]), np.float32)
    _, bias, _ = build(tmp_path / "m.onnx", LINEAR3, rows, asked, x)
    (y,) = run(tmp_path / "m.onnx", {"x": x})
    assert (y == bias).all()


@pytest.mark.parametrize("kind", [LINEAR2, LINEAR3, CONV], ids=["gemm", "matmul", "conv"])
def test_a_dynamic_scale_does_not_depend_on_the_rest_of_the_batch(tmp_path, kind):
    rows, asked = asking(kind.rows("layer", "per_tensor"), "dynamic")
    x = inputs_of(RNG(1), (4, *kind.shape[1:]))
    build(tmp_path / "m.onnx", kind, rows, asked, x)
    name = "layer.input/DequantizeLinear"
    (together,) = run(tmp_path / "m.onnx", {"x": x}, name)
    alone = [run(tmp_path / "m.onnx", {"x": x[i : i + 1]}, name)[0] for i in range(4)]
    assert together.tobytes() == np.concatenate(alone).tobytes()


# -- several layers -------------------------------------------------------------------------------


def qkv(how, granularity, shared_weight=False):
    """Three linear layers on one tensor, all but the last asked to be lowered."""
    kinds = dict.fromkeys("qkv", LINEAR3)
    nodes = [n for name in kinds for n in LINEAR3.nodes(name, "x", f"{name}.y")]
    constants = {}
    for number, name in enumerate(kinds):
        constants |= LINEAR3.weights(RNG(0 if shared_weight else number), name)
    if shared_weight:
        for node in nodes:
            if node.op_type == "Site" and node.input[0] == "k.w":
                node.input[0] = "q.w"
    outputs = {f"{name}.y": [None] * 3 for name in kinds}
    model = model_of(nodes, {"x": ["n", *LINEAR3.shape[1:]]}, outputs, constants)
    rows = [row for name in "qk" for row in LINEAR3.rows(name, granularity)]
    if how == "dynamic":
        rows = [at_run_time(row) if row.operand == "input" else row for row in rows]
    rows += LINEAR3.rows("v", "per_tensor")
    amax = {}
    for row in rows:
        if row.operand == "weight":
            amax[row.site] = find_amax(
                row,
                weight=constants["q.w" if shared_weight and row.layer == "k" else f"{row.layer}.w"],
            )
        else:
            amax[row.site] = np.linspace(1, 2, row.scales, dtype=np.float32).reshape(row.grid)
    asked = {} if how == "dynamic" else {"q.input": how, "k.input": how}
    return model, rows, amax, asked


@pytest.mark.parametrize(
    ("how", "granularity"),
    [("lower", "per_token"), ("dynamic", "per_token"), ("lower", {"per_channel": {"axis": 2}})],
)
def test_layers_that_read_one_tensor_alike_share_one_division(tmp_path, how, granularity):
    model, rows, amax, asked = qkv(how, granularity)
    weights = weights_of(model, rows)
    save(insert(model, rows, amax, asked), tmp_path / "m.onnx")
    read_back(tmp_path / "m.onnx", rows, amax, weights, asked)
    assert ops(tmp_path / "m.onnx").count("QuantizeLinear") == 2
    x = inputs_of(RNG(0), (2, *LINEAR3.shape[1:]))
    agreement(tmp_path / "m.onnx", rows, amax, {"x": x}, None, asked, weights)
    plain = {site: value for site, value in amax.items() if site[0] == "v"}
    save(insert(model, rows, plain), tmp_path / "v.onnx")
    assert (
        run(tmp_path / "v.onnx", {"x": x}, "v.y")[0] == run(tmp_path / "m.onnx", {"x": x}, "v.y")[0]
    ).all()


def test_a_weight_that_two_layers_share_changes_only_for_the_lowered_one(tmp_path):
    model, rows, amax, asked = qkv("lower", {"per_channel": {"axis": 2}}, shared_weight=True)
    weights = weights_of(model, rows)
    asked = {"q.input": "lower"}
    rows = [row for row in rows if row.layer != "k" or row.operand == "weight"]
    save(insert(model, rows, amax, asked), tmp_path / "m.onnx")
    read_back(tmp_path / "m.onnx", rows, amax, weights, asked)


def chain(*layers, between=()):
    """Layers one behind the other, with markers at their outputs; `between` comes in front of the
    first."""
    nodes, value = list(between), "between" if between else "x"
    for name, kind in layers:
        nodes += [*kind.nodes(name, value, f"{name}.y"), marker(f"{name}.y", f"{name}.output")]
        value = f"{name}.output"
    return nodes, value


def test_a_layer_called_twice_is_lowered_at_each_call(tmp_path):
    square = Kind("Linear", (1, 6, 8), (8, 8))
    first, value = chain(("layer", square))
    second = [
        marker(value, "layer.input"),
        helper.make_node("MatMul", ["again", "layer.t"], ["m2"]),
    ]
    second[0].output[0] = "again"
    second.append(helper.make_node("Add", ["m2", "layer.b"], ["y"]))
    for node in second:
        node.name = f"layer/{node.op_type}_1"
    model = model_of(
        first + second,
        {"x": ["n", 6, 8]},
        {"y": [None] * 3},
        square.weights(RNG(0), "layer"),
    )
    for granularity in ("per_token", {"per_channel": {"axis": 2}}):
        rows = square.rows("layer", granularity)
        amax = {"layer.input": np.linspace(1, 2, rows[0].scales, dtype=np.float32)}
        amax["layer.input"] = amax["layer.input"].reshape(rows[0].grid)
        weights = weights_of(model, rows)
        amax["layer.weight"] = find_amax(rows[1], weight=weights["layer"])
        asked = {"layer.input": "lower"}
        save(insert(model, rows, amax, asked), tmp_path / "m.onnx")
        read_back(tmp_path / "m.onnx", rows, amax, weights, asked)
        assert ops(tmp_path / "m.onnx").count("QuantizeLinear") == 2


def test_a_zero_pad_and_a_batch_norm_are_folded_before_a_layer_is_lowered(tmp_path):
    rng = RNG(0)
    pad = helper.make_node("Pad", ["x", "pads", "zero"], ["between"], "Pad")
    nodes, value = chain(("layer", DEPTHWISE), between=[pad])
    norm = [f"bn.{name}" for name in ("scale", "bias", "mean", "var")]
    nodes.append(helper.make_node("BatchNormalization", [value, *norm], ["y"], "bn/BatchNorm"))
    constants = {
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "zero": np.float32(0).reshape(()),
        **{name: np.exp(rng.standard_normal(8)).astype(np.float32) for name in norm},
        **DEPTHWISE.weights(rng, "layer"),
    }
    ir_model = model_of(nodes, {"x": ["n", 8, 3, 3]}, {"y": [None] * 4}, constants)
    for node in ir_model.graph:
        if node.op_type == "Conv":
            node.attributes["pads"] = ir.AttrInt64s("pads", [0, 0, 0, 0])
            node.attributes["auto_pad"] = ir.AttrString("auto_pad", "NOTSET")
            node.attributes["strides"] = ir.AttrInt64s("strides", [1, 1])
        if node.op_type == "BatchNormalization":
            node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-5)
        if node.op_type == "Pad":
            node.attributes["mode"] = ir.AttrString("mode", "constant")
    rows = DEPTHWISE.rows("layer", {"per_channel": {"axis": 1}})
    rows = [dataclasses.replace(row, bn="fold", bn_name="bn") for row in rows]
    weights = weights_of(ir_model, rows)
    amax = {
        "layer.input": np.linspace(1, 9, 8, dtype=np.float32).reshape(1, 8, 1, 1),
        "layer.weight": find_amax(rows[1], weight=weights["layer"]),
    }
    asked = {"layer.input": "lower"}
    path = tmp_path / "m.onnx"
    save(insert(ir_model, rows, amax, asked), path)
    read_back(path, rows, amax, weights, asked)
    assert ops(path) == ["Div", "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Conv"]
    x = inputs_of(rng, (2, 8, 3, 3))
    assert agreement(path, rows, amax, {"x": x}, None, asked, weights).sites == 2


def test_an_output_can_be_simulated_and_be_the_models_own(tmp_path):
    nodes, value = chain(("layer", CONV))
    nodes.append(helper.make_node("Relu", [value], ["y"], "Relu"))
    for output, fmt in (("y", "int8"), ("y", "fp8")):
        model = model_of(
            nodes, {"x": ["n", 8, 5, 5]}, {output: [None] * 4}, CONV.weights(RNG(0), "layer")
        )
        row = row_of("layer.output", (1, 6, 3, 3), "per_element", fmt)
        amax = {row.site: np.linspace(1, 9, 54, dtype=np.float32).reshape(row.grid)}
        asked = {row.site: "simulate"}
        save(insert(model, [row], amax, asked), tmp_path / "m.onnx")
        read_back(tmp_path / "m.onnx", [row], amax, {}, asked)
        x = inputs_of(RNG(0), (2, 8, 5, 5))
        assert agreement(tmp_path / "m.onnx", [row], amax, {"x": x}, None, asked).sites == 1


# -- what cannot be done is refused by name -------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "how", "granularity"),
    [
        (LINEAR3, "lower", "per_element"),
        (CONV, "lower", {"per_channel": {"axis": 2}}),
        (dataclasses.replace(CONV, type="MaxPool2d"), "lower", {"per_channel": {"axis": 1}}),
        (dataclasses.replace(CONV, type="MaxPool2d"), "dynamic", "per_tensor"),
    ],
)
def test_scales_that_no_constant_factor_takes_out_are_refused(kind, how, granularity):
    with pytest.raises(ModelError, match=r"layer\.input: .* write simulate"):
        methods(*asking(kind.rows("layer", granularity), how))


def test_a_weight_is_not_lowered():
    with pytest.raises(ModelError, match=r"layer\.weight: only inputs are lowered"):
        methods(CONV.rows("layer", "per_tensor"), {"layer.weight": "lower"})


def test_scales_need_a_quantized_weight_to_go_into():
    rows = CONV.rows("layer", {"per_channel": {"axis": 1}})
    with pytest.raises(ModelError, match=r"layer\.weight is not quantized"):
        methods(rows[:1], {"layer.input": "lower"})
    with pytest.raises(ModelError, match=r"layer\.weight is not quantized"):
        methods(rows, {"layer.input": "lower", "layer.weight": "simulate"})
    pinned = [rows[0], dataclasses.replace(rows[1], amax=1.0)]
    with pytest.raises(ModelError, match=r"pinned"):
        methods(pinned, {"layer.input": "lower"})


@pytest.mark.parametrize("granularity", ["per_token", {"per_channel": {"axis": 2}}])
def test_an_input_that_something_else_reads_is_refused(granularity):
    nodes, value = chain(("layer", LINEAR3))
    nodes.append(helper.make_node("Neg", ["layer.input"], ["z"], "layer/Neg"))
    outputs = {value: [None] * 3, "z": [None] * 3}
    model = model_of(nodes, {"x": ["n", 6, 8]}, outputs, LINEAR3.weights(RNG(0), "layer"))
    rows = LINEAR3.rows("layer", granularity)
    amax = {row.site: np.ones(row.grid, np.float32) for row in rows}
    with pytest.raises(ModelError, match=r"layer\.input: layer/Neg reads it"):
        insert(model, rows, amax, {"layer.input": "lower"})


def test_a_weight_that_another_product_reads_is_refused():
    nodes, value = chain(("layer", LINEAR3))
    nodes.append(helper.make_node("MatMul", ["x", "layer.t"], ["z"], "layer/MatMul_1"))
    outputs = {value: [None] * 3, "z": [None] * 3}
    model = model_of(nodes, {"x": ["n", 6, 8]}, outputs, LINEAR3.weights(RNG(0), "layer"))
    rows = LINEAR3.rows("layer", {"per_channel": {"axis": 2}})
    amax = {row.site: np.ones(row.grid, np.float32) for row in rows}
    with pytest.raises(ModelError, match=r"layer\.input: its weight is also used"):
        insert(model, rows, amax, {"layer.input": "lower"})


def test_scales_too_small_for_float32_are_refused(tmp_path):
    rows = DEPTHWISE.rows("layer", {"per_channel": {"axis": 1}})
    nodes, value = chain(("layer", DEPTHWISE))
    weights = DEPTHWISE.weights(RNG(0), "layer")
    model = model_of(nodes, {"x": ["n", 8, 5, 5]}, {value: [None] * 4}, weights)
    amax = {
        "layer.input": np.geomspace(1e-6, 1, 8).reshape(rows[0].grid),
        "layer.weight": np.full(rows[1].grid, 1e-34, np.float32),
    }
    amax = {site: value.astype(np.float32) for site, value in amax.items()}
    with pytest.raises(ModelError, match=r"too small for float32"):
        insert(model, rows, amax, {"layer.input": "lower"})


# -- a file that is not what was promised is not accepted -----------------------------------------


def mutants(path):
    """The file with one thing changed: each constant of a lowered site, each node taken out."""
    for index, tensor in enumerate(onnx.load(path).graph.initializer):
        array = numpy_helper.to_array(tensor)
        own = tensor.name.startswith("layer.") and not tensor.name.endswith((".b", "bias/behind"))
        if own and array.dtype in (np.float32, np.int8) and array.size:
            model, changed = onnx.load(path), array.copy()
            changed.reshape(-1)[-1] = changed.reshape(-1)[-1] / 2 + (array.dtype == np.int8)
            model.graph.initializer[index].CopyFrom(numpy_helper.from_array(changed, tensor.name))
            if changed.tobytes() != array.tobytes():
                yield f"another {tensor.name}", model
    for index, node in enumerate(onnx.load(path).graph.node):
        if node.op_type in ("Div", "Mul", "Round", "Clip", "Max", "Abs"):
            model = onnx.load(path)
            del model.graph.node[index]
            for other in model.graph.node:
                for place, name in enumerate(other.input):
                    if name == node.output[0]:
                        other.input[place] = node.input[0]
            yield f"no {node.name}", model


@pytest.mark.parametrize(
    ("kind", "how", "granularity", "fmt"),
    [
        (LINEAR3, "lower", "per_token", "int8"),
        (LINEAR3, "dynamic", "per_token", "int8"),
        (LINEAR2, "dynamic", "per_tensor", "int8"),
        (CONV, "dynamic", "per_tensor", "int8"),
        (CONV, "dynamic simulate", "per_tensor", "int8"),
        (CONV, "lower", {"per_channel": {"axis": 1}}, "int8"),
        (DEPTHWISE, "lower", {"per_channel": {"axis": 1}}, "int8"),
        (CONV, "simulate", "per_element", "int8"),
        (CONV, "simulate", "per_element", "fp8"),
    ],
)
def test_every_change_to_a_lowered_site_is_found(tmp_path, kind, how, granularity, fmt):
    rows, asked = asking(kind.rows("layer", granularity, fmt), how)
    x = inputs_of(RNG(0), (2, *kind.shape[1:]))
    w, _, amax = build(tmp_path / "good.onnx", kind, rows, asked, x)
    changed = list(mutants(tmp_path / "good.onnx"))
    assert len(changed) >= 3
    for what, model in changed:
        onnx.save(model, tmp_path / "bad.onnx")
        with pytest.raises(Unhonoured):
            read_back(tmp_path / "bad.onnx", rows, amax, {"layer": w}, asked)
            pytest.fail(what)
    with pytest.raises(Unhonoured):  # a lowered file is not the plan's own, and the other way round
        read_back(
            tmp_path / "good.onnx",
            [dataclasses.replace(row, granularity=PerBlock(shape=row.block)) for row in rows],
            amax | {"layer.input": np.ones(rows[0].grid, np.float32)},
            {"layer": w},
        )


# -- TensorRT-RTX ------------------------------------------------------------------------------


def rtx_plan(path):
    """The engine's layers, as TensorRT-RTX tells them while it builds: lines of text."""
    trt = pytest.importorskip("tensorrt_rtx")
    messages = []

    class Logger(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)

        def log(self, severity, message):
            messages.append(message)

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(path.read_bytes()), parser.get_error(0).desc()
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    x = network.get_input(0)
    profile.set_shape(x.name, *[(batch, *x.shape[1:]) for batch in (1, 4, 8)])
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
    (plan,) = [message for message in messages if message.startswith("Layers:")]
    return [line for line in plan.splitlines() if line.startswith("Name:")]


WIDE_LINEAR3 = Kind("Linear", (1, 48, 64), (32, 64))
WIDE_LINEAR2 = Kind("Linear", (1, 64), (32, 64))
WIDE_CONV = Kind("Conv2d", (1, 32, 8, 8), (64, 32, 3, 3))
WIDE_DEPTHWISE = Kind("Conv2d", (1, 32, 8, 8), (32, 1, 3, 3), 32)


@pytest.mark.parametrize(
    ("kind", "how", "granularity", "kernels"),
    [
        (WIDE_LINEAR3, "lower", "per_token", 3),
        (WIDE_LINEAR3, "lower", {"per_channel": {"axis": 2}}, 3),
        (WIDE_LINEAR3, "dynamic", "per_token", 3),
        (WIDE_LINEAR3, "dynamic", "per_tensor", 3),
        (WIDE_LINEAR2, "lower", {"per_channel": {"axis": 1}}, 3),
        (WIDE_LINEAR2, "dynamic", "per_tensor", 3),
        (WIDE_CONV, "lower", {"per_channel": {"axis": 1}}, 3),
        (WIDE_CONV, "dynamic", "per_tensor", 4),
        (WIDE_DEPTHWISE, "lower", {"per_channel": {"axis": 1}}, 3),
    ],
)
def test_rtx_computes_a_lowered_layer_in_int8(tmp_path, kind, how, granularity, kernels):
    path, x = tmp_path / "m.onnx", inputs_of(RNG(0), (2, *kind.shape[1:]))
    rows, asked = asking(kind.rows("layer", granularity), how)
    build(path, kind, rows, asked, x)
    lines = [line for line in rtx_plan(path) if "LayerType: shape_call" not in line]
    (product,) = [line for line in lines if re.search("LayerType: (gemm|correlation)", line)]
    operands = re.findall(r"Datatype: (\w+)", product.split("Outputs:")[0])
    assert operands[:2] == ["Int8", "Int8"]
    assert len(lines) == kernels  # the division is part of the quantize kernel


@pytest.mark.parametrize("fmt", ["int8", "fp8"])
def test_rtx_computes_a_simulated_layer_in_float(tmp_path, fmt):
    rows = WIDE_CONV.rows("layer", "per_element", fmt)
    x = inputs_of(RNG(0), (2, *WIDE_CONV.shape[1:]))
    how = {"layer.input": "simulate", "layer.weight": "simulate"}
    build(tmp_path / "m.onnx", WIDE_CONV, rows, how, x)
    (product,) = [n for n in rtx_plan(tmp_path / "m.onnx") if "LayerType: correlation" in n]
    assert set(re.findall(r"Datatype: (\w+)", product)) == {"Float"}


def test_every_lowering_that_is_promised_can_be_made():
    assert set(LOWERINGS) == set(get_args(Method)) - {"simulated"}
