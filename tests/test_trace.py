"""What one forward pass shows: layers, traits, values, and which batch norms can be folded."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from granplugin.errors import DataError, ModelError
from granplugin.network.computed import compute_once, way_out
from granplugin.network.forward import call, flatten_outputs
from granplugin.network.trace import Traced, trace

IMAGE = torch.linspace(-1, 1, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6)


class Net(nn.Module):
    """Modules by name and a forward of (self, *inputs)."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.body = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x, y=None):
        return self.body(self, x) if y is None else self.body(self, x, y)


def conv(out=4, **kwargs):
    return nn.Conv2d(4, out, 3, padding=1, **kwargs)


def folds(forward, example=IMAGE, **modules):
    return trace(Net(forward, **modules), example).batch_norms


def by_name(traced: Traced):
    return {layer.name: layer for layer in traced.layers}


def named(traced: Traced, trait: str):
    return [layer.name for layer in traced.layers if trait in layer.traits]


# ---- batch norms that can be folded -------------------------------------------------------------


def test_a_batch_norm_is_found_by_dataflow_and_not_by_the_order_of_modules():
    assert folds(
        lambda m, x: m.b2(m.c2(m.b1(m.c1(x)))),
        b2=nn.BatchNorm2d(4),
        c1=conv(),
        c2=conv(bias=False),
        b1=nn.BatchNorm2d(4),
    ) == {"c1": "b1", "c2": "b2"}


def test_every_weighted_type_has_its_batch_norm_found():
    for rank in (1, 2, 3):
        for kind in ("Conv", "ConvTranspose"):
            layer = getattr(nn, f"{kind}{rank}d")(4, 6, 3, groups=2)
            bn = getattr(nn, f"BatchNorm{rank}d")(6)
            x = torch.ones(2, 4, *(5,) * rank)
            assert folds(lambda m, x: m.b(m.c(x)), x, c=layer, b=bn) == {"c": "b"}
    linear = dict(c=nn.Linear(4, 6), b=nn.BatchNorm1d(6))
    assert folds(lambda m, x: m.b(m.c(x)), torch.ones(2, 4), **linear) == {"c": "b"}


def test_dropout_in_eval_mode_and_identity_do_not_hide_a_batch_norm():
    assert folds(
        lambda m, x: m.b(m.i(m.d(m.c(x)))),
        c=conv(),
        d=nn.Dropout(),
        i=nn.Identity(),
        b=nn.BatchNorm2d(4),
    ) == {"c": "b"}


def test_reading_a_shape_is_no_use_of_the_output():
    def forward(m, x):
        y = m.c(x)
        assert y.dim() == 4 and y.size(1) == y.shape[1] and y.is_floating_point()
        return m.b(y)

    assert folds(forward, c=conv(), b=nn.BatchNorm2d(4)) == {"c": "b"}


def in_place_on_a_view(m, x):
    y = m.c(x)
    y.view(-1)[:3].mul_(2)
    return m.b(y)


def in_place(m, x):
    y = m.c(x)
    y += 1
    return m.b(y)


def item_assignment(m, x):
    y = m.c(x)
    y[:, 0] = 0
    return m.b(y)


def skip(m, x):
    y = m.c(x)
    return m.b(y) + y


def also_an_output(m, x):
    y = m.c(x)
    return {"out": m.b(y), "features": [y]}


def changed_later(m, x):
    y = m.c(x)
    z = m.b(y)
    return z + y.relu_()


