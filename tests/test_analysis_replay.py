"""Replays from a changed layer on, against runs of the whole network: the same bits."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from granplugin.analysis.replay import Diverged, Script
from granplugin.errors import ModelError
from granplugin.quant.layers import WEIGHTED

pytestmark = pytest.mark.usefixtures("one_thread")

Pair = namedtuple("Pair", "left right")


class Block(nn.Module):
    """A residual block that works in place, with a downsample branch where shapes differ."""

    def __init__(self, inside, outside, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(outside)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride), nn.BatchNorm2d(outside)
            )

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True))
        self.stages = nn.ModuleList([Block(4, 4), Block(4, 8, 2), Block(8, 8)])
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return {"logits": self.head(x.mean((2, 3))), "features": x}


class Twice(nn.Module):
    """Layers called twice, on one another's results; results in tuples, dicts and views."""

    def __init__(self):
        super().__init__()
        self.shared, self.between = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.split, self.pair = Split(), Named()
        self.last = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        y = self.shared(self.between(self.shared(x)).relu_())
        parts = self.split(y)
        parts["left"].mul_(2)
        named = self.pair(parts["left"] + parts["right"][0])
        named.left.add_(named.right)
        return self.last(named.left), (y, None)


class Split(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)

    def forward(self, x):
        y = self.conv(x)
        return {"left": y[:, :3], "right": [y[:, 3:]]}


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return Pair(self.left(x), self.right(x))


def encoder():
    layer = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True, norm_first=True)
    return nn.Sequential(nn.Flatten(2), nn.Linear(64, 12), nn.TransformerEncoder(layer, 2))


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=8, patch_size=4, num_labels=3,
    )  # fmt: skip
    return ViTForImageClassification(config)


def scaled(forward, args, kwargs):
    return forward(*args, **kwargs) * 1.25


def made(network):
    torch.manual_seed(0)
    model = network()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model.eval()


