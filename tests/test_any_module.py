"""However a module is called, named, shared or replaced, its sites are found and quantized."""

from __future__ import annotations

import copy

import onnx
import torch
from conftest import run_main

import granplugin
from granplugin.graph.read.loading import read_model
from granplugin.graph.read.quantized_graph import read_quantized
from granplugin.graph.reference import open_session
from granplugin.network.copying import copy_of
from granplugin.network.trace import trace
from granplugin.quant.layers import ONNX_PRODUCTS

NETS = """
import functools

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class Block(nn.Module):
    one = nn.SiLU()  # for all blocks

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(4, 4, 3, padding=1), Block.one

    def forward(self, x):
        raise AssertionError("another forward is set on the instance")

    def forward_fuse(self, x):
        return self.act(self.conv(x))


def run(block, x, scale):
    return block.conv(x) * scale


class Activated(nn.BatchNorm2d):
    def forward(self, x):
        given = self.running_mean, self.running_var, self.weight, self.bias
        return nn.functional.batch_norm(x, *given, eps=self.eps).relu()


class Standardized(nn.Conv2d):  # as timm's StdConv2d
    def forward(self, x):
        rows = self.weight.flatten(1)
        weight = ((rows - rows.mean(1, True)) / rows.std(1, keepdim=True)).view_as(self.weight)
        return self._conv_forward(x, weight, self.bias)


class Gained(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.randn(4, 2, 1, 1)), nn.Parameter(torch.rand(()))
        self.norm, self.then = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = nn.functional.conv_transpose2d(x, self.weight * self.gain, groups=2)
        return self.then(self.norm(x))


def with_statistics(model):
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor, low in ((norm.running_mean, -1), (norm.running_var, 0.2)):
                nn.init.uniform_(tensor, low, 2)
            nn.init.uniform_(norm.weight, -1, 2), nn.init.uniform_(norm.bias, -1, 1)
    return model


class Computed(nn.Module):
    def __init__(self):
        super().__init__()
        self.standard, self.norm = Standardized(4, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.biased, self.active = Standardized(4, 4, 3, groups=2), Activated(4)
        self.gained = Gained()
        with_statistics(self)

    def forward(self, x):
        x = self.norm(self.standard(x)).relu()
        return self.gained(self.active(self.biased(x)))


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("a layer", "größe", "a/b", "conv"):
            self.add_module(name, nn.Conv2d(4, 4, 1))

    def forward(self, x):
        for part in self.children():
            x = part(x)
        return x


class Named(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + 1


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = [nn.Conv2d(4, 4, 1)]

    def forward(self, x):
        return self.parts[0](x)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = self.again = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.again(self.conv(x).relu())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()
        self.conv = nn.Conv2d(1, 4, 1)
        self.method, self.partial, self.function = blocks = [Block() for _ in range(3)]
        self.method.forward = self.method.forward_fuse
        self.partial.forward = functools.partial(run, self.partial, scale=2.0)
        self.function.forward = lambda x: blocks[2].conv(x).relu()
        self.named = Named(nn.Conv2d(4, 4, 1), self.act)
        self.odd, self.twice, self.hidden = Odd(), Twice(), Hidden()
        self.fused = fuse_conv_bn_eval(nn.Conv2d(4, 4, 1).eval(), nn.BatchNorm2d(4).eval())
        self.normed = nn.Sequential(nn.Conv2d(4, 4, 1), Activated(4))
        self.direct = nn.Conv2d(4, 4, 1)
        self.direct.forward = functools.partial(nn.Conv2d.forward, self.direct)
        self.reflect = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.circular = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        self.weight_hook = nn.utils.weight_norm(nn.Conv2d(4, 4, 1))
        self.spectral_hook = nn.utils.spectral_norm(nn.Conv2d(4, 4, 1))
        self.weight_normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
        self.spectral_normed = nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1))
        self.computed = Computed()
        self.recurrent, self.head = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 4)

    def forward(self, image):
        x = self.act(self.conv(image))
        for name in "method partial function named odd twice hidden fused normed direct".split():
            x = self.act(getattr(self, name)(x))
        for name in "reflect circular".split():
            x = self.act(getattr(self, name)(x))
        for name in "weight_hook spectral_hook weight_normed spectral_normed".split():
            x = self.act(getattr(self, name)(x))
        x = self.computed(x)
        steps, _ = self.recurrent(x.flatten(2).transpose(1, 2))
        return self.head(steps.mean(1))


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Net()

    def forward(self, image):
        return self.model(image)
"""
LAYERS = [
    *("conv", "method.conv", "partial.conv", "function.conv", "named.0", "odd.a layer"),
    *("odd.größe", "odd.a/b", "odd.conv", "twice.conv", "fused", "normed.0", "direct", "head"),
    *("reflect", "circular"),
    *("weight_hook", "spectral_hook", "weight_normed", "spectral_normed"),
    *("computed.standard", "computed.biased"),
    *("computed.gained.conv_transpose2d", "computed.gained.then"),
    "hidden.conv2d",  # a module that is registered nowhere, so called as what is called in it
]


