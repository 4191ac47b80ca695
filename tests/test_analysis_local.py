"""Local errors against brute force: one thing quantized in a copy of the network, all of it run."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from granplugin.analysis.factors import layer_module
from granplugin.analysis.figures import SUMS, FigureKey, sqnr, sums
from granplugin.analysis.local import LocalErrors, held_of
from granplugin.analysis.rounded import analysis_copy
from granplugin.analysis.settings import ask
from granplugin.analysis.tried import channels_of, key, try_settings
from granplugin.calibration.statistics import Statistics, find_amax, needs_of
from granplugin.errors import ModelError
from granplugin.graph.read.verify_lowered import run_time_scales
from granplugin.network.computed import compute_once
from granplugin.network.modules import stored_of
from granplugin.network.trace import trace
from granplugin.planning.rows import Plan, QuantizedRow
from granplugin.quant.formats import FORMATS, fake_quantize, scale_of
from granplugin.quant.granularity import PerChannel, parse_granularity
from granplugin.quant.layers import WEIGHTED
from granplugin.recipe.analyze import Analyze

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
WEIGHTS = ["per_tensor", "per_channel", {"per_channel": {"axis": -1}}, "per_element"]
INPUTS = [
    "per_tensor",
    "per_channel",
    {"per_tensor": {"dynamic": True}},
    {"per_token": {"dynamic": True}},
    {"granularity": {"per_channel": {"axis": -1}}, "format": "fp8"},
]
WANTED = Analyze.model_validate({"weights": WEIGHTS, "inputs": INPUTS, "calibrators": ["max"]})


class Around(nn.Module):
    """A layer between elementwise functions, with or without a batch norm behind it."""

    def __init__(self, layer, bn=None, calls=1, windows=1):
        super().__init__()
        self.layer, self.bn, self.calls, self.windows = layer, bn, calls, windows

    def forward(self, x):
        x = torch.sin(3 * x)
        if self.windows > 1:
            x = x.reshape(-1, x.shape[1] // self.windows, *x.shape[2:])
        y = self.layer(x)
        if self.bn is not None:
            y = self.bn(y)
        for _ in range(self.calls - 1):
            y = y + self.layer(input=(x * 2 + 0.5).relu_())
        return y.relu_().flatten(1).mean(1)


def _settled(bn):
    with torch.no_grad():
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.01, 4)
        if bn.affine:
            bn.weight.copy_(torch.logspace(-2, 1, len(bn.weight)) * torch.randn(len(bn.weight)))
            bn.bias.normal_()
    return bn


@st.composite
def networks(draw):
    """A network around one layer, and a batch for it, both random."""
    torch.manual_seed(draw(st.integers(0, 999)))
    samples = draw(st.integers(1, 5))
    bias = draw(st.booleans())
    with_bn = draw(st.sampled_from([None, False, True]))
    rank = draw(st.integers(0, 3))
    if not rank:
        middle = draw(st.sampled_from([(), (3,), (3, 5)]))
        layer = nn.Linear(6, 8, bias=bias)
        bn = nn.BatchNorm1d(8, affine=with_bn) if with_bn is not None and not middle else None
        x = torch.randn(samples, *middle, 6)
    else:
        groups = draw(st.sampled_from([1, 2, 4]))
        common = {
            "kernel_size": draw(st.sampled_from([1, 2, 3])),
            "stride": draw(st.sampled_from([1, 2])),
            "padding": draw(st.sampled_from([0, 1])),
            "dilation": draw(st.sampled_from([1, 2])),
            "groups": groups,
            "bias": bias,
        }
        if draw(st.booleans()):
            layer = getattr(nn, f"ConvTranspose{rank}d")(4, 8, **{**common, "padding": 0})
        else:
            modes = ["zeros", "reflect", "circular", "replicate"]
            common["padding_mode"] = draw(st.sampled_from(modes))
            layer = getattr(nn, f"Conv{rank}d")(4, draw(st.sampled_from([4, 8])), **common)
        bn = None
        if with_bn is not None:
            bn = getattr(nn, f"BatchNorm{rank}d")(layer.out_channels, affine=with_bn)
        x = torch.randn(samples, 4, *(7, 6, 5)[:rank])
    with torch.no_grad():
        layer.weight.mul_(
            torch.logspace(-1, 1, layer.weight.shape[0]).reshape(
                -1, *(1,) * (layer.weight.ndim - 1)
            )
        )
    if bn is not None:
        return Around(layer, _settled(bn)).eval(), x
    calls = draw(st.integers(1, 2))
    windows = draw(st.sampled_from([1, 2]))
    if windows > 1:
        x = torch.cat([x, x.roll(1, -1)], 1)
    return Around(layer, None, calls, windows).eval(), x


def own_rows(layer):
    def row(role, granularity):
        return QuantizedRow(
            at=layer.site(role), type=layer.type, format="int8",
            granularity=parse_granularity(granularity), bn="fold" if layer.bn else None,
            bn_name=layer.bn, rule="r1", where="recipe.yaml:3:5",
        )  # fmt: skip

    return row("weight", "per_tensor"), row("input", "per_tensor")


def inputs_of(model, x, name):
    """What a layer is given in one pass, call by call."""
    seen = []
    hook = layer_module(model, name).register_forward_pre_hook(
        lambda m, args, kwargs: seen.append((*args, *kwargs.values())[0].clone().numpy()),
        with_kwargs=True,
    )
    with torch.no_grad():
        model(x)
    hook.remove()
    return seen


def _within(block, x):
    return (0, *(axis for axis in range(1, x.ndim) if block[axis] > 1))


def set_up(model, x, wanted=WANTED, names=None, traced=None):
    """The layers with their settings tried on them, and the ranges of all rows; of an analysis copy
    `traced` are the layers."""
    traced = traced or trace(model, x).layers
    layers = [each for each in traced if names is None or each.name in names]
    rows = [row for layer in layers if layer.type in WEIGHTED for row in own_rows(layer)]
    asked, _ = ask(layers, Plan(tuple(rows)), wanted, 64)
    ranges = {}
    for each in asked:
        module = layer_module(model, each.layer.name)
        for row in each.weights:
            weight = module.weight.detach().numpy()
            if row.bn == "fold":
                weight = stored_of(module).folded(model.get_submodule(each.layer.bn))[0]
            ranges[row] = find_amax(row, weight=weight)
        seen = inputs_of(model, x, each.layer.name)
        ranges |= {row: find_amax(row) for row in each.inputs if row.amax is not None}
        for need in needs_of(each.inputs):
            amax = [np.abs(part).max(_within(need.block, part), keepdims=True) for part in seen]
            ranges |= {
                row: find_amax(row, Statistics({need: np.max(amax, 0)}, {}, len(x)))
                for row in each.inputs
                if needs_of([row]) == {need}
            }
    return asked, ranges, try_settings(asked, partial(held_of, model), ranges)


def measure(model, tried, batches):
    wanted = frozenset(name for each in tried for name in each.figures())
    local = LocalErrors(model, tried, wanted)
    total = {}
    with torch.no_grad():
        for batch in batches:
            for name, figure in local.run(lambda batch=batch: model(batch), len(batch)).items():
                total[name] = total.get(name, 0) + figure
    assert total.keys() == wanted
    return total


def rounded(row, amax, x):
    fmt = FORMATS[row.format]
    if row.dynamic:
        return fake_quantize(x, *run_time_scales(row, x), fmt)
    scale = np.repeat(scale_of(amax, fmt), len(x), 0)
    return fake_quantize(x, scale, (1, *row.block[1:]), fmt)


def outputs(model, x, layer, fold, weight=None, given=None, ranges=None):
    """The layer's outputs (behind its batch norm) in a copy of the network, in float64, where only
    its weight is rounded as the row `weight` says, only its input as `given` does, or both."""
    # In float64, some of its values would fall on the other side of a rounding boundary.
    seen = iter(inputs_of(model, x, layer.name))
    model = copy.deepcopy(model)
    module = model.get_submodule(layer.name)
    end = module
    if layer.bn:
        end = model.get_submodule(layer.bn)
        if fold:
            module.weight, module.bias = (
                nn.Parameter(torch.from_numpy(values)) for values in stored_of(module).folded(end)
            )
            setattr(model, layer.bn, end := nn.Identity())
    if weight is not None:
        fmt = FORMATS[weight.format]
        values = module.weight.detach().numpy()
        values = fake_quantize(values, scale_of(ranges[weight], fmt), weight.block, fmt)
        module.weight = nn.Parameter(torch.from_numpy(values))
    model = model.double()

    def round_input(m, args, kwargs):
        values = next(seen)
        if given is not None:
            values = rounded(given, ranges.get(given), values)
        others = {name: value for name, value in kwargs.items() if name != "input"}
        return (torch.from_numpy(values).double(),), others

    module.register_forward_pre_hook(round_input, with_kwargs=True)
    found = []
    end.register_forward_hook(lambda m, args, y: found.append(y.clone()))
    with torch.no_grad():
        model(x.double())
    return found


def expected(model, x, each, ranges, weight, given):
    """Signal and error, each (samples, channels), by brute force."""
    axis = -1 if each.layer.type == "Linear" else 1

    def squares(tensors):
        total = 0
        for y in tensors:
            y = y.movedim(axis, -1).reshape(len(x), -1, y.shape[axis])
            total = total + (y * y).sum(1).numpy()
        return total

    fold = weight is None or weight.bn == "fold"
    before = outputs(model, x, each.layer, fold)
    after = outputs(model, x, each.layer, fold, weight, given, ranges)
    return squares(before), squares([a - b for a, b in zip(after, before, strict=True)])


def cases(each):
    """Figure name -> the rows it is of."""
    name = each.layer.name
    own_w, own_x = each.weights[0], each.inputs[0]
    found = {}
    for w in each.weights:
        found[FigureKey(name, "weight", (key(w),))] = (w, None)
        found[FigureKey(name, "both", (key(w), key(own_x)))] = (w, own_x)
    for x in each.inputs:
        found[FigureKey(name, "input", (key(x),))] = (None, x)
        found[FigureKey(name, "both", (key(own_w), key(x)))] = (own_w, x)
    return found


def assert_close(found, signal, error, label):
    """Within 1e-3, and the noise of an output in float32: 3e-7 of its size."""

    def close(got, want, noise):
        slack = 1e-3 * want + 2 * np.sqrt(want * noise) + noise
        worst = np.unravel_index(np.argmax(np.abs(got - want) - slack), got.shape)
        assert (np.abs(got - want) <= slack).all(), (label, got[worst], want[worst], worst)

    s, e = signal.sum(1), error.sum(1)
    noise = 1e-13 * s.sum()
    assert found[0] == len(s)
    close(found[1:3], np.array([s.sum(), e.sum()]), noise)
    if e.sum() > 1e-8 * s.sum():
        assert found[3:SUMS] == pytest.approx([s @ s, e @ e, s @ e], rel=2e-3), label
    close(np.array(channels_of(found)), np.array([signal.sum(0), error.sum(0)]), noise)


@settings(max_examples=25, deadline=None)
@given(networks())
def test_every_figure_equals_brute_force(network):
    model, x = network
    try:
        asked, ranges, tried = set_up(model, x)
    except ModelError:
        reject()  # the kernel does not fit the image
    found = measure(model, tried, [x])
    (each,) = asked
    assert found.keys() == cases(each).keys()
    for name, (w, i) in cases(each).items():
        assert_close(found[name], *expected(model, x, each, ranges, w, i), name)


class Net(nn.Module):
    """Convolutions, a depthwise one too, with batch norms; a residual add; a classifier."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.first_bn = _settled(nn.BatchNorm2d(8))
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.depthwise_bn = _settled(nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 5)
        self.eval()

    def forward(self, x):
        x = self.first_bn(self.first(x)).relu()
        x = x + self.depthwise_bn(self.depthwise(x)).relu_()
        return self.head(x.mean((2, 3)))


