"""Skip inputs of residual adds, found, calibrated, written and audited; scales that are shared."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from hashlib import sha256

import modelopt.torch.opt as mto
import modelopt.torch.quantization as mtq
import numpy as np
import onnx
import pytest
import torch
from conftest import Project
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_values import quantized_row
from torch import nn

import granplugin
import granplugin.modelopt_bridge as bridge
from granplugin.backends import backend_of
from granplugin.backends.nvidia.plan_reader import read_layers_text
from granplugin.calibration.statistics import find_amax, needs_of, share_amax
from granplugin.errors import ModelError, RecipeError, Unhonoured
from granplugin.graph.edit.fold import weights_of
from granplugin.graph.edit.qdq import insert
from granplugin.graph.files import load_float, save
from granplugin.graph.read.verify import read_back
from granplugin.network.export import export_float
from granplugin.network.trace import trace
from granplugin.planning.plan import make_plan, preset_plan
from granplugin.planning.rows import Plan
from granplugin.quant.layers import Layer, layer_from_json, layer_to_json
from granplugin.recipe.load import load_recipe
from granplugin.report.schema.run import Report

NETS = '''
import operator

import torch
from torch import nn


class Added(nn.Module):
    def forward(self, x, y):
        return x + y


class Block(nn.Module):
    """x + conv2(conv1(x)), written in one of many ways; with more channels, x goes through down."""

    WAYS = (
        "x + y", "y + x", "y += x", "x += y", "torch.add", "iadd", "module", "slice += y", "out",
        "kept float",
    )  # fmt: skip

    def __init__(self, inside, outside, way):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.down = nn.Conv2d(inside, outside, 1) if inside != outside else None
        self.added = Added()
        self.way = way

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        x = x if self.down is None else self.down(x)
        if self.way == "x + y":
            y = x + y
        elif self.way == "y + x":
            y = y + x
        elif self.way == "y += x":
            y += x
        elif self.way == "x += y":
            x = x * 1.5
            x += y
            y = x
        elif self.way == "torch.add":
            y = torch.add(input=x, other=y)
        elif self.way == "iadd":
            y = operator.iadd(y, x)
        elif self.way == "module":
            y = self.added(x, y)
        elif self.way == "slice += y":
            x = torch.cat([x, x.tanh()], 1)[:, : x.shape[1]]
            x += y
            y = x
        elif self.way == "out":
            y = torch.add(y, x, out=torch.empty_like(y))
        return y.relu()


class Residual(nn.Module):
    def __init__(self, ways, wider=()):
        super().__init__()
        widths = [8]
        for number in range(len(ways)):
            widths.append(widths[-1] * 2 if number in wider else widths[-1])
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        blocks = zip(widths, widths[1:], ways)
        self.blocks = nn.Sequential(*(Block(*block) for block in blocks))
        self.head = nn.Linear(widths[-1], 4)

    def forward(self, image):
        return self.head(self.blocks(self.stem(image).relu()).mean((2, 3)))


def residual(ways=Block.WAYS[:-1], wider=(2,)):
    torch.manual_seed(0)
    return Residual(ways, wider)


def six_ways():
    return residual(("x + y", "module", "y += x", "x += y", "slice += y", "out"))


class Inception(nn.Module):
    """Branches that are concatenated; what one of them puts out is read by another too."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.one = nn.Conv2d(16, 16, 1)
        self.three = nn.Conv2d(16, 16, 3, padding=1)
        self.five = nn.Conv2d(16, 16, 3, padding=1)
        self.behind = nn.Conv2d(48, 16, 1)
        self.head = nn.Linear(16, 4)
        with torch.no_grad():
            self.one.weight *= 4

    def forward(self, image):
        x = self.stem(image).relu()
        one, three = self.one(x).relu(), self.three(x).relu()
        joined = torch.cat([one, three, self.five(three).relu()], 1)
        return self.head(self.behind(joined).relu().mean((2, 3)))


def inception():
    torch.manual_seed(0)
    return Inception()