def images(seed=0, samples=3):
    return torch.randn(samples, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def layers_of(model):
    return {n: m for n, m in model.named_modules() if type(m).__name__ in WEIGHTED}


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    return [t for part in parts if part is not None for t in tensors(part)]


def same(a, b):
    return len(tensors(a)) == len(tensors(b)) and all(map(torch.equal, tensors(a), tensors(b)))


@pytest.mark.parametrize("network", [Residual, Twice, encoder, vit])
def test_replays_from_any_changed_layer_equal_whole_runs(network):
    model, script = made(network), None
    # Its out_proj is read, not called.
    layers = {n: m for n, m in layers_of(model).items() if not n.endswith("out_proj")}
    script = Script(model)
    with script.installed():
        script.learn(lambda: model(images(9).clone()), layers.values())
        script.record(lambda: model(images(9).clone()))
        for name, layer in layers.items():
            assert script.replayable(lambda: model(images(9).clone()), layer), name
        for others in ({}, {next(iter(layers.values())): scaled}):
            x = images(1, 5)
            script.changes = others
            plain = script.record(lambda: model(x.clone()))
            kept = [t.clone() for t in tensors(plain)]
            for name, layer in layers.items():
                script.changes = {**others, layer: scaled}
                replayed = script.replay(lambda: model(x.clone()), layer)
                whole = script.run(lambda: model(x.clone()))
                assert same(replayed, whole), name
                if layer not in others:
                    assert not same(whole, kept), name
                # The last layer's replay computes that layer alone.
            script.changes = others
            assert same(script.replay(lambda: model(x.clone()), layer), kept)
    assert "forward" not in layer.__dict__


def test_a_replay_calls_nothing_that_ended_before_its_layer():
    model = made(Residual)
    calls = []
    for name, module in layers_of(model).items():
        original = module.forward
        module.forward = lambda x, name=name, original=original: calls.append(name) or original(x)
    layers = layers_of(model)
    script = Script(model)
    with script.installed():
        script.learn(lambda: model(images()), layers.values())
        script.record(lambda: model(images()))
        for start, layer in enumerate(layers.values()):
            calls.clear()
            script.replay(lambda: model(images()), layer)
            assert calls == list(layers)[start:]


class Counts(nn.Module):
    """What it calls depends on how often it was called."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.count = 0

    def forward(self, x):
        self.count += 1
        first, second = (self.a, self.b) if self.count % 2 else (self.b, self.a)
        return self.c(second(first(x)))


class Depends(Counts):
    """What it calls depends on the data."""

    def forward(self, x):
        first, second = (self.a, self.b) if x[0, 0, 0, 0] > 0 else (self.b, self.a)
        return self.c(second(first(x)))


class Shorter(Counts):
    """Some batches are through sooner."""

    def forward(self, x):
        x = self.a(x)
        return self.c(self.b(x)) if x.numel() > 3 * 3 * 64 else x


class Stows(Counts):
    """A layer leaves its result with another module."""

    def __init__(self):
        super().__init__()
        self.stow = Stow()

    def forward(self, x):
        self.stow(self.a(x))
        return self.c(self.b(x)) + self.stow.held


class Stow(nn.Module):
    def forward(self, x):
        self.held = x
        return x


class InPlace(Counts):
    """Reads a tensor that a module changed in place, not what it returned."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.a(x) + 1
        self.relu(y)
        return self.c(self.b(y))


class Noisy(Counts):
    def forward(self, x):
        return self.c(self.b(self.a(x)) + torch.rand_like(x))


@dataclass
class Output:
    logits: torch.Tensor


class Wrapped(Noisy):
    """Puts out a dataclass."""

    def forward(self, x):
        return Output(super().forward(x))


@pytest.mark.parametrize("network", [Stows, InPlace, Noisy, Wrapped])
def test_what_a_replay_would_get_wrong_is_not_replayable(network):
    model = made(network)
    script = Script(model)
    layers = [model.a, model.b, model.c]
    with script.installed():
        script.learn(lambda: model(images()), layers)
        script.record(lambda: model(images()))
        good = [layer for layer in layers if script.replayable(lambda: model(images()), layer)]
        assert len(good) < 3
        for layer in good:
            script.changes = {layer: scaled}
            whole = script.run(lambda: model(images()))
            assert torch.equal(script.replay(lambda: model(images()), layer), whole)


def test_what_depends_on_the_number_of_calls_is_not_replayable():
    model = made(Counts)
    script = Script(model)
    with script.installed():
        script.learn(lambda: model(images()), [model.a, model.b, model.c])
        for _ in range(2):
            script.record(lambda: model(images()))
            for layer in (model.a, model.b, model.c):
                assert not script.replayable(lambda: model(images()), layer)


@pytest.mark.parametrize(
    ("network", "learnt", "batch"),
    [
        (Depends, images().abs(), -images().abs()),
        (Depends, -images().abs(), images().abs()),
        (Shorter, images(samples=4), images(samples=2)),
        (Shorter, images(samples=2), images(samples=4)),
    ],
)
def test_batches_that_call_other_layers_diverge(network, learnt, batch):
    model = made(network)
    script = Script(model)
    with script.installed():
        script.learn(lambda: model(learnt), [model.a, model.b, model.c])
        script.changes = {}
        script.record(lambda: model(batch))
        for layer in (model.a, model.b, model.c):
            script.changes = {layer: scaled}
            whole = script.run(lambda: model(batch))
            try:
                found = script.replay(lambda: model(batch), layer)
            except Diverged:
                continue
            assert torch.equal(found, whole)


def test_a_layer_that_never_runs_is_not_replayable():
    model = made(Shorter)
    script = Script(model)
    with script.installed():
        script.learn(lambda: model(images(samples=2)), [model.b])
        script.record(lambda: model(images(samples=2)))
        assert not script.replayable(lambda: model(images(samples=2)), model.b)


def test_models_run_in_inference_mode_are_replayed():
    class Inferring(Residual):
        forward = torch.inference_mode()(Residual.forward)

    model = made(Inferring)
    script = Script(model)
    layers = layers_of(model)
    with script.installed():
        script.learn(lambda: model(images()), layers.values())
        script.record(lambda: model(images()))
        for name, layer in layers.items():
            good = script.replayable(lambda: model(images()), layer)
            script.changes = {layer: scaled}
            if good:
                replayed = script.replay(lambda: model(images()), layer)
                assert same(replayed, script.run(lambda: model(images()))), name
            script.changes = {}


def test_a_layer_whose_replay_misses_a_residual_add_is_not_replayable(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    script, x = Script(model), torch.ones(2, 4)

    def missed(*of):
        raise ModelError("the residual add behind it did not take place")

    with script.installed():
        script.learn(lambda: model(x), [model[1]])
        script.record(lambda: model(x))
        assert script.replayable(lambda: model(x), model[1])
        monkeypatch.setattr(script, "replay", missed)
        assert not script.replayable(lambda: model(x), model[1])