IMAGES = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Called(nn.Module):
    """What Modules computes, by functions: bias and all."""

    def __init__(self, of):
        super().__init__()
        self.of = nn.ParameterList([p for module in of for p in module.parameters()])

    def forward(self, x):
        w, b, w1, b1, w2, b2 = self.of
        x = F.conv2d(x, w, b, padding=1).relu()
        x = F.conv_transpose2d(x, w1, bias=b1, groups=2).mean((2, 3))
        return torch.addmm(b2, x, w2.mT)


def test_a_call_has_the_figures_of_the_module_that_computes_the_same():
    torch.manual_seed(2)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(8, 6, 2, groups=2), nn.Linear(6, 5)]
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    modules = nn.Sequential(layers[0], nn.ReLU(), layers[1], pooled, layers[2]).eval()
    called = Called(layers).eval()
    traced = trace(called, {"x": IMAGES}).layers
    copied = analysis_copy(called, (), traced, {}, {"x": IMAGES[:2]})
    torch.testing.assert_close(copied(IMAGES), modules(IMAGES))
    found = [
        measure(model, set_up(model, IMAGES[:8], traced=its)[2], [IMAGES[:8]])
        for model, its in ((modules, None), (copied, traced))
    ]
    names = dict(zip(("0", "2", "4"), ("conv2d", "conv_transpose2d", "addmm"), strict=True))
    expected = {replace(each, of=names[each.of]): value for each, value in found[0].items()}
    assert expected.keys() == found[1].keys()
    for each, value in found[1].items():
        np.testing.assert_allclose(value, expected[each], rtol=2e-3, atol=1e-9)


