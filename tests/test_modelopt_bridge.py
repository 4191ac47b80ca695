import copy
import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import NETS, run_main
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_values import layer_of, quantized_row
from torch import nn

from granplugin import modelopt_bridge as bridge
from granplugin.calibration.statistics import Need, Statistics, find_amax
from granplugin.data.batches import calibration_sizes
from granplugin.errors import DataError, ModelError, UserError
from granplugin.modelopt_bridge import library
from granplugin.modelopt_bridge.chatter import quiet
from granplugin.modelopt_bridge.late import compiled_late
from granplugin.modelopt_bridge.library import TensorQuantizer, mto, mtq
from granplugin.modelopt_bridge.observe import observe
from granplugin.planning.row_json import row_from_json
from granplugin.planning.rows import as_float
from granplugin.quant.calibrators import Calibrator, histogram
from granplugin.quant.formats import FORMATS, fake_quantize, scale_of
from granplugin.quant.granularity import DoesNotApply, reduce_blocks

GRANULARITIES = [
    "per_tensor",
    "per_channel",
    {"per_channel": {"axis": -1}},
    {"per_block": {"size": 2}},
    {"per_block": {"size": 2, "axis": 1}},
    "per_element",
]


def row(layer, role, shape, granularity="per_tensor", channel_axis=0, **changed):
    site = f"{layer}.{role}"
    return quantized_row(site, shape, granularity, channel_axis=channel_axis, **changed)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.add_module("a[0]*", nn.Linear(8 * 6 * 6, 16))
        self.add_module("a0b", nn.Linear(16, 4))
        self.eval()

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x)))
        return self.a0b(torch.relu(getattr(self, "a[0]*")(x.flatten(1))))


IMAGES = torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(1))
ROWS = [
    row("conv", "weight", (8, 3, 3, 3), {"per_block": {"shape": [2, 1, 3, 3]}}),
    row("conv", "input", (1, 3, 6, 6), "per_element"),
    row("a[0]*", "weight", (16, 288), {"per_block": {"size": 16}}, format="int4"),
    row("a[0]*", "input", (1, 288), calibrator=Calibrator("percentile", 99.9)),
    row("a0b", "weight", (4, 16), "per_channel", format="fp8"),
    row("bn", "output", (1, 8, 6, 6), "per_channel", 1, calibrator=Calibrator("mse")),
]
OTHER_ROWS = [
    row("conv", "weight", (8, 3, 3, 3), "per_element"),
    row("a[0]*", "weight", (16, 288), {"per_block": {"size": 32}}),
    row("a[0]*", "input", (1, 288), "per_element"),
]


def forward_loop(model):
    for images in IMAGES.split(16):
        model(images)


def predict(model):
    with torch.no_grad():
        return model(IMAGES)


def enabled(model):
    return {n for n, m in model.named_modules() if isinstance(m, TensorQuantizer) and m.is_enabled}


@st.composite
def tensors_with_granularity(draw):
    """A row, amax for it, and a tensor with values on and off the rounding boundaries."""
    role = draw(st.sampled_from(["weight", "input"]))
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 4, 6]), min_size=2, max_size=4)))
    shape = shape if role == "weight" else (1, *shape[1:])
    name = draw(st.sampled_from(list(FORMATS)))
    try:
        which = row(
            "l", role, shape, draw(st.sampled_from(GRANULARITIES)), role == "input", format=name
        )
    except DoesNotApply:
        which = row("l", role, shape, format=name)
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    batch = draw(st.integers(1, 3)) if role == "input" else shape[0]
    x = rng.standard_normal((batch, *shape[1:])).astype(np.float32)
    if draw(st.booleans()):
        x = np.round(x * 8) / 8
    exponent = draw(st.integers(-20, 20))
    grid = (rng.uniform(0.1, 3, which.grid) * 2.0**exponent).astype(np.float32)
    grid = FORMATS[name].fit(grid)
    return which, grid, (x * np.float32(2.0**exponent)).astype(np.float32)


@settings(deadline=None, max_examples=200)
@given(tensors_with_granularity())
def test_modelopt_rounds_as_the_oracle_does_but_for_ties(case):
    which, amax, x = case
    fmt = FORMATS[which.format]
    scale = scale_of(amax, fmt)
    ratio, ours = (
        reshaped.astype(np.float64)
        for reshaped in (
            x / _expanded(scale, which),
            fake_quantize(x, scale, which.block, fmt) / _expanded(scale, which),
        )
    )
    theirs = bridge.fake_quantize(x, which, amax) / _expanded(scale, which)
    codes, their_codes = (
        np.round(v * 512).astype(np.float64) / 512 if not fmt.integer else np.round(v)
        for v in (ours, theirs)
    )
    np.testing.assert_allclose(theirs, their_codes, rtol=1e-5, atol=1e-5)
    differs = codes != their_codes
    # One step apart: the value lies in the middle between the two, so nothing lies between them.
    middle = ((codes + their_codes) / 2)[differs]
    np.testing.assert_allclose(ratio[differs], middle, rtol=1e-5, atol=1e-6)


