"""Folding batch norms: the arithmetic against torch, and the proof on whole networks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from granplugin.errors import ModelError
from granplugin.network.batch_norms import TOLERANCE, check_folding, fold_batch_norms
from granplugin.network.folded_calls import FoldedNorm
from granplugin.network.forward import call
from granplugin.network.trace import Traced, trace
from granplugin.quant.folding import Norm, fold
from granplugin.quant.layers import Layer


def with_statistics(model: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms as after training: every channel with statistics and factors of its own."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for bn in model.modules():
            if isinstance(bn, _BatchNorm) and bn.running_mean is not None:
                bn.running_mean.normal_(0, 0.5, generator=random)
                bn.running_var.uniform_(0.2, 3, generator=random)
                if bn.affine:
                    bn.weight.uniform_(-1, 2, generator=random)
                    bn.bias.normal_(0, 0.3, generator=random)
    return model


@st.composite
def layers_with_batch_norm(draw):
    """A weighted layer, its batch norm, and an input that fits."""
    rank = draw(st.integers(0, 3))
    bias = draw(st.booleans())
    groups = draw(st.integers(1, 3)) if rank else 1
    into, out = (groups * draw(st.integers(1, 3)) for _ in range(2))
    torch.manual_seed(draw(st.integers(0, 1000)))
    if rank == 0:
        layer, x = nn.Linear(into, out, bias=bias), torch.randn(3, into)
    else:
        kind = draw(st.sampled_from(["Conv", "ConvTranspose"]))
        cls = getattr(nn, f"{kind}{rank}d")
        layer = cls(into, out, draw(st.integers(1, 3)), groups=groups, bias=bias)
        x = torch.randn(2, into, *(4,) * rank)
    bn = getattr(nn, f"BatchNorm{max(rank, 1)}d")(
        out, eps=draw(st.sampled_from([1e-5, 1e-3, 0.1])), affine=draw(st.booleans())
    )
    return nn.Sequential(layer, with_statistics(bn, draw(st.integers(0, 1000)))).eval(), x


@settings(max_examples=60, deadline=None)
@given(layers_with_batch_norm())
def test_folding_changes_no_output_beyond_rounding(case):
    net, x = case
    want = call(net.double(), x.double())  # in float64, so that only the folded side rounds
    net.float()
    traced = trace(net, x)
    assert traced.batch_norms == {"0": "1"}
    fold_batch_norms(net, traced, ["0"], x)
    assert isinstance(net[1], nn.Identity)
    torch.testing.assert_close(call(net, x).double(), want, rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.booleans())
def test_fold_is_the_formula_in_float64_rounded_once(seed, groups, transposed):
    random = np.random.default_rng(seed)
    into, out = 2 * groups, 3 * groups
    shape = (into, 3, 2) if transposed else (out, 2, 2)
    weight = random.normal(size=shape).astype(np.float32)
    bias, gamma, beta, mean = random.normal(size=(4, out)).astype(np.float32)
    var = random.uniform(0.01, 4, out).astype(np.float32)
    eps = 1e-5
    got, shift = fold(weight, bias, Norm(gamma, beta, mean, var, eps), int(transposed), groups)
    assert got.dtype == shift.dtype == np.float32 and got.shape == shape
    bn = nn.BatchNorm1d(out, eps)
    state = {"weight": gamma, "bias": beta, "running_mean": mean, "running_var": var}
    bn.load_state_dict({key: torch.from_numpy(x) for key, x in state.items()}, strict=False)
    layer = Layer("", "ConvTranspose1d" if transposed else "Conv2d", groups=groups)
    tensors = FoldedNorm(layer, bn)(torch.from_numpy(weight), torch.from_numpy(bias))
    assert all(np.array_equal(t.numpy(), x) for t, x in zip(tensors, (got, shift), strict=True))
    for channel in range(out):
        factor = float(gamma[channel]) / np.sqrt(float(var[channel]) + float(np.float32(eps)))
        where = np.s_[channel]
        if transposed:
            group, inside = divmod(channel, 3)
            where = np.s_[2 * group : 2 * group + 2, inside]
        np.testing.assert_array_max_ulp(got[where], (weight[where] * factor).astype(np.float32))
        want = (float(bias[channel]) - float(mean[channel])) * factor + float(beta[channel])
        assert shift[channel] == pytest.approx(want, rel=1e-6, abs=1e-7)


def test_the_eps_of_torch_and_of_an_onnx_attribute_give_the_same_bits():
    random = np.random.default_rng(0)
    weight = random.normal(size=(64, 32)).astype(np.float32)
    bias, *norm = random.uniform(0, 1e-4, size=(5, 64)).astype(np.float32)
    epsilons = 1e-5, float(np.float32(1e-5))
    ours, theirs = (fold(weight, bias, Norm(*norm, eps), 0) for eps in epsilons)
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def small_efficientnet(transformers):
    return transformers.EfficientNetForImageClassification(
        transformers.EfficientNetConfig(
            image_size=64, width_coefficient=0.5, depth_coefficient=1.0, hidden_dim=640
        )
    )


def small_resnet(transformers):
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(hidden_sizes=[32, 64, 64, 128], embedding_size=16)
    )


def small_mobilenet(transformers):
    return transformers.MobileNetV2ForImageClassification(transformers.MobileNetV2Config())


@pytest.mark.parametrize(
    ("build", "count"), [(small_mobilenet, 52), (small_resnet, 53), (small_efficientnet, 49)]
)
def test_every_batch_norm_of_a_real_network_folds(build, count):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = with_statistics(build(transformers))
    example = {"pixel_values": torch.randn(2, 3, 64, 64)}
    traced = trace(model, example)
    assert len(traced.batch_norms) == count
    before = call(model, example).logits
    fold_batch_norms(model, traced, traced.batch_norms, example)
    assert not any(isinstance(m, _BatchNorm) for m in model.modules())
    assert (call(model, example).logits - before).abs().max() <= TOLERANCE * before.abs().max()
    assert trace(model, example).batch_norms == {}


def two_blocks() -> nn.Sequential:
    torch.manual_seed(0)
    blocks = (nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)) for _ in range(2))
    return with_statistics(nn.Sequential(*blocks))


IMAGE = torch.linspace(-1, 1, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6)


def test_only_the_named_layers_are_folded_and_folding_again_changes_nothing():
    net = two_blocks().requires_grad_(False)
    traced = trace(net, IMAGE)
    fold_batch_norms(net, traced, ["1.0"], IMAGE)
    assert isinstance(net[0][1], nn.BatchNorm2d) and isinstance(net[1][1], nn.Identity)
    assert net.training and net[1][1].training and not net[1][0].bias.requires_grad
    weight = net[1][0].weight
    assert fold_batch_norms(net, traced, ["1.0"], IMAGE) is net
    assert net[1][0].weight is weight


class Activated(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: what comes behind it is its own."""

    def __init__(self, channels, then=nn.ReLU, **kwargs):
        super().__init__(channels, **kwargs)
        self.drop, self.act = nn.Identity(), then()

    def forward(self, x):
        x = nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias,
            self.training, 0.1, self.eps,
        )  # fmt: skip
        return self.act(self.drop(x))