def test_figures_depend_on_neither_batch_size_order_threads_nor_chunks(monkeypatch):
    model = Net()
    _, _, tried = set_up(model, IMAGES)
    reference = measure(model, tried, [IMAGES])

    def same(found):
        for name, figure in reference.items():
            # What is rounded differs by a step where a sum in another order crosses a boundary.
            assert found[name][:SUMS] == pytest.approx(figure[:SUMS], rel=1e-3), name

    same(measure(model, tried, IMAGES.split(5)))
    same(measure(model, tried, IMAGES.flip(0).split(16)))
    torch.set_num_threads(2)
    same(measure(model, tried, [IMAGES]))
    torch.set_num_threads(1)
    monkeypatch.setattr("granplugin.analysis.local._CHUNK_BYTES", 5000)
    same(measure(model, tried, [IMAGES]))


def test_a_batch_that_failed_half_way_leaves_nothing_behind():
    model = Net()
    _, _, tried = set_up(model, IMAGES)
    reference = measure(model, tried, IMAGES.split(16))
    errors = LocalErrors(model, tried, frozenset(reference))

    def fails():
        model(IMAGES)
        raise MemoryError

    total = {}
    with torch.no_grad():
        for batch in IMAGES.split(16):
            with pytest.raises(MemoryError):
                errors.run(fails, len(IMAGES))
            for name, figure in errors.run(lambda batch=batch: model(batch), 16).items():
                total[name] = total.get(name, 0) + figure
    for name, figure in reference.items():
        np.testing.assert_array_equal(total[name], figure)