def _expanded(scale, which):
    for axis, part in enumerate(which.block):
        scale = np.repeat(scale, part, axis)
    return scale


def test_the_config_is_everything_off_then_one_exact_entry_per_row():
    config = bridge.config([*ROWS, as_float(row("conv", "output", (1, 8, 6, 6)))])
    assert config["quant_cfg"][:3] == [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "conv.weight_quantizer", "cfg": {"num_bits": 8, "axis": (0, 1)}},
        {"quantizer_name": "conv.input_quantizer", "cfg": {"num_bits": 8, "axis": (1, 2, 3)}},
    ]
    assert len(config["quant_cfg"]) == 1 + len(ROWS)
    sites = json.loads(json.dumps(config["algorithm"]["sites"]))
    assert [row_from_json(site) for site in sites] == ROWS


def test_names_that_look_like_patterns_match_only_themselves():
    model = mtq.quantize(Net(), bridge.config([ROWS[2]]))
    assert enabled(model) == {"a[0]*.weight_quantizer"}


@pytest.fixture(scope="module")
def quantized():
    return mtq.quantize(Net(), bridge.config(ROWS), forward_loop)


def test_the_mode_sets_each_quantizer_from_its_weight_or_the_data(quantized):
    float_model, statistics = bridge.convert(
        Net(), [Need("conv.input", (1, 1, 1, 1), False, (1, 3, 6, 6))], forward_loop
    )
    sites = {site["quantizer"]: site["grid"] for site in bridge.sites_of(quantized)}
    weight = float_model.conv.weight.detach().abs().numpy()
    np.testing.assert_array_equal(
        sites["conv.weight_quantizer"], reduce_blocks(weight, (2, 1, 3, 3))
    )
    np.testing.assert_array_equal(
        sites["conv.input_quantizer"], np.abs(IMAGES.numpy()).max(0, keepdims=True)
    )
    assert enabled(quantized) == set(sites) and len(sites) == len(ROWS)
    assert statistics.samples == 40


def test_the_network_computes_with_the_oracles_rounding():
    weight_only = [ROWS[0], replace(ROWS[4], format="int8")]
    model = mtq.quantize(Net(), bridge.config(weight_only))
    reference = Net().eval()
    for which in weight_only:
        parameter = reference.get_submodule(which.layer).weight
        values = parameter.detach().numpy()
        fmt = FORMATS[which.format]
        scale = scale_of(find_amax(which, weight=values), fmt)
        parameter.data = torch.from_numpy(fake_quantize(values, scale, which.block, fmt))
    torch.testing.assert_close(predict(model.eval()), predict(reference), rtol=1e-4, atol=1e-5)


def test_any_batch_size_runs_with_every_granularity(quantized):
    whole = predict(quantized)
    for size in (1, 7, 40):
        parts = torch.cat([quantized(images) for images in IMAGES.split(size)])
        torch.testing.assert_close(parts, whole, rtol=0.1, atol=0.05)


def test_a_saved_model_restores_bit_for_bit_in_a_fresh_process(quantized, tmp_path, forks):
    again = mtq.quantize(copy.deepcopy(quantized), bridge.config(OTHER_ROWS), forward_loop)
    for name, model in {"first": quantized, "second": again}.items():
        mto.save(model, tmp_path / f"{name}.pt")
        torch.save(predict(model), tmp_path / f"{name}.outputs.pt")
    script = f"""
import sys
sys.path.insert(0, {str(__file__.rpartition("/")[0])!r})
import torch
import granplugin.modelopt_bridge as bridge
from granplugin.planning.row_json import row_from_json
from test_modelopt_bridge import Net, OTHER_ROWS, ROWS, mto, predict
for name, rows in (("first", ROWS), ("second", OTHER_ROWS)):
    torch.load({str(tmp_path)!r} + f"/{{name}}.pt", weights_only=True)
    model = mto.restore(Net(), {str(tmp_path)!r} + f"/{{name}}.pt").eval()
    assert torch.equal(predict(model), torch.load({str(tmp_path)!r} + f"/{{name}}.outputs.pt"))
    sites = bridge.sites_of(model)
    assert [row_from_json(site) for site in sites] == rows
    assert all(site["grid"].shape == row.grid for site, row in zip(sites, rows))
"""
    done = forks.run(["-c", script])
    assert done.returncode == 0, done.stderr