class Twice(Activated):
    def forward(self, x):
        return super().forward(2 * x)


class Shifted(Activated):
    def forward(self, x):
        args = self.running_mean, self.running_var, self.weight, self.bias + 1
        return nn.functional.batch_norm(x, *args, False, 0.1, self.eps)


@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_with_an_activation_of_its_own_is_folded_and_leaves_it(affine):
    torch.manual_seed(0)
    net = with_statistics(nn.Sequential(nn.Conv2d(4, 4, 3), Activated(4, nn.SiLU, affine=affine)))
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    before = call(net, IMAGE)
    traced = trace(net, IMAGE)
    assert traced.batch_norms == {"0": "1"}
    fold_batch_norms(net, traced, ["0"], IMAGE)
    torch.testing.assert_close(call(net, IMAGE), before, rtol=1e-5, atol=1e-5)
    product = nn.functional.conv2d(IMAGE, net[0].weight, net[0].bias)
    assert torch.equal(call(net, IMAGE), nn.functional.silu(product))
    weight = net[0].weight
    assert fold_batch_norms(net, traced, ["0"], IMAGE)[0].weight is weight
    assert net.state_dict().keys() == {*state, "0.bias"}


@pytest.mark.parametrize("cls", [Twice, Shifted])
def test_a_batch_norm_that_computes_something_else_stays(cls):
    net = with_statistics(nn.Sequential(nn.Conv2d(4, 4, 3), cls(4)))
    traced = trace(net, IMAGE)
    assert traced.batch_norms == {}
    if cls is Shifted:
        assert traced.layers[0].unfolded == "its class computes something else"