class Keeps(nn.Module):
    """Reads what a hook kept of its layer, as feature extractors do."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)
        self.layer.register_forward_hook(self.keep)
        self.eval()

    def keep(self, module, args, output):
        self.kept = output

    def forward(self, x):
        self.layer(x)
        return self.head(self.kept)


class Sized(nn.Module):
    """Says what size it wants."""

    def __init__(self):
        super().__init__()
        self.layer = nn.ConvTranspose2d(3, 4, 3, stride=2)
        self.eval()

    def forward(self, x):
        return self.layer(x, output_size=[18, 18])


class Normed(nn.Module):
    """A weight that a hook computes before each call."""

    def __init__(self):
        super().__init__()
        self.layer = nn.utils.weight_norm(nn.Conv2d(3, 4, 3))
        self.eval()

    def forward(self, x):
        return self.layer(x)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("network", [Keeps, Sized, Normed])
def test_layers_with_hooks_and_arguments_of_their_own_are_measured_as_they_are(network):
    torch.manual_seed(0)
    model = network()
    compute_once(model)  # as a network is opened
    asked, ranges, tried = set_up(model, IMAGES[:4])
    found = measure(model, tried, [IMAGES[:4]])
    for each in asked:
        for name, (w, i) in cases(each).items():
            assert_close(found[name], *expected(model, IMAGES[:4], each, ranges, w, i), name)


def test_nothing_is_left_on_the_model():
    model = Net()
    before = copy.deepcopy(model.state_dict())
    _, _, tried = set_up(model, IMAGES)
    measure(model, tried, [IMAGES])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_layer_that_puts_out_nan_is_named():
    model = Net()
    _, _, tried = set_up(model, IMAGES)
    broken = IMAGES.clone()
    model.depthwise.bias.data[0] = torch.nan
    with pytest.raises(ModelError, match="depthwise: .*NaN"):
        measure(model, tried, [broken])


def test_the_recipes_own_setting_stays_the_first_where_it_is_asked_for_again():
    model = Net()
    layers = trace(model, IMAGES).layers
    rows = [row for layer in layers if layer.type in WEIGHTED for row in own_rows(layer)]
    wanted = Analyze.model_validate(
        {"weights": ["per_channel", "per_tensor"], "inputs": ["per_channel", "per_tensor"],
         "calibrators": ["max"]}
    )  # fmt: skip
    asked, skipped = ask(layers, Plan(tuple(rows)), wanted, 64)
    assert [each.layer.name for each in asked] == ["first", "depthwise", "head"]
    for each in asked:
        assert (each.weights[0], each.inputs[0]) == each.start
        assert len(each.weights) == (4 if each.layer.bn else 2)
    # For a classifier's input, per_channel is a granularity like others.
    assert [len(each.inputs) for each in asked] == [2, 2, 2] and not skipped


def test_modelopts_fake_quantization_of_the_folded_model_has_the_same_figure():
    from granplugin import modelopt_bridge as bridge
    from granplugin.network.batch_norms import fold_batch_norms

    model = Net()
    asked, ranges, tried = set_up(model, IMAGES)
    found = measure(model, tried, [IMAGES])
    traced = trace(model, IMAGES)
    plain = fold_batch_norms(copy.deepcopy(model), traced, ["first", "depthwise"], IMAGES)
    for each in asked:
        layer = each.layer.name
        (row,) = (r for r in each.weights if r.granularity == PerChannel() and r.bn != "keep")
        quantized, _ = bridge.convert(copy.deepcopy(plain), (), lambda model: None)
        bridge.load_amax(quantized, [replace(row, bn=None)], {row.site: ranges[row]})
        outs = []
        for network in (plain, quantized):
            end = network.get_submodule(layer)
            hook = end.register_forward_hook(lambda m, args, y: outs.append(y.clone()))
            with torch.no_grad():
                network(IMAGES)
            hook.remove()
        signal, error = (y.double().square().sum() for y in (outs[0], outs[1] - outs[0]))
        figure = sqnr(found[FigureKey(layer, "weight", (key(row),))], 48)
        assert figure.db == pytest.approx(float(10 * torch.log10(signal / error)), abs=0.01)


def _draws(rng, population, most, times):
    """Simple random samples without replacement of a figure's samples: their sums."""
    for _ in range(times):
        yield sums(*population[:, rng.permutation(population.shape[1])[:most]])