def test_loading_the_same_amax_equals_quantizing(quantized):
    converted, _ = bridge.convert(Net(), [], forward_loop)
    torch.testing.assert_close(predict(converted), predict(Net().eval()), rtol=0, atol=0)
    grids = {
        site["layer"] + "." + site["role"]: site["grid"] for site in bridge.sites_of(quantized)
    }
    bridge.load_amax(converted, OTHER_ROWS[:1], {"conv.weight": np.ones((8, 3, 3, 3), "f4")})
    bridge.load_amax(converted, ROWS, grids, passing=True)
    assert torch.equal(predict(converted), predict(quantized))
    assert not any(name.endswith("_amax") for name in converted.state_dict())
    bridge.load_amax(converted, ROWS, grids)
    assert torch.equal(predict(converted), predict(quantized))
    assert [row_from_json(site) for site in bridge.sites_of(converted)] == ROWS
    with pytest.raises(ModelError, match=r"conv: the plan folds bn into it"):
        bridge.load_amax(converted, [replace(ROWS[0], bn="fold", bn_name="bn")], grids)


SHAPE = (1, 4, 2, 6)
BLOCKS = [(1, 4, 2, 6), (1, 1, 2, 6), (1, 2, 1, 3), (1, 4, 2, 1), (1, 1, 1, 1)]
NEEDS = [Need("0.input", block, histogram, SHAPE) for block in BLOCKS for histogram in (0, 1)]


@pytest.fixture(scope="module")
def passive():
    """A network whose first layer sees exactly the data."""
    return bridge.convert(nn.Sequential(nn.LeakyReLU()), [], lambda model: None)[0]


