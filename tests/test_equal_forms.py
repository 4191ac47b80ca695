"""Networks that engines compute wrongly in the plain form, and rightly in an equal one."""

from __future__ import annotations

import dataclasses

import pytest

from granplugin.engines import ENGINES
from granplugin.runs import variants

NETS = '''
import numpy as np
import torch
from torch import nn


def conv(inputs, outputs, size=3, **more):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False, **more),
        nn.BatchNorm2d(outputs),
    )


class UNet(nn.Module):
    """Down twice, up twice; what was seen on the way down is concatenated."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([conv(3, 16), conv(16, 32), conv(32, 32)])
        self.up = nn.ModuleList([conv(64, 16), conv(32, 16)])
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, image):
        first = self.down[0](image).relu()
        second = self.down[1](nn.functional.max_pool2d(first, 2)).relu()
        x = self.down[2](nn.functional.max_pool2d(second, 2)).relu()
        for step, seen in zip(self.up, (second, first)):
            x = nn.functional.interpolate(x, scale_factor=2.0)
            x = step(torch.cat([x, seen], 1)).relu()
        return self.head(x).mean((2, 3))


class Inception(nn.Module):
    """GoogLeNet's block: four branches of different kernels, concatenated; twice."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 16)
        self.blocks = nn.ModuleList([self.block(16), self.block(32)])
        self.head = nn.Linear(32, 4)

    def block(self, inputs):
        return nn.ModuleDict({
            "one": conv(inputs, 8, 1),
            "three": nn.Sequential(conv(inputs, 8, 1), nn.ReLU(), conv(8, 8)),
            "five": nn.Sequential(conv(inputs, 4, 1), nn.ReLU(), conv(4, 8, 5)),
            "pool": nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(inputs, 8, 1)),
        })

    def forward(self, image):
        x = self.stem(image).relu()
        for block in self.blocks:
            x = torch.cat([branch(x).relu() for branch in block.values()], 1)
        return self.head(x.mean((2, 3)))


class C2f(nn.Module):
    """YOLO's block: split, bottlenecks with residual adds, all of it concatenated; SiLU."""

    def __init__(self):
        super().__init__()
        self.stem, self.before, self.after = conv(3, 16), conv(16, 16, 1), conv(32, 16, 1)
        self.steps = nn.ModuleList([nn.ModuleList([conv(8, 8), conv(8, 8)]) for _ in range(2)])
        self.head = nn.Linear(16, 4)

    def forward(self, image):
        silu = nn.functional.silu
        parts = list(silu(self.before(silu(self.stem(image)))).chunk(2, 1))
        for first, second in self.steps:
            parts.append(parts[-1] + silu(second(silu(first(parts[-1])))))
        return self.head(silu(self.after(torch.cat(parts, 1))).mean((2, 3)))


class PreActivation(nn.Module):
    """ResNetV2: convolutions without a bias, each read by a batch norm and by a residual add."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.steps = nn.ModuleList(
            [nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(2)]
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(16) for _ in range(3)])
        self.head = nn.Linear(16, 4)

    def forward(self, image):
        x = self.stem(image)
        for norm, step in zip(self.norms, self.steps):
            x = x + step(norm(x).relu())
        return self.head(self.norms[-1](x).relu().mean((2, 3)))


class Branching(nn.Module):
    """A convolution without a bias, whose output goes two ways."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.head = nn.Linear(16, 4)

    def forward(self, image):
        x = self.conv(image)
        return self.head((x.relu() + x.sigmoid()).mean((2, 3)))


class Maximum(nn.Module):
    """The largest value of each channel, into a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 4)

    def forward(self, image):
        return self.head(self.conv(image).tanh().amax((2, 3)))


class Two(nn.Module):
    """Both of these, whose outputs are added."""

    def __init__(self):
        super().__init__()
        self.both = nn.ModuleList([PreActivation(), Maximum()])

    def forward(self, image):
        return sum(each(image) for each in self.both)


def images():
    random = np.random.default_rng(1)
    for _ in range(4):
        yield {"image": random.standard_normal((8, 3, 16, 16), np.float32)}


def warmed(network):
    torch.manual_seed(0)
    network = network()
    with torch.no_grad():
        for batch in images():
            network(torch.from_numpy(batch["image"]))
    return network.eval()


def unet():
    return warmed(UNet)


def inception():
    return warmed(Inception)


def c2f():
    return warmed(C2f)


def two():
    return warmed(Two)


def branching():
    return warmed(Branching)
'''


@pytest.mark.parametrize("network", ["unet", "inception", "c2f", "two", "branching"])
def test_openvino_computes_them_as_the_reference_does(project, network):
    concats = network in ("inception", "c2f")
    shared = {"shared": {"set": {"share": ["concat"]}}} if concats else {}
    made = apply(project, network, variants=shared)
    assert len(made) == 1 + concats
    for variant in made:
        reference, engine = (each.metrics["sqnr_db"].value for each in variant.engines)
        assert reference > 20 and abs(engine - reference) < 1
        assert not any(each.traced for each in variant.engines), "by its form alone"


def apply(project, network, code=0, **recipe):
    project.write("nets.py", NETS)
    project.recipe(
        model={"callable": f"nets.py:{network}"},
        data={"calibration": {"callable": "nets.py:images"}, "batch_size": 8},
        metrics=["sqnr_db"],
        engines=["onnxruntime", "openvino"],
        latency={"rounds": 6, "seconds": 0.01},
        share=[],
        **recipe,
    )
    done = project.apply()
    assert done.code == code, done.stderr
    variants = [each for each in project.report().variants if each.kind != "baseline"]
    said = " ".join(done.stdout.split())
    for variant in variants:
        wrong = any(each.held and each.held.wrong for each in variant.engines)
        told = f"WRONG: openvino does not compute what the file of {variant.name} says" in said
        assert told == wrong
    return variants


@pytest.mark.parametrize(
    ("network", "targeted", "code"), [("c2f", False, 0), ("branching", True, 3)]
)
def test_without_the_equal_form_what_is_computed_wrongly_is_left_float(
    project, monkeypatch, network, targeted, code
):
    monkeypatch.setattr(variants, "forms_of", lambda engine: ())
    facts = dataclasses.replace(ENGINES["openvino"], targeted=targeted)
    monkeypatch.setitem(ENGINES, "openvino", facts)
    (variant,) = apply(project, network, code=code)
    reference, engine = variant.engines
    assert reference.held is None
    wrong = engine.traced.held
    assert wrong.wrong and wrong.engine_db < wrong.reference_db - 10
    assert not engine.held.wrong and engine.traced.left_float