@pytest.fixture(scope="module")
def populations():
    """(signal, error) of each of 256 digits, by figure: layers of the shipped MobileNet with all
    settings of a plan that clips and one that does not."""
    spec = importlib.util.spec_from_file_location("networks", RECIPES / "networks.py")
    networks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(networks)
    model = networks.mobilenet_v2().eval()
    model.load_state_dict(load_file(RECIPES / "weights/mobilenet_digits.safetensors"))
    x = torch.from_numpy(np.load(RECIPES / "data/digits.npz")["train_images"][:256]).float()
    wanted = Analyze.model_validate(
        {"weights": ["per_tensor"], "calibrators": ["max"], "inputs": [
            "per_tensor", {"per_tensor": {"dynamic": True}}, {"format": "int8", "amax": 2}]}
    )  # fmt: skip
    names = ["features.0.conv", "features.3.depthwise.conv", "features.17.expand.conv"]
    _, _, tried = set_up(model, x, wanted, names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "granplugin.analysis.tried.sums", lambda signal, error: np.concatenate([signal, error])
        )
        found = measure(model, tried, [x])
    return {name: figure[: 2 * len(x)].reshape(2, -1) for name, figure in found.items()}


@pytest.mark.parametrize(("samples", "most"), [(256, 64), (64, 16)])
def test_the_interval_of_a_random_quarter_covers_the_figure_of_all_95_times_in_100(
    populations, samples, most
):
    rng, times, covered = np.random.default_rng(0), 600, {}
    for name, population in populations.items():
        population = population[:, :samples]
        exact = sqnr(sums(*population), samples)
        assert exact.low is exact.high is None
        found = [sqnr(figure, samples) for figure in _draws(rng, population, most, times)]
        covered[name] = np.mean([each.low <= exact.db <= each.high for each in found])
    assert len(covered) > 20
    # Less where a few samples have most of the error.
    assert min(covered.values()) > 0.8
    error = (0.95 * 0.05 / times / len(covered)) ** 0.5
    assert np.mean(list(covered.values())) > 0.95 - 3 * error
