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
        self.recurrent, self.head = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 4)

    def forward(self, image):
        x = self.act(self.conv(image))
        for name in "method partial function named odd twice hidden fused normed direct".split():
            x = self.act(getattr(self, name)(x))
        for name in "reflect circular".split():
            x = self.act(getattr(self, name)(x))
        for name in "weight_hook spectral_hook weight_normed spectral_normed".split():
            x = self.act(getattr(self, name)(x))
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
    "hidden.conv2d",  # a module that is registered nowhere, so called as what is called in it
]


def test_every_layer_is_quantized_whatever_calls_it_and_whoever_shares_it(project):
    project.write("nets.py", NETS)
    project.recipe(model={"callable": "nets.py:Wrapped"})
    done = project.apply()
    assert done.code == 0, done.stderr
    report = project.report()
    nodes = onnx.load_from_string(project.onnx()).graph.node
    read = {node.name.rpartition("/")[0] for node in nodes if node.op_type in ("Conv", "Gemm")}
    assert {f"model.{name}" for name in LAYERS} <= read
    types = [node.op_type for node in nodes]
    assert types.count("LSTM") == 1 and "BatchNormalization" not in types
    assert report.variants[-1].quantized_sites == 2 * len(LAYERS)
    assert report.variants[-1].agreement.oracle_differs == 0
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