def from_transformers(name, **config):
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, f"{name}Config")(num_labels=4, **config)
    model = getattr(transformers, f"{name}ForImageClassification")(made)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # else activations fade away, layer by layer
            nn.init.kaiming_normal_(module.weight)
    return model
'''
MADE: dict = {}
exec(NETS, MADE)  # the recipes' nets.py, as a module of this test
WAYS = MADE["Block"].WAYS
RESNET_50 = {  # its blocks and adds, a sixteenth of its width
    "depths": [3, 4, 6, 3], "hidden_sizes": [16, 32, 64, 128], "embedding_size": 4,
}  # fmt: skip
MOBILENET_V2 = {"image_size": 32, "depth_multiplier": 0.5}
needs_rtx = pytest.mark.skipif(
    backend_of("tensorrt_rtx").unavailable() is not None, reason="TensorRT-RTX is not installed"
)


def layers_of(model: nn.Module, example) -> tuple[Layer, ...]:
    return trace(model.eval(), example).layers


def skips_of(layers) -> dict[str, Layer]:
    return {layer.name: layer for layer in layers if layer.site("skip")}


def joined(layers) -> int:
    """Skip inputs that a layer reads too."""
    read = {layer.site("input").tensor for layer in layers if layer.site("weight")}
    return sum(layer.site("skip").tensor in read for layer in skips_of(layers).values())


# Finding them.


@settings(deadline=None, max_examples=12)
@given(
    st.lists(st.sampled_from(WAYS), min_size=1, max_size=5),
    st.sets(st.integers(0, 4), max_size=2),
)
def test_the_last_layer_of_each_branch_has_the_skip_however_the_add_is_written(ways, wider):
    layers = layers_of(MADE["Residual"](ways, wider), torch.randn(2, 1, 8, 8))
    by_name = {layer.name: layer for layer in layers}
    adds = [number for number, way in enumerate(ways) if way != "kept float"]
    assert list(skips_of(layers)) == [f"blocks.{number}.conv2" for number in adds]
    for number in adds:
        found = by_name[f"blocks.{number}.conv2"]
        # x itself where nothing is done to it: the tensor that conv1 reads.
        untouched = number not in wider and ways[number] not in ("x += y", "slice += y")
        same = found.site("skip").tensor == by_name[f"blocks.{number}.conv1"].site("input").tensor
        assert same == untouched
        assert found.shape("skip") == found.shape("output")
        assert layer_from_json(json.loads(json.dumps(layer_to_json(found)))) == found


@pytest.mark.parametrize(
    "name, config, size, adds, shared, owner",
    [
        ("ResNet", RESNET_50, 64, 16, 12, "layer.2.convolution"),
        ("MobileNetV2", MOBILENET_V2, 32, 10, 10, "reduce_1x1.convolution"),
        (
            "ViT",
            {"image_size": 16, "patch_size": 8, "hidden_size": 8, "num_hidden_layers": 2,
             "num_attention_heads": 2, "intermediate_size": 16},
            16, 4, 0, None,
        ),
    ],
)  # fmt: skip
def test_a_known_architecture_has_its_adds(name, config, size, adds, shared, owner):
    model = MADE["from_transformers"](name, **config)
    layers = layers_of(model, {"pixel_values": torch.randn(2, 3, size, size)})
    found = skips_of(layers)
    assert (len(found), joined(layers)) == (adds, shared)
    assert owner is None or all(each.endswith(owner) for each in found)


class Odd(nn.Module):
    """Adds that are no residual adds of a layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(1, 1, 1) for _ in range(4))
        self.position = nn.Parameter(torch.randn(1, 1, 4, 4))

    def forward(self, x):
        y = self.a(x)  # read by two: its add could not be fused
        z = self.b(y + x).relu() + y
        w = self.c(z) + self.position  # no data
        v = self.d(z)
        v[..., 1:] += x[..., 1:]  # a part of it: the rest goes on without
        w = w + v.mean((2, 3), keepdim=True)
        return w + z.mean((2, 3), keepdim=True)


def test_an_add_that_cannot_be_fused_into_one_layer_is_no_site():
    layers = layers_of(Odd(), torch.randn(2, 1, 4, 4))
    assert list(skips_of(layers)) == ["b"]


# What is planned for them.


class SharedAdd(nn.Module):
    """One convolution for two branches, whose results are added: directly, or by what follows."""

    def __init__(self, direct=True):
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head, self.direct = nn.Conv2d(8, 4, 1), direct

    def forward(self, image):
        x = self.stem(image).relu()
        a, b = self.shared(x), self.shared(nn.functional.max_pool2d(x, 3, 1, 1))
        return self.head((a + b if self.direct else a.relu() + b.sigmoid()).relu())


@pytest.mark.parametrize("direct", [True, False])
def test_results_of_one_module_that_are_added_are_no_skips_and_work(tmp_path, direct):
    layers = layers_of(SharedAdd(direct).eval(), torch.randn(2, 3, 16, 16))
    assert skips_of(layers) == {}
    assert next(layer for layer in layers if layer.name == "shared").calls == 2
    made = Project(tmp_path)
    made.write(
        "nets.py",
        f"from test_skips import SharedAdd\n\n\ndef net():\n    return SharedAdd({direct})\n",
    )
    images = np.random.default_rng(0).standard_normal((16, 3, 16, 16), np.float32)
    made.arrays = {"images": images}
    source = {"npz": "data.npz", "inputs": {"image": "images"}}
    made.recipe(
        model={"callable": "nets.py:net"}, data={"calibration": source}, metrics=["sqnr_db"]
    )
    done = made.apply()
    assert done.code == 0, done.stderr
    assert made.report().variants[-1].quantized_sites == 6


def planned(folder, model: nn.Module, example, **recipe) -> Plan:
    path = folder / "r.yaml"
    text = {
        "version": 1,
        "model": {"callable": "a:b"},
        "data": {"calibration": {"callable": "a:c"}},
    }
    path.write_text(json.dumps({**text, **recipe}))
    return make_plan(load_recipe(path), layers_of(model, example))


IMAGE = torch.randn(2, 1, 8, 8)


def test_which_preset_quantizes_the_skips_of_convolutions_and_what_is_added_to_them(tmp_path):
    model = MADE["residual"]()
    plan = planned(tmp_path, model, IMAGE)
    skips = [row for row in plan.quantized if row.operand == "skip"]
    assert [row.layer for row in skips] == [f"blocks.{n}.conv2" for n in range(len(model.blocks))]
    assert {(row.format, row.scales) for row in skips} == {("int8", 1)}
    loaded = load_recipe(tmp_path / "r.yaml")
    bare = preset_plan("modelopt@0.47", layers_of(model, IMAGE), loaded)
    assert not [row for row in bare.quantized if row.operand == "skip"]
    openvino = preset_plan("openvino@2026.4", layers_of(model, IMAGE), loaded)
    added = {row.layer for row in openvino.quantized if row.operand == "output"}
    assert added == {row.layer for row in skips}
    assert {row.site for row in openvino.quantized} - {row.site for row in plan.quantized} == {
        f"{layer}.output" for layer in added
    }
    vit = MADE["from_transformers"](
        "ViT", image_size=16, patch_size=8, hidden_size=8, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16,
    )  # fmt: skip
    plan = planned(tmp_path, vit, {"pixel_values": torch.randn(2, 3, 16, 16)})
    assert [row.quantized for row in plan.rows if row.operand == "skip"] == [False, False]


class Normed(nn.Module):
    """A residual add behind a batch norm."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.stem(x)
        return x + self.bn(self.conv(x))


def test_counting_what_a_layer_puts_out_is_not_taken_for_the_residual_add(tmp_path):
    seen = []
    for calibrator in ("max", "mse"):
        model, each = Normed().eval(), {"format": "int8", "calibrator": calibrator}
        model.load_state_dict({k: torch.ones_like(v) for k, v in model.state_dict().items()})
        plan = planned(
            tmp_path, model, IMAGE, rules=[{"match": "conv", "skip": each, "output": each}]
        )
        rows = [row for row in plan.quantized if row.operand in ("skip", "output")]
        layers = layers_of(model, IMAGE)
        needs = needs_of(rows)
        _, found = bridge.convert(model, needs, lambda net: [net(IMAGE), net(IMAGE)], layers)
        seen.append({row.site: found.largest(row) for row in rows})
    assert seen[0] == seen[1] and len(seen[0]) == 2


def test_openvinos_preset_clips_by_mse_what_has_values_enough(tmp_path):
    planned(tmp_path, MADE["residual"](), IMAGE)
    loaded = load_recipe(tmp_path / "r.yaml")
    found = preset_plan("openvino@2026.4", layers_of(MADE["residual"](), IMAGE), loaded).quantized
    kinds = {row.site: str(row.calibrator) for row in found}
    assert {kinds[site] for site in kinds if site.endswith(".weight")} == {"max"}
    assert kinds["head.input"] == kinds["stem.input"] == "max", "16 and 64 values in a sample"
    others = [site for site in kinds if site.startswith("blocks") and ".weight" not in site]
    assert {kinds[site] for site in others} == {"mse"}


@pytest.mark.parametrize(
    "rules, quantized",
    [
        ([{"match": "**.conv2", "skip": "float"}], set()),
        ([{"match": "**.conv2", "format": "float"}], set()),
        ([{"match": "**.conv2", "weight": "float", "input": "float"}], set()),
        ([{"match": "blocks.0.conv2", "skip": "float"}], set(range(1, 9))),
    ],
)
def test_a_skip_is_float_where_a_rule_says_so_or_its_layer_is_float(tmp_path, rules, quantized):
    plan = planned(tmp_path, MADE["residual"](), IMAGE, rules=rules)
    found = {int(row.layer.split(".")[1]) for row in plan.quantized if row.operand == "skip"}
    assert found == quantized


def test_a_skip_has_the_range_of_what_reads_the_same_tensor_unless_a_rule_says_another(tmp_path):
    pinned = {"match": "**.conv1", "input": {"calibrator": "entropy"}}
    own = {"match": "blocks.1.conv2", "skip": {"calibrator": "mse"}}
    plan = planned(tmp_path, MADE["residual"](), IMAGE, rules=[pinned, own])
    rows = {row.site: row for row in plan.rows}
    assert str(rows["blocks.0.conv2.skip"].calibrator) == "entropy"
    assert rows["blocks.0.conv2.skip"].note == "one Q/DQ with blocks.0.conv1.input"
    assert str(rows["blocks.1.conv2.skip"].calibrator) == "mse"
    assert str(rows["blocks.2.conv2.skip"].calibrator) == "max"  # behind down: a tensor of its own
    assert rows["blocks.1.conv2.skip"].note is rows["blocks.2.conv2.skip"].note is None


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("rules", [{"match": "stem", "skip": "float"}], "join no residual add"),
        ("share", [{"match": "stm"}], "'stm' matches no layer; nearest: 'stem'"),
        ("share", [{"match": "stem"}], "two inputs at least"),
        ("share", [{"match": ["stem", "head"], "role": "weight"}], "has one format"),
        ("share", "concat", "no concatenation"),
        ("share", "concats", "share takes concat"),
    ],
)
def test_what_cannot_be_is_an_error_at_its_line(tmp_path, key, value, message):
    with pytest.raises(RecipeError, match=message) as error:
        planned(tmp_path, MADE["residual"](), IMAGE, **{key: value})
    assert str(error.value).startswith(f"{tmp_path / 'r.yaml'}:1:")


@pytest.mark.parametrize("share", ["concat", {"match": ["five", "behind"]}])
def test_sites_around_a_concat_share_the_largest_amax_however_it_is_said(tmp_path, share):
    rows = planned(tmp_path, MADE["inception"](), IMAGE, share=share).quantized
    shared = [row for row in rows if row.share]
    assert [row.site for row in shared] == ["five.input", "behind.input"]
    amax = {row.site: np.full(row.grid, at, np.float32) for at, row in enumerate(rows, 1)}
    found = share_amax(rows, amax)
    largest = max(float(amax[row.site].max()) for row in shared)
    assert {float(found[row.site].max()) for row in shared} == {largest}
    assert all(found[row.site] is amax[row.site] for row in rows if not row.share)


@given(st.lists(st.lists(st.floats(0.5, 9), min_size=4, max_size=4), min_size=2, max_size=4))
def test_a_shared_per_channel_amax_is_the_largest_of_each_channel(cells):
    rows = [
        quantized_row(f"c{n}.weight", (4, 2, 3, 3), "per_channel", share="s")
        for n in range(len(cells))
    ]
    amax = {r.site: np.float32(c).reshape(r.grid) for r, c in zip(rows, cells, strict=True)}
    found = share_amax(rows, amax)
    for row in rows:
        assert (found[row.site].reshape(-1) == np.float32(cells).max(0)).all()


# What is written, and what engines make of it.


def project(folder, callable: str, size: int = 16, **recipe) -> Project:
    made = Project(folder)
    made.write("nets.py", NETS)
    args = recipe.pop("args", {})
    channels = 3 if args else 1
    rng = np.random.default_rng(0)
    made.arrays = {"images": rng.standard_normal((16, channels, size, size), np.float32)}
    name = "pixel_values" if args else "image"
    recipe = {
        "model": {"callable": f"nets.py:{callable}", "args": args},
        "data": {"calibration": {"npz": "data.npz", "inputs": {name: "images"}}, "batch_size": 16},
        "metrics": ["sqnr_db"],
        "optional_engines": ["tensorrt_rtx"],
        **recipe,
    }
    made.recipe(**recipe)
    done = made.apply()
    assert done.code == 0, done.stderr
    return made


def quantize_nodes(path) -> Counter:
    return Counter(node.op_type for node in onnx.load(path).graph.node)["QuantizeLinear"]


def verdicts(report: Report, variant: str = "recipe") -> Counter:
    (found,) = [v for v in report.variants if v.name == variant]
    return Counter(
        (verdict.promise, verdict.verdict)
        for engine in found.engines
        if engine.engine == "tensorrt_rtx"
        for verdict in engine.verdicts
        if verdict.site.endswith(".skip")
    )


@pytest.fixture(scope="module")
def residual(tmp_path_factory) -> Project:
    """What the ways to write an add come to in a file - in order, in place on either side and on a
    slice, by a module -, through the whole path."""
    variants = {
        "no-skips": {"rules": [{"match": "**.conv2", "skip": "float"}]},
        "coarse": {"rules": [{"match": {"type": "Conv2d"}, "weight": "per_tensor"}]},
        "dynamic": {
            "rules": [
                {
                    "match": {"type": "Conv2d"},
                    "input": {"per_tensor": {"dynamic": True}},
                    "on_unsupported": "lower",
                }
            ]
        },
    }
    return project(tmp_path_factory.mktemp("residual"), "six_ways", variants=variants)


def test_a_shared_tensor_has_one_pair_and_another_its_own(residual):
    folder = residual.out / "variants"
    # 6 blocks: the skip of the one with `down`, of the one that scales x, and the slice are their own.
    assert quantize_nodes(folder / "recipe" / "model.onnx") == 3 + quantize_nodes(
        folder / "no-skips" / "model.onnx"
    )


def test_modelopt_and_the_oracle_agree_with_what_is_written(residual):
    for variant in residual.report().variants[1:]:
        assert variant.agreement.oracle_differs == 0
        # Without the skips' quantizers modelopt's network is at 45 dB.
        assert float(variant.agreement.network_sqnr_db) > 50


def test_a_skip_is_found_behind_a_layer_whose_scales_are_computed_at_run_time(residual):
    folder = residual.out / "variants"
    # One pair more for each of the 6 skips: none has the scale of a layer's input any more.
    assert quantize_nodes(folder / "dynamic" / "model.onnx") == 6 + quantize_nodes(
        folder / "no-skips" / "model.onnx"
    )


@needs_rtx
def test_the_add_reads_8_bits_where_it_is_promised_and_float_elsewhere(residual):
    found = verdicts(residual.report())
    assert found["native", "honoured"] == 3 and found.total() == 6
    assert found["simulated", "degraded"] >= 1  # behind `down`, which writes float
    assert verdicts(residual.report(), "coarse") == {("simulated", "degraded"): 6}
    assert bytes_moved(residual, "recipe") < bytes_moved(residual, "no-skips")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two blocks as Q/DQ ONNX: the file, its rows, amax and float weights."""
    folder = tmp_path_factory.mktemp("written")
    model, images = MADE["residual"](("y += x", "x += y"), ()), torch.randn(16, 1, 8, 8)
    rows = planned(folder, model, images[:2]).quantized
    rows = [replace(row, bn=None) for row in rows]
    layers = layers_of(model, images[:2])
    model, seen = bridge.convert(model, needs_of(rows), lambda net: net(images), layers)
    with bridge.marked(model):
        export_float(model, images[:2], folder / "float.onnx")
    floats = load_float(folder / "float.onnx")
    weights = weights_of(floats, rows)
    amax = {row.site: find_amax(row, seen, weights.get(row.layer)) for row in rows}
    save(insert(floats, rows, amax), folder / "model.onnx")
    return folder / "model.onnx", rows, amax, weights


def nodes_of(model: onnx.ModelProto, scope: str) -> dict[str, onnx.NodeProto]:
    return {n.op_type: n for n in model.graph.node if n.name.rpartition("/")[0] == scope}


def left_float(model: onnx.ModelProto) -> None:
    add = nodes_of(model, "blocks.1")["Add"]
    pair = nodes_of(model, "blocks.1.conv2.skip")
    at = list(add.input).index(pair["DequantizeLinear"].output[0])
    add.input[at] = pair["QuantizeLinear"].input[0]


def read_through_another_pair(model: onnx.ModelProto) -> None:
    add = nodes_of(model, "blocks.0")["Add"]
    own = nodes_of(model, "blocks.0.conv1.input")["DequantizeLinear"].output[0]
    other = nodes_of(model, "blocks.0.conv2.input")["DequantizeLinear"].output[0]
    add.input[list(add.input).index(own)] = other


def given_another_scale(model: onnx.ModelProto) -> None:
    other = nodes_of(model, "blocks.1.conv1.input")["QuantizeLinear"].input[1]
    for node in nodes_of(model, "blocks.1.conv2.skip").values():
        node.input[1] = other


def also_read_elsewhere(model: onnx.ModelProto) -> None:
    mul = nodes_of(model, "blocks.1")["Mul"]
    mul.input[0] = nodes_of(model, "blocks.1.conv1.input")["DequantizeLinear"].output[0]


@pytest.mark.parametrize(
    "change", [left_float, read_through_another_pair, given_another_scale, also_read_elsewhere]
)
def test_a_changed_skip_does_not_pass_for_the_plan(written, tmp_path, change):
    path, rows, amax, weights = written
    read_back(path, rows, amax, weights)
    model = onnx.load(path)
    change(model)
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(Unhonoured):
        read_back(tmp_path / "changed.onnx", rows, amax, weights)


def test_a_script_of_ones_own_quantizes_saves_and_restores_skips(tmp_path):
    folder, images = tmp_path, torch.randn(16, 1, 8, 8)
    planned(folder, MADE["residual"](), IMAGE)

    def prepared() -> nn.Module:
        return granplugin.prepare(MADE["residual"]().eval(), folder / "r.yaml", IMAGE)

    model = prepared()
    config = granplugin.modelopt_config(folder / "r.yaml", model)
    model = mtq.quantize(model, config, lambda net: net(images))
    sites = [site for site in bridge.sites_of(model) if site["role"] == "skip"]
    assert len(sites) == 9 and all(site["grid"] is not None for site in sites)
    mto.save(model, folder / "model.pt")
    restored = mto.restore(prepared(), folder / "model.pt").eval()
    with torch.no_grad():
        quantized = model.eval()(images)
        assert torch.equal(restored(images), quantized)
        model.blocks[2].conv2.skip_quantizer.disable()
        assert not torch.equal(model(images), quantized)


def test_a_forward_that_leaves_out_the_add_is_an_error_not_a_float_skip():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.add = nn.Conv2d(1, 1, 1), True

        def forward(self, x):
            return x + self.conv(x) if self.add else self.conv(x)

    model = Sometimes()
    layers = trace(model, torch.randn(2, 1, 4, 4)).layers
    model, _ = bridge.convert(model, [], lambda net: None, layers)
    model(torch.randn(2, 1, 4, 4))
    model.add = False
    with pytest.raises(ModelError, match="conv.skip: the residual add behind it did not take"):
        model(torch.randn(2, 1, 4, 4))


def test_a_network_of_transformers_has_one_verdict_for_each_add(tmp_path):
    adds, own = 3, 2  # with a convolution of their own where the width changes
    args = {"name": "ResNet", "depths": [1, 2], "hidden_sizes": [16, 32], "embedding_size": 4}
    made = project(tmp_path, "from_transformers", 32, args=args, baselines=["fp32"])
    (variant,) = [v for v in made.report().variants if v.name == "recipe"]
    assert variant.agreement.oracle_differs == 0
    assert variant.agreement.modelopt_worst_steps <= 1
    if backend_of("tensorrt_rtx").unavailable() is None:
        shared = {("native", "honoured"): adds - own, ("simulated", "degraded"): own}
        assert verdicts(made.report()) == +Counter(shared)


@needs_rtx
def test_a_mobilenet_adds_in_8_bits_wherever_it_is_asked_to(quickstart):
    for variant in ("tensorrt@11", "bn-kept"):
        assert verdicts(quickstart.report, variant) == {("native", "honoured"): 10}
    assert not verdicts(quickstart.report, "digits_mobilenet")  # whose rule says float


def bytes_moved(made: Project, variant: str) -> int:
    (found,) = [v for v in made.report().variants if v.name == variant]
    (engine,) = [e for e in found.engines if e.engine == "tensorrt_rtx"]
    return engine.moved.total


@needs_rtx
def test_inputs_of_a_concat_that_share_a_scale_are_stored_in_8_bits(tmp_path):
    variants = {"apart": {"set": {"share": []}}}
    made = project(tmp_path, "inception", share="concat", variants=variants)
    assert bytes_moved(made, "recipe") < bytes_moved(made, "apart")


@needs_rtx
def test_a_transformers_skips_can_be_quantized_and_q_k_and_v_have_one_quantize_kernel(tmp_path):
    config = {
        "name": "ViT", "image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 64,
    }  # fmt: skip
    skips = {"match": {"type": "Linear"}, "skip": {"format": "int8", "granularity": "per_tensor"}}
    variants = {"skips": {"rules": [skips]}}
    made = project(
        tmp_path, "from_transformers", 16, args=config, baselines=["fp32"], variants=variants
    )
    assert verdicts(made.report(), "skips").total() == 2 and not verdicts(made.report())
    plans = {}
    for variant in ("recipe", "skips"):
        (folder,) = [
            engine.parent
            for engine in made.out.glob("cache/*tensorrt_rtx/engine.json")
            if json.loads(engine.read_text())["onnx_sha256"]
            == sha256(made.onnx(variant)).hexdigest()
        ]
        plans[variant] = read_layers_text((folder / "layers.txt").read_text())
    for plan in plans.values():
        projections = [f"vit.layers.0.attention.{name}_proj/MatMul" for name in "qkv"]
        read = {
            tensor.name
            for kernel in plan.kernels
            if kernel.kind == "gemm" and not set(projections).isdisjoint(kernel.onnx_nodes)
            for tensor in kernel.inputs
        }
        written = [k for k in plan.kernels for tensor in k.outputs if tensor.name in read]
        assert len(read) == len(written) == 1
        assert {t.dtype for k in written for t in k.outputs if t.name in read} == {"int8"}