def inside_autograd_function(m, x):
    class Swish(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y * y.sigmoid()

    y = m.c(x)
    return m.b(y) + Swish.apply(y)


def out_of_sight_of_the_version(m, x):
    y = m.c(x)
    y.data.mul_(2)
    return m.b(y)


def looked_at(m, x):
    y = m.c(x)
    return m.b(y) * y.flatten()[0].item()


def functional(m, x):
    return F.batch_norm(m.c(x), m.b.running_mean, m.b.running_var, m.b.weight, m.b.bias)


def twice(m, x):
    return m.b(m.c(m.b(m.c(x))))


def conv_twice(m, x):
    return m.b(m.c(m.c(x)))


def bn_twice(m, x):
    return m.b(m.b(m.c(x)))


def bn_in_training(m, x):
    y = m.c(x)
    m.b.train()
    return m.b(y)


def bn_elsewhere(m, x):
    return functional(m, x) + m.b(x)


def weight_also_read(m, x):
    return m.b(m.c(x)) + m.c.weight.sum()


@pytest.mark.parametrize(
    "forward",
    [
        in_place_on_a_view, in_place, item_assignment, skip, also_an_output, changed_later,
        inside_autograd_function, out_of_sight_of_the_version, looked_at, functional, twice,
        conv_twice, bn_twice, weight_also_read, bn_in_training, bn_elsewhere,
        lambda m, x: m.b(F.relu(m.c(x), inplace=True)),
        lambda m, x: m.b(m.c(x) * 1),
        lambda m, x: m.b(m.c(x).view(2, 4, 6, 6)),
    ],
)  # fmt: skip
def test_a_batch_norm_stays_where_it_is_not_the_only_reader_of_one_call(forward):
    assert folds(forward, c=conv(), b=nn.BatchNorm2d(4)) == {}


def test_a_batch_norm_with_a_forward_of_its_own_folds_where_it_computes_the_same():
    class BatchNormAct(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    class OtherEps(nn.BatchNorm2d):
        def forward(self, x):
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=0.1
            )

    assert folds(lambda m, x: m.b(m.c(x)), c=conv(), b=BatchNormAct(4)) == {"c": "b"}
    assert folds(lambda m, x: m.b(m.c(x)), c=conv(), b=OtherEps(4)) == {}


def test_a_batch_norm_whose_result_a_hook_changes_stays():
    bn = nn.BatchNorm2d(4)
    bn.register_forward_hook(lambda module, args, y: y.relu())
    assert folds(lambda m, x: m.b(m.c(x)), c=conv(), b=bn) == {}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_only_float32_weights_are_folded(dtype):
    net = nn.Sequential(conv(), nn.BatchNorm2d(4)).to(dtype)
    assert trace(net, IMAGE.to(dtype)).batch_norms == {}


def test_a_batch_norm_without_running_statistics_stays():
    bn = nn.BatchNorm2d(4, track_running_stats=False)
    assert folds(lambda m, x: m.b(m.c(x)), c=conv(), b=bn) == {}


def test_a_batch_norm_over_another_axis_than_the_channels_stays():
    # [batch, 5, features] -> BatchNorm1d scales axis 1, a Linear's channels are the last.
    x = torch.ones(2, 5, 4)
    modules = dict(c=nn.Linear(4, 5), b=nn.BatchNorm1d(5))
    assert folds(lambda m, x: m.b(m.c(x)), x, **modules) == {}


def doubled(layer):
    """Its weight is computed by a hook of the user's."""
    weight = layer.weight
    del layer.weight
    layer.register_forward_pre_hook(lambda layer, args: setattr(layer, "weight", 2 * weight))
    return layer


def test_a_computed_and_a_shared_weight_are_not_folded():
    computed = doubled(conv())
    assert folds(lambda m, x: m.b(m.c(x)), c=computed, b=nn.BatchNorm2d(4)) == {}
    first, second = conv(), conv()
    second.weight = first.weight
    assert folds(lambda m, x: m.b(m.c(x)), c=first, d=second, b=nn.BatchNorm2d(4)) == {}


def test_a_layer_that_changes_its_result_behind_the_convolution_is_not_folded():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    class Standardized(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    class Unbiased(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight, None)

    for cls, found in ((Scaled, {}), (Standardized, {"c": "b"}), (Unbiased, {"c": "b"})):
        modules = dict(c=cls(4, 4, 3, padding=1), b=nn.BatchNorm2d(4))
        assert folds(lambda m, x: m.b(m.c(x)), **modules) == found


def test_a_computed_weight_that_is_read_or_computed_again_is_not_folded():
    class Standardized(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    def twice(m, x):
        return m.b(m.c(m.c(x)))

    def read(m, x):
        weight = m.c.weight - m.c.weight.mean()
        return m.b(F.conv2d(x, weight, padding=1)) + weight.sum()

    def turned(m, x):
        return m.n(x.mean((2, 3)) @ m.l.weight.tanh())

    sizes, norm = (4, 4, 3), nn.BatchNorm2d(4)
    assert folds(twice, c=Standardized(*sizes, padding=1), b=norm) == {}
    assert folds(read, c=nn.Conv2d(*sizes), b=norm) == {}
    held = nn.BatchNorm2d(4)
    held.register_buffer("filter", torch.randn(4, 4, 1, 1))
    assert folds(lambda m, x: m.b(F.conv2d(x, m.b.filter)), b=held) == {"conv2d": "b"}
    assert folds(turned, l=nn.Linear(4, 4), n=nn.BatchNorm1d(4)) == {}, "no place for a bias"


# ---- layers -------------------------------------------------------------------------------------


def test_a_layer_has_its_shapes_with_one_for_the_batch_and_its_traits():
    traced = trace(
        nn.Sequential(
            nn.Conv2d(4, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8),
            nn.Conv2d(8, 8, 3, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
        ),
        IMAGE,
    )  # fmt: skip
    layers = by_name(traced)
    assert list(layers) == ["0", "2", "3", "4", "6"]
    assert layers["0"].shape("input") == (1, 4, 6, 6) and layers["0"].shape("output") == (
        1,
        8,
        6,
        6,
    )
    assert layers["2"].shape("weight") == (8, 1, 3, 3) and layers["2"].groups == 8
    assert layers["4"].type == "AdaptiveAvgPool2d" and layers["4"].site("weight") is None
    assert layers["0"].traits == {"pointwise", "first"}
    assert layers["2"].traits == {"depthwise"}
    assert layers["3"].traits == {"grouped"}
    assert layers["6"].traits == {"head", "last"}
    assert traced.inputs == {"input": (1, 4, 6, 6)} and traced.outputs == {"output": (1, 3)}


def test_first_and_last_reach_through_functions_of_one_tensor_and_not_further():
    def forward(m, x, y):
        a = m.a(F.pad((x.float() - 0.5) / 0.25, (1, 1)).flatten(1))
        b = m.b(x.flatten(1) + y.flatten(1))
        c = m.c(a.relu() + b)
        return {"z": m.e(m.d(c).sigmoid()).softmax(-1), "sum": c + a}

    net = Net(
        forward, a=nn.Linear(16, 4), b=nn.Linear(8, 4), c=nn.Linear(4, 4), d=nn.Linear(4, 4),
        e=nn.LeakyReLU(inplace=True),
    )  # fmt: skip
    traced = trace(net, {"x": torch.ones(2, 4, 2), "y": torch.ones(2, 8)})
    assert named(traced, "first") == ["a"]  # b reads a sum of two inputs
    assert named(traced, "last") == ["d", "e"]  # c and a reach an output in a sum only


def test_a_constant_is_no_second_tensor():
    net = Net(lambda m, x: m.c(x + m.position) * m.scale, c=nn.Linear(4, 4))
    net.position = nn.Parameter(torch.zeros(1, 4))
    net.register_buffer("scale", torch.full((4,), 2.0))
    traced = trace(net, torch.ones(2, 4))
    assert named(traced, "first") == named(traced, "last") == ["c"]


def test_layers_that_read_the_same_tensor_share_its_number():
    def forward(m, x):
        h = m.n(x)
        q, k = m.q(h), m.k(h)
        v = m.v(h.relu_())
        h.view(-1).mul_(2)
        return m.w(h) + q * k * v

    modules = {name: nn.Linear(4, 4) for name in "qkvw"}
    layers = by_name(trace(Net(forward, n=nn.LayerNorm(4), **modules), torch.ones(2, 3, 4)))

    def tensor(name, operand="input"):
        return layers[name].site(operand).tensor

    assert tensor("n", "output") == tensor("q") == tensor("k")
    # It is changed in place before v, and by way of a view before w.
    assert len({tensor(name) for name in "qvw"}) == 3


def test_what_cannot_be_quantized_says_why():
    class Same(nn.Conv2d):
        def forward(self, x):
            return super().forward(F.pad(x, (1, 1, 1, 1)))

    class Plain(nn.Conv2d):
        pass

    attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(m, x):
        h = m.plain(m.same(x)).flatten(2).transpose(1, 2)
        return m.attention(h, h, h)[0]

    net = Net(forward, idle=conv(), same=Same(4, 4, 3), plain=Plain(4, 4, 1), attention=attention)
    layers = by_name(trace(net, IMAGE))
    attention = [f"attention.{name}" for name in ("linear", "bmm", "bmm_1", "out_proj")]
    assert list(layers) == ["same", "plain", *attention, "idle"]
    assert layers["same"].type == layers["plain"].type == "Conv2d"
    assert layers["plain"].unusable is None and layers["same"].unusable is None
    assert layers["same"].call and not layers["plain"].call
    assert layers["idle"].unusable == "never runs in the forward pass"
    assert layers["attention.out_proj"].unusable is None, "its weight is multiplied"


COMPUTED = {
    "remove_weight_norm": nn.utils.weight_norm,
    "remove_spectral_norm": nn.utils.spectral_norm,
    "prune.remove": lambda layer, name="weight": nn.utils.prune.l1_unstructured(layer, name, 0.5),
    "parametrize.remove_parametrizations": nn.utils.parametrizations.weight_norm,
}
"""What one calls to end it -> what lets torch compute a weight."""


def tensors_of(result):
    return [result] if isinstance(result, torch.Tensor) else [result[0], *result[1]]


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("how", COMPUTED)
def test_a_computed_weight_is_refused_with_the_way_out(how):
    net = nn.Sequential(nn.ReLU(), COMPUTED[how](conv()))
    with pytest.raises(ModelError, match=f"'1' is computed.*call torch.nn.utils.{how}"):
        trace(net, IMAGE)
    compute_once(net)
    assert by_name(trace(net, IMAGE))["1"].unusable is None


def test_a_weight_that_the_users_own_hook_computes_leaves_the_layer_float():
    (found,) = trace(nn.Sequential(doubled(conv())), IMAGE).layers
    assert found.unusable == "its weight is no parameter, but computed before each call"


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("kind", ["Conv2d", "ConvTranspose2d", "Linear", "LSTM"])
@pytest.mark.parametrize("how", [*COMPUTED, "twice", "pruned twice"])
def test_computing_weights_once_changes_no_bit_and_no_other_module(kind, how):
    torch.manual_seed(0)
    args = (3, 4, 3) if "Conv" in kind else (3, 4)
    name = "weight_ih_l0" if kind == "LSTM" else "weight"
    layer, tied = getattr(nn, kind)(*args), nn.Module()
    tied.weight = getattr(layer, name)
    net = nn.ModuleList([layer, tied]).train()
    if how == "twice":
        nn.utils.parametrize.register_parametrization(layer, name, Twice())
        nn.utils.parametrize.register_parametrization(layer, name, Twice())
    elif how == "pruned twice":
        nn.utils.prune.random_unstructured(layer, name, 0.5)
        nn.utils.prune.random_unstructured(layer, name, 0.5)
    else:
        COMPUTED[how](layer, name)
    x = torch.randn(2, 3, 6, 6) if "Conv" in kind else torch.randn(2, 5, 3)
    before, held = tensors_of(layer.eval()(x)), tied.weight.clone()
    compute_once(net.train())
    assert name in dict(layer.named_parameters()) and type(layer) is getattr(nn, kind)
    assert all(map(torch.equal, tensors_of(layer(x)), before)) and torch.equal(tied.weight, held)
    assert way_out(layer, name) is None


def test_the_layers_of_a_fused_transformer_layer_are_called():
    layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=8, batch_first=True).eval()
    called = []
    layer.linear2.forward = lambda x: (called.append(1), nn.Linear.forward(layer.linear2, x))[1]
    x = torch.ones(1, 3, 4)
    with torch.no_grad():
        layer(x)
    assert not called  # torch's fused kernel
    call(layer, x)
    assert called and torch.backends.mha.get_fastpath_enabled()


def test_a_module_called_twice_or_registered_twice_is_one_layer():
    shared = nn.Linear(4, 4)
    layers = trace(Net(lambda m, x: m.b(m.a(x)), a=shared, b=shared), torch.ones(2, 4)).layers
    assert [(layer.name, layer.calls) for layer in layers] == [("a", 2)]


def test_calls_of_different_shapes_are_told():
    net = Net(lambda m, x: (m.c(x), m.c(x[:, :, ::2]), m.d(x), m.d(x[:1])), c=conv(), d=conv())
    traced = trace(net, IMAGE)
    assert {layer.name for layer in traced.layers if layer.varying} == {"c"}  # d: two batch sizes
    assert by_name(traced)["c"].shape("input") == (1, 4, 6, 6)


def test_spread_is_the_largest_over_the_median_range_with_the_batch_norm_folded():
    layer, bn = nn.Conv2d(1, 4, 1, bias=False), nn.BatchNorm2d(4, eps=0)
    with torch.no_grad():
        layer.weight[:, 0, 0, 0] = torch.tensor([1.0, -2.0, 0.0, 4.0])
    net = Net(lambda m, x: m.b(m.c(x)), c=layer, b=bn)
    x = torch.ones(1, 1, 2, 2)
    assert by_name(trace(net, x))["c"].spread == 2  # median of 1, 2, 4: zero channels are left out
    bn.running_var[0] = 1 / 16**2
    assert by_name(trace(net, x))["c"].spread == 4  # 16, 2, 4
    nn.init.zeros_(layer.weight)
    assert by_name(trace(net, x))["c"].spread is None


def test_the_spread_of_a_grouped_transposed_convolution_is_per_output_channel():
    layer = nn.ConvTranspose1d(2, 4, 1, groups=2, bias=False)
    with torch.no_grad():
        layer.weight[:, :, 0] = torch.tensor([[1.0, 2.0], [3.0, 8.0]])
    assert by_name(trace(layer, torch.ones(1, 2, 3)))[""].spread == pytest.approx(8 / 2.5)


# ---- inputs, outputs, errors --------------------------------------------------------------------


def test_outputs_of_any_kind_are_named():
    one = torch.ones(1)

    @dataclass
    class Output:
        logits: torch.Tensor
        loss: None = None

    assert list(flatten_outputs(one)) == ["output"]
    assert list(flatten_outputs((one, [one, 3]))) == ["output_0", "output_1_0"]
    assert list(flatten_outputs({"a": {"b": one}, "c": None})) == ["a_b"]
    assert list(flatten_outputs(Output(one))) == ["logits"]
    assert list(flatten_outputs([Output(one)])) == ["output_0_logits"]
    with pytest.raises(ModelError, match="no tensor"):
        flatten_outputs("text")
    with pytest.raises(ModelError, match="'a_b'"):
        flatten_outputs({"a": {"b": one}, "a_b": one})


def test_positional_inputs_have_the_names_of_forwards_parameters():
    net = Net(lambda m, x, y: m.c(x) + y, c=nn.Linear(4, 4))
    traced = trace(net, (torch.ones(2, 4), torch.ones(2, 4)))
    assert traced.inputs == {"x": (1, 4), "y": (1, 4)}
    with pytest.raises(ModelError, match="does not take 3 inputs"):
        trace(net, (torch.ones(2, 4),) * 3)


def test_tracing_changes_nothing():
    def forward(m, x):
        return m.d(m.b(m.c(x.mul_(2))))

    net = Net(forward, c=conv(), b=nn.BatchNorm2d(4), d=nn.Dropout()).train()
    net.b.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    example = IMAGE.clone()
    trace(net, example)
    assert torch.equal(example, IMAGE)
    assert (net.training, net.c.training, net.b.training, net.d.training) == (1, 1, 0, 1)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_forward_that_raises_is_one_sentence_with_its_cause():
    net = Net(lambda m, x: m.c(x), c=conv()).train()
    with pytest.raises(ModelError, match="forward raised RuntimeError: .*channels") as caught:
        trace(net, torch.ones(2, 5, 6, 6))
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert net.training and not net.c._forward_hooks


def test_a_module_under_vmap_is_told_and_no_crash_of_ours():
    net = Net(lambda m, x: torch.vmap(m.a)(x), a=nn.Linear(4, 4))
    with pytest.raises(ModelError, match="runs 'a' under torch.vmap.* call it on the whole batch"):
        trace(net, torch.ones(2, 4))


def test_nan_and_inf_are_traced_to_where_they_began():
    def net(function):
        return Net(lambda m, x: m.b(function(m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 4))

    ones = torch.ones(2, 4)
    with pytest.raises(ModelError, match="layer 'b' holds NaN or Inf"):
        trace(net(lambda h: h / 0), ones)
    with pytest.raises(DataError, match="input 'x' holds NaN or Inf"):
        trace(net(torch.relu), torch.tensor([[1.0, 2.0, float("nan"), 0.0]]))
    broken = net(torch.relu)
    nn.init.constant_(broken.a.bias, float("inf"))
    with pytest.raises(ModelError, match="weights hold NaN or Inf: 'a.bias'"):
        trace(broken, ones)
    with pytest.raises(ModelError, match="output 'output' holds NaN or Inf"):
        trace(Net(lambda m, x: m.a(x) / 0, a=nn.Linear(4, 4)), ones)
    huge = Net(lambda m, x: m.a(x), a=nn.Linear(4, 4))
    nn.init.constant_(huge.a.weight, 5e37)  # every value is finite, their sum is not
    assert trace(huge, ones).layers


def test_call_runs_in_eval_mode_without_gradients_and_puts_flags_back():
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9)).train()
    x = torch.ones(2, 4)
    out = call(net, x)
    assert torch.equal(out, net[0](x)) and not out.requires_grad and net[1].training


# ---- real networks ------------------------------------------------------------------------------


def test_a_vision_transformer_shares_the_input_of_its_projections():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=16,
    )  # fmt: skip
    traced = trace(
        transformers.ViTForImageClassification(config), {"pixel_values": torch.ones(1, 3, 32, 32)}
    )
    assert traced.outputs == {"logits": (1, 2)} and not traced.batch_norms
    assert named(traced, "last") == ["classifier"] and len(named(traced, "first")) == 1
    readers: dict = {}
    for layer in traced.layers:
        readers.setdefault(layer.site("input").tensor, []).append(layer.name)
    assert sum(len(names) == 3 for names in readers.values()) == 2  # q, k, v of two blocks
    assert not any(layer.unusable for layer in traced.layers)


class Raises(nn.Module):
    def __init__(self, how=None):
        super().__init__()
        self.c, self.how = conv(), how

    def forward(self, x):
        if self.how == "in a function":
            return F.linear(self.c(x), torch.ones(2, 9))
        if self.how == "by itself":
            raise KeyError("no such key")
        return self.c(x)


@pytest.mark.parametrize("how", ["in a function", "by itself", "in a module"])
def test_an_error_of_the_users_forward_is_told_with_its_line_and_module(how):
    x = IMAGE[:, :2] if how == "in a module" else IMAGE
    with pytest.raises(ModelError) as caught:
        trace(nn.Sequential(Raises(how)), x)
    module = "'0.c'" if how == "in a module" else "'0'"
    assert f"(test_trace.py:{LINES[how]}, in {module}); it was given input float32" in str(
        caught.value
    )


START = Raises.forward.__code__.co_firstlineno
LINES = {"in a function": START + 2, "by itself": START + 4, "in a module": START + 5}


@pytest.mark.parametrize("raised", ["torch.ones(2) @ torch.ones(3)", "[][0]"])
def test_an_error_of_a_hook_of_ours_is_not_the_users(raised):
    ours = {"__name__": "granplugin.anything", "torch": torch}
    exec(f"def hook(module, args, output):\n    {raised}", ours)
    net = nn.Sequential(Raises())
    net[0].c.register_forward_hook(ours["hook"])
    with pytest.raises((RuntimeError, IndexError)):
        trace(net, IMAGE)


@pytest.mark.parametrize(
    ("x", "told"),
    [
        (torch.zeros(2, 8, 8, 3), "input has 8 channels on axis 1, and forward takes 4"),
        (torch.zeros(2, 8, 8, 4), "the channels of input come last"),
        (torch.zeros(8, 16, 16), "input has 3 axes: one is missing, of the 4 channels on axis 1"),
        (torch.zeros(2, 4, 8, 8, dtype=torch.uint8), "input is in 0..255"),
        (torch.zeros(2, 4, 8, 8, dtype=torch.int64), "input is int64, and forward takes floats"),
    ],
)
def test_images_in_another_layout_or_type_are_told_so(x, told):
    with pytest.raises(ModelError, match=told):
        trace(nn.Sequential(conv()), x)