@settings(deadline=None, max_examples=15)
@given(st.permutations(range(12)), st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_statistics_do_not_depend_on_batches_or_order(passive, order, sizes):
    data = torch.randn(12, *SHAPE[1:], generator=torch.Generator().manual_seed(2))
    sizes = [*sizes, 12]
    cuts = [0, *(min(sum(sizes[: i + 1]), 12) for i in range(len(sizes)))]

    def loop(model):
        for start, end in zip(cuts, cuts[1:], strict=False):
            if end > start:
                model(data[order][start:end])

    statistics = observe(passive, NEEDS, loop)
    assert statistics.samples == 12
    for need in NEEDS:
        amax, counts = statistics.of(need)
        expected = reduce_blocks(np.abs(data.numpy()).max(0, keepdims=True), need.block)
        np.testing.assert_array_equal(amax, expected)
        if need.histogram:
            for cell in np.ndindex(need.grid):
                where = tuple(
                    slice(i * part, (i + 1) * part)
                    for i, part in zip(cell[1:], need.block[1:], strict=True)
                )
                values = data.numpy()[(slice(None), *where)]
                np.testing.assert_array_equal(counts[cell], histogram(values))


def test_max_scales_do_not_depend_on_threads_or_order_with_our_batches():
    torch.manual_seed(3)
    net = nn.Sequential(
        *(nn.Conv2d(3, 24, 1), nn.ReLU6(), nn.Conv2d(24, 24, 3, padding=1, groups=24)),
        *(nn.ReLU6(), nn.Conv2d(24, 48, 1, stride=2), nn.BatchNorm2d(48), nn.LeakyReLU()),
    )
    data = torch.randn(40, 3, 16, 16)
    net, _ = bridge.convert(net, [], lambda model: None)
    needs = [
        Need("2.input", (1, 24, 16, 16), False, (1, 24, 16, 16)),
        Need("4.input", (1, 24, 16, 16), False, (1, 24, 16, 16)),
        Need("6.input", (1, 1, 1, 1), False, (1, 48, 8, 8)),
    ]
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for images in (data, data.flip(0)):

                def loop(model, images=images):
                    for part in images.split(calibration_sizes(len(images), 32)):
                        model(part)

                found.append(observe(net, needs, loop))
    finally:
        torch.set_num_threads(threads)
    for need in needs:
        for other in found[1:]:
            np.testing.assert_array_equal(found[0].amax[need], other.amax[need])


def test_a_layer_may_see_several_sizes_where_one_scale_spans_them(passive):
    needs = [Need("0.input", (1, 4, 2, 6), True, SHAPE), Need("0.input", (1, 1, 2, 6), True, SHAPE)]
    sizes = [torch.full((2, 4, n, n), float(n)) for n in (1, 3)]
    statistics = observe(passive, needs, lambda model: [model(x) for x in sizes])
    assert all((statistics.amax[need] == 3).all() for need in needs)
    per_element = [Need("0.input", (1, 1, 1, 1), False, SHAPE)]
    with pytest.raises(DataError, match=r"0\.input: saw a tensor of shape \[2, 4, 1, 1\]"):
        observe(passive, per_element, lambda model: [model(x) for x in sizes])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_layer_that_sees_nan_or_inf_is_named(bad):
    model = Net()
    with torch.no_grad():
        model.bn.bias[3] = bad
    needs = [
        Need(f"{layer}.input", (1, n), False, (1, n)) for layer, n in (("a0b", 16), ("a[0]*", 288))
    ]
    needs.append(Need("conv.input", (1, 3, 6, 6), True, (1, 3, 6, 6)))
    with pytest.raises(ModelError, match=r"^a\[0\]\*\.input: NaN or Inf"):
        bridge.convert(model, needs, forward_loop)


@pytest.mark.parametrize(
    "which, loop, message",
    [
        (ROWS[1], None, r"^conv\.input: inputs and outputs need calibration data"),
        (ROWS[1], lambda model: None, r"^conv\.input: never reached"),
        (row("nowhere", "input", (1, 3)), forward_loop, r"^nowhere\.input: modelopt has no quant"),
        (row("nowhere", "input", (1, 3), amax=1.0), None, r"^nowhere\.input: modelopt has no quan"),
        (replace(ROWS[0], bn="fold", bn_name="bn"), None, r"conv: the plan folds bn into it, and"),
    ],
    ids=["no data", "not reached", "no layer", "no layer, pinned", "not folded"],
)
def test_what_cannot_be_calibrated_is_one_sentence(which, loop, message):
    with pytest.raises((ModelError, DataError), match=message):
        mtq.quantize(Net(), bridge.config([which]), loop)


def test_a_site_of_zeros_stays_float_and_is_said(caplog):
    model = Net()
    nn.init.zeros_(model.conv.weight)
    with caplog.at_level(logging.WARNING):
        model = mtq.quantize(model, bridge.config([ROWS[0], ROWS[2]]))
    assert "1 of the sites" in caplog.text and "conv.weight" in caplog.text
    assert enabled(model) == {"a[0]*.weight_quantizer"}
    assert [site["grid"] is None for site in bridge.sites_of(model)] == [True, False]


def test_quantizers_that_others_switched_on_are_not_overlooked(quantized):
    model = copy.deepcopy(quantized)
    model.a0b.input_quantizer.enable()
    with pytest.raises(ModelError, match=r"^a0b\.input_quantizer is switched on"):
        bridge.sites_of(model)
    with pytest.raises(ModelError, match="was not quantized by granplugin"):
        bridge.sites_of(Net())


def test_a_large_plan_gives_the_same_model_without_an_entry_per_row(quantized, monkeypatch):
    monkeypatch.setattr("granplugin.planning.quantize_config._MOST_ENTRIES", 2)
    config = bridge.config(ROWS)
    assert len(config["quant_cfg"]) == 1
    assert torch.equal(predict(mtq.quantize(Net(), config, forward_loop)), predict(quantized))


def test_modelopts_chatter_goes_to_the_log(capsys, caplog, recwarn):
    with caplog.at_level(logging.DEBUG):
        bridge.convert(Net(), [], forward_loop)
    assert "Inserted" in caplog.text
    assert capsys.readouterr().out == "" and not recwarn.list


def test_a_model_that_is_one_layer_has_sites_too():
    which = row("", "weight", (4, 3), "per_channel")
    model = mtq.quantize(nn.Linear(3, 4), bridge.config([which]))
    assert enabled(model) == {"weight_quantizer"}
    with bridge.marked(model):
        assert model.weight_quantizer.site == which.site


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


def test_a_module_without_sites_is_not_converted_and_restored_as_it_was():
    model, _ = bridge.convert(
        Recurrent(), [], lambda model: None, layers=[layer_of("head", "Linear")]
    )
    restored = mto.restore_from_modelopt_state(Recurrent(), mto.modelopt_state(model))
    x = torch.randn(2, 5, 3)
    for each in (model, restored):
        assert type(each.rnn) is nn.GRU and isinstance(each.head.input_quantizer, TensorQuantizer)
        assert torch.equal(each(x), Recurrent()(x))


def test_experts_keep_the_code_that_the_user_chose():
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 8}
    config = MixtralConfig(num_hidden_layers=1, num_key_value_heads=1, num_local_experts=2, **sizes)
    model = MixtralForCausalLM(config).eval()
    model.set_experts_implementation("batched_mm")
    experts = type(model.model.layers[0].mlp.experts)
    model, _ = bridge.convert(model, [], lambda model: None, layers=[layer_of("lm_head", "Linear")])
    assert type(model.model.layers[0].mlp.experts) is experts
    assert model.config._experts_implementation == "batched_mm"