def test_a_batch_norm_registered_twice_is_replaced_in_both_places():
    net = two_blocks()
    net.alias = nn.ModuleList([net[0][1]])
    net.forward = lambda x: net[1](net[0](x))
    fold_batch_norms(net, trace(net, IMAGE), ["0.0"], IMAGE)
    assert isinstance(net.alias[0], nn.Identity)


def test_a_name_without_a_batch_norm_is_refused():
    net = two_blocks()
    with pytest.raises(ModelError, match="'0.1' has no batch norm"):
        fold_batch_norms(net, trace(net, IMAGE), ["0.1"], IMAGE)


class Hidden(nn.Module):
    """One batch norm folds; behind the other's back the output is read where no trace sees it."""

    def __init__(self, peek):
        super().__init__()
        self.good, self.bad = two_blocks()
        self.peek = peek

    def forward(self, x):
        y = self.bad[0](self.good(x))
        return {"out": self.bad[1](y), "peek": self.peek(self, y)}


@torch.jit.script
def scripted(y: torch.Tensor) -> torch.Tensor:
    return y * 2


class Amplified(nn.Module):
    """Makes much of the last bits of what its batch norm puts out."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return (1e4 * self.bn(self.conv(x))).sin()


def test_last_bits_that_a_network_makes_much_of_are_not_taken_for_another_reader():
    torch.manual_seed(0)
    model, x = with_statistics(Amplified()).eval(), torch.randn(4, 3, 5, 5)
    kept = {name: values.clone() for name, values in model.state_dict().items()}
    check_folding(model, trace(model, x), ["conv"], x)
    assert all(torch.equal(values, kept[name]) for name, values in model.state_dict().items())
    before = model(x)
    fold_batch_norms(model, trace(model, x), ["conv"], x)
    assert TOLERANCE < (model(x) - before).abs().max() < 0.05


@pytest.mark.parametrize(
    "peek",
    [
        lambda m, y: torch.vmap(lambda row: row * 2)(y),
        lambda m, y: m.bad[1].eps * torch.ones(1),
    ],
)
def test_a_changed_output_is_an_error_naming_the_layer_and_leaves_the_model_alone(peek):
    net = Hidden(peek).train()
    traced = trace(net, IMAGE)
    assert traced.batch_norms == {"good.0": "good.1", "bad.0": "bad.1"}
    state, modules = {k: v.clone() for k, v in net.state_dict().items()}, list(net.modules())
    with pytest.raises(ModelError, match="'bad.1' into 'bad.0' changes the model's outputs"):
        fold_batch_norms(net, traced, traced.batch_norms, IMAGE)
    assert list(net.modules()) == modules and net.training
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())


def test_what_a_scripted_function_reads_too_is_not_folded_away():
    traced = trace(Hidden(lambda m, y: scripted(y)).train(), IMAGE)
    assert traced.batch_norms == {"good.0": "good.1"}


def test_a_wrong_pair_is_caught():
    net = two_blocks()
    traced = trace(net, IMAGE)
    wrong = Traced(traced.layers, {"0.0": "1.1"}, traced.inputs, traced.outputs)
    with pytest.raises(ModelError, match="'1.1' into '0.0'"):
        fold_batch_norms(net, wrong, ["0.0"], IMAGE)
    assert isinstance(net[1][1], nn.BatchNorm2d)