def test_every_layer_is_quantized_whatever_calls_it_and_whoever_shares_it(project):
    project.write("nets.py", NETS)
    project.recipe(model={"callable": "nets.py:Wrapped"})
    done = project.apply()
    assert done.code == 0, done.stderr
    report = project.report()
    nodes = onnx.load_from_string(project.onnx()).graph.node
    read = {node.name.rpartition("/")[0] for node in nodes if node.op_type in ONNX_PRODUCTS}
    assert {f"model.{name}" for name in LAYERS} <= read
    types = [node.op_type for node in nodes]
    assert types.count("LSTM") == 1 and "BatchNormalization" not in types
    assert report.variants[-1].quantized_sites == 2 * len(LAYERS)
    agreement = report.variants[-1].agreement
    assert agreement.oracle_differs == agreement.modelopt_differs == 0
    assert agreement.network_sqnr_db > 40 and report.variants[-1].folded == 4
    path = project.out / report.variants[-1].onnx
    found = {site.row.site for site in read_quantized(read_model(path), path).operands}
    # In the file what pads by values of the input is a node between that and the product.
    assert {f"model.{name}/Conv.input" for name in ("reflect", "circular")} <= found


def test_a_batch_norm_that_cannot_be_folded_is_an_error_of_a_rule_and_a_note_of_the_defaults(
    project,
):
    project.write(
        "nets.py",
        """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.an, self.b, self.bn = (
            nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        )

    def forward(self, image):
        x = self.b(self.an(self.a(image)))
        return (self.bn(x) * x).mean((2, 3))
""",
    )
    recipe = project.recipe(model={"callable": "nets.py:Net"})
    told = "1 of 2 batch norms cannot be folded into the layer before them: b (something else reads"
    planned = run_main("plan", recipe, "--out", project.out)
    assert planned.code == 0 and told in " ".join(planned.stdout.split())
    recipe = project.recipe(
        model={"callable": "nets.py:Net"}, rules=[{"match": {"type": "Conv2d"}, "bn": "fold"}]
    )
    refused = run_main("plan", recipe, "--out", project.out)
    assert refused.code == 2
    assert "recipe.yaml:25:3: the batch norm behind 'b' cannot be folded into it" in refused.stderr


def test_a_script_quantizes_exports_and_restores_a_layer_of_two_names(tmp_path):
    from granplugin.modelopt_bridge.library import mto, mtq

    nets: dict = {}
    exec(NETS, nets)
    x, recipe = torch.randn(16, 4, 8, 8), {"version": 1}
    torch.manual_seed(0)
    model = granplugin.prepare(nets["Twice"]().eval(), recipe, x)
    fresh = copy.deepcopy(model)
    config = granplugin.modelopt_config(recipe, model)
    model = mtq.quantize(model, config, lambda model: model(x))
    path = granplugin.export_onnx(model, x, tmp_path / "model.onnx")
    with torch.no_grad():
        expected = model(x)
        session = open_session(path)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
        restored = mto.restore_from_modelopt_state(fresh, mto.modelopt_state(model))
        restored.load_state_dict(model.state_dict())
        assert torch.equal(restored(x), expected)


def test_batch_norms_behind_computed_weights_stay_folded_when_trained_saved_and_opened(tmp_path):
    from granplugin.modelopt_bridge import take_apart
    from granplugin.modelopt_bridge.library import mto, mtq

    nets: dict = {}
    exec(NETS, nets)
    x, recipe = torch.randn(16, 4, 8, 8), {"version": 1}
    torch.manual_seed(0)
    model = nets["Computed"]().eval()
    known = {name: (type(m), set(vars(m))) for name, m in model.named_modules()}
    hooks = [len(m._forward_pre_hooks) for m in model.modules()]
    model, float_output = granplugin.prepare(model, recipe, x), model(x).detach()
    left = {name: (type(m), set(vars(m))) for name, m in model.named_modules()}
    assert left.pop("")[1] - known.pop("")[1] == {"_granplugin_prepared"} and left == known
    assert hooks == [len(m._forward_pre_hooks) for m in model.modules()], "only tried"
    fresh = copy.deepcopy(model)
    config = granplugin.modelopt_config(recipe, model)
    model = mtq.quantize(model, config, lambda model: model(x)).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    (model(x) - float_output).square().mean().backward()
    optimizer.step()
    assert model.gained.gain.grad.abs() > 0, "the standardization and the gain are trained"
    found, expected = model.eval(), model(x).detach()
    path = granplugin.export_onnx(found, x, tmp_path / "model.onnx")
    assert "BatchNormalization" not in [node.op_type for node in onnx.load(path).graph.node]
    session = open_session(path)
    (run,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(run), expected, rtol=0.02, atol=0.02)
    restored = mto.restore_from_modelopt_state(fresh, mto.modelopt_state(model))
    restored.load_state_dict(model.state_dict())
    assert torch.equal(restored.eval()(x), expected)
    opened, _ = take_apart(restored)
    assert not any("_quantizer" in name for name, _ in opened.named_modules())
    traced = trace(opened, x)
    assert [layer.name for layer in traced.layers if layer.multiplied] == [
        *("standard", "biased", "gained.conv_transpose2d", "gained.then")
    ]
    assert traced.batch_norms == {} and not any(layer.unfolded for layer in traced.layers)
    torch.testing.assert_close(opened(x), float_output, rtol=0.05, atol=0.05)


def test_a_copy_runs_its_own_modules_whatever_forward_was_set():
    nets: dict = {}
    exec(NETS, nets)
    original = nets["Net"]().eval()
    bound, blocks = original.forward, [original.conv]
    original.forward = lambda image, gain=original.head: (
        bound(image) + gain(blocks[0](image).mean((2, 3)))
    )
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        before = original(x)
        copied = copy_of(original)
        assert torch.equal(copied(x), before)
        for parameter in original.parameters():
            parameter.zero_()
        assert torch.equal(copied(x), before)
        used = set(copied.modules())
        seen = set()
        for module in used:
            module.register_forward_hook(lambda module, args, output: seen.add(module))
        copied(x)
    assert {copied.conv, copied.head, copied.function.conv, copied.partial.conv} <= seen