def transformer():
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTForImageClassification(
        ViTConfig(image_size=32, patch_size=16, num_hidden_layers=1, **sizes)
    )


def resnet():
    from transformers import ResNetConfig, ResNetModel

    return ResNetModel(ResNetConfig(depths=[1, 1], hidden_sizes=[16, 32], embedding_size=8))


@pytest.mark.parametrize("make", [transformer, resnet])
def test_markers_name_every_site_in_an_export_and_leave_no_trace(make):
    images = torch.randn(2, 3, 32, 32)
    model, _ = bridge.convert(make().eval(), [], lambda model: model(images))
    before = dict(model.named_modules(remove_duplicate=False))
    batch = ({0: torch.export.Dim("batch")},)
    with bridge.marked(model), quiet():
        program = torch.onnx.export(
            model, (images,), dynamo=True, optimize=True, dynamic_shapes=batch, verbose=False
        )
    assert dict(model.named_modules(remove_duplicate=False)) == before
    nodes = [node for node in program.model.graph if node.op_type == "Site"]
    sites = [node.attributes["site"].as_string() for node in nodes]
    quantizers = {n: m for n, m in before.items() if isinstance(m, TensorQuantizer)}
    # An attention's probabilities have a path of their own that modelopt takes only when it is on.
    called: set[str] = set()
    for name, each in quantizers.items():
        each.register_forward_pre_hook(lambda module, args, name=name: called.add(name))
    model(images)
    expected = {name.removesuffix("_quantizer") for name in called}
    assert len(sites) == len(set(sites)) and set(sites) == expected
    assert all(node.domain == "granplugin" for node in nodes)


def test_statistics_of_all_needs_come_from_one_pass():
    passes = []
    needs = [Need("a0b.input", (1, 16), True, (1, 16)), Need("a0b.input", (1, 1), False, (1, 16))]
    needs.append(Need("bn.output", (1, 1, 6, 6), False, (1, 8, 6, 6)))
    _, statistics = bridge.convert(
        Net(), needs, lambda model: passes.append(1) or forward_loop(model)
    )
    assert len(passes) == 1 and isinstance(statistics, Statistics) and statistics.covers(needs)
    whole, each = (statistics.of(need)[0] for need in needs[:2])
    assert whole.item() == each.max()


def test_a_model_that_holds_quantizers_is_refused_with_their_count(project):
    project.write(
        "nets.py",
        NETS
        + """

def quantized():
    import modelopt.torch.quantization as mtq
    return mtq.quantize(Tiny(), mtq.INT8_DEFAULT_CFG, lambda m: m(torch.ones(2, 1, 8, 8)))
""",
    )
    recipe = project.recipe(model={"callable": "nets.py:quantized"})
    for verb in ("plan", "inspect", "apply"):
        done = run_main(verb, recipe)
        assert done.code == 2, done.stderr
        assert (
            "nets.py:quantized: the model holds 13 quantizers of modelopt already "
            "(conv.input_quantizer, conv.output_quantizer, conv.weight_quantizer and 10 more), "
            "which would be lost; write model.quantized: keep" in done.stderr
        )


def test_a_function_that_is_compiled_at_import_is_compiled_at_its_first_call(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function, **how: asked.append(how) or function)
    at_once = torch.compile
    with compiled_late():
        double = torch.compile(dynamic=True)(lambda x: 2 * x)
        triple = torch.compile(lambda x: 3 * x)
    assert torch.compile is at_once and not asked
    assert (double(2), double(3), triple(1)) == (4, 6, 3)
    assert asked == [{"dynamic": True}, {}]


def test_what_modelopt_no_longer_has_is_one_sentence():
    with pytest.raises(UserError, match=r"has no Gone\.away, which granplugin uses; install a ver"):
        library.check({type("Gone", (), {"here": 1}): ("here", "away")})


def test_what_libraries_warn_of_while_they_are_imported_is_kept_for_the_log(caplog):
    logger = logging.getLogger("torch.utils.cpp_extension")
    with caplog.at_level(logging.DEBUG), quiet():
        logger.warning("No CUDA runtime is found")
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    logger.warning("heard again")
    assert caplog.records[-1].levelname == "WARNING"
