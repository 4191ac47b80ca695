"""Small classifiers with one planted fault each, and their data: what bench/planted.py analyzes.

A network is a stem, a body that holds the fault, and a classifier that is fitted to the body's
features by ridge regression, so that it decides with margins as a trained one does. Faults change
what rounding does and not, or hardly, what is computed in float.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

CLASSES, CHANNELS, WIDTH, SIZE = 10, 8, 32, 6
NOISE = 0.8
"""Of the images; their prototypes' values have a deviation of 1."""
HIT = 3
"""The channel that a fault hits."""
SPOILED = 100.0
"""How many times as large a spoiled sample is."""


@dataclass(frozen=True)
class Fault:
    """`layers` are those to be named, `loss_in` where they lose - several words where more than one
    is right - and `words` what a right reason holds one of; `factors` are from harmless to strong."""

    layers: tuple[str, ...]
    loss_in: tuple[str, ...]
    words: tuple[str, ...]
    factors: tuple[float, float]


_BEHIND = "the layers behind make much of it"
_DECIDES = "what is left decides"

FAULTS = {
    "input outlier channel": Fault(
        ("mid",), ("input",), (f"channel {HIT} reaches",), (1.0, 2000.0)
    ),
    "huge depthwise filter": Fault(
        ("dw",), ("weight", "both"), (f"channel {HIT}'s filter is",), (1.0, 2000.0)
    ),
    "dead channel": Fault((), (), (), (1.0, 1.0)),
    "cancelling pair": Fault(
        ("p", "q"),
        ("weight", "both", "neither"),
        (_BEHIND, _DECIDES, "one scale serves"),
        (1.0, 100.0),
    ),
    "sensitive last layer": Fault(
        ("last",),
        ("weight", "both", "neither"),
        (_BEHIND, _DECIDES, "one scale serves"),
        (1.0, 100.0),
    ),
    "growing residual": Fault(
        ("blocks.1", "blocks.2", "fc"),
        ("input", "both"),
        tuple(f"channel {at} reaches" for at in (HIT, *range(4 * HIT, 4 * HIT + 4))),
        (1.0, 20.0),
    ),
    "saturated sigmoid": Fault(
        ("gate",),
        ("weight", "input", "both", "neither"),
        (_BEHIND, _DECIDES, "scale"),
        (1.0, 3000.0),
    ),
    "one bad sample": Fault(
        ("stem", "mid", "fc", "last"), ("input",), ("sample reaches", "samples reach"), (1.0, 1.0)
    ),
}


class Planted(nn.Module):
    """(N, 3, SIZE, SIZE) -> scores (N, CLASSES); what one fault needs of layers, and no others."""

    def __init__(self, kind: str, seed: int = 0, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.kind, self.factor = kind, factor
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.mid = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        gain = torch.ones(1, CHANNELS, 1, 1)
        if kind in ("input outlier channel", "huge depthwise filter", "growing residual"):
            gain[:, HIT] = factor
        self.register_buffer("gain", gain)
        if kind == "huge depthwise filter":
            self.dw = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
        if kind == "cancelling pair":
            self.p = nn.Conv2d(CHANNELS, CHANNELS, 1)
            self.q = nn.Conv2d(CHANNELS, CHANNELS, 1)
        if kind == "saturated sigmoid":
            self.gate = nn.Conv2d(CHANNELS, CHANNELS, 1)
        if kind == "growing residual":
            self.blocks = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in "abc")
        self.fc = nn.Linear(CHANNELS * 4, WIDTH)
        self.last = nn.Linear(WIDTH, CLASSES)
        for layer in self.children():
            if hasattr(layer, "weight"):
                nn.init.kaiming_normal_(layer.weight)
        with torch.no_grad():
            self._plant()
            self._fit(seed)
        self.eval()

    def _plant(self) -> None:
        kind, factor = self.kind, self.factor
        if kind == "input outlier channel":
            self.mid.weight[:, HIT] /= factor
        if kind == "huge depthwise filter":
            self.dw.weight[HIT] *= factor
            self.dw.bias[HIT] *= factor
        if kind == "growing residual":
            for at, block in enumerate(self.blocks):
                block.weight[:, HIT] /= factor**at
            self.fc.weight[:, 4 * HIT : 4 * HIT + 4] /= factor ** len(self.blocks)
        if kind == "dead channel":
            self.mid.weight[HIT] = 0
            self.mid.bias[HIT] = 0
        if kind == "cancelling pair":
            self.q.weight.copy_(self.p.weight + torch.randn_like(self.p.weight) / factor)
            self.q.bias.copy_(self.p.bias)

    def _fit(self, seed: int) -> None:
        x, y = samples(1024, seed, "fit")
        h = self._features(torch.from_numpy(x))
        wanted = torch.nn.functional.one_hot(torch.from_numpy(y), CLASSES).float() - 0.1
        h1 = torch.cat([h, torch.ones(len(h), 1)], 1).double()
        ridge = 1e-2 * h1.square().mean() * len(h1) / h1.shape[1] * torch.eye(h1.shape[1])
        found = torch.linalg.solve(h1.T @ h1 + ridge, h1.T @ wanted.double()).float()
        self.last.weight.copy_(5 * found[:-1].T)
        self.last.bias.copy_(5 * found[-1])
        if self.kind == "sensitive last layer":
            # What all scores share decides nothing, and has the scale to itself.
            common = torch.randn(1, WIDTH)
            self.last.weight += self.factor * self.last.weight.std() * common

    def _features(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (
            self.mid(x * self.gain) if self.kind == "input outlier channel" else self.mid(x)
        ).relu()
        if self.kind == "huge depthwise filter":
            x = (self.dw(x) / self.gain).relu()
        if self.kind == "cancelling pair":
            x = x + self.factor * (self.p(x) - self.q(x))
        if self.kind == "saturated sigmoid":
            x = x * torch.sigmoid(self.factor * (self.gate(x) - 0.3))
        if self.kind == "growing residual":
            for at, block in enumerate(self.blocks, start=1):
                x = x + self.gain**at * block(x).relu()
        x = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.fc(x).relu()

    def forward(self, image: Tensor) -> Tensor:
        return self.last(self._features(image))


def samples(count: int, seed: int, what: str, bad: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, 3, SIZE, SIZE), float32, and their classes; the first `bad` are spoiled."""
    coarse = np.random.default_rng(seed).standard_normal((CLASSES, 3, 2, 2))
    prototypes = np.kron(coarse, np.ones((SIZE // 2, SIZE // 2)))
    random = np.random.default_rng([seed, *what.encode()])
    classes = random.integers(0, CLASSES, count)
    images = prototypes[classes] + NOISE * random.standard_normal((count, 3, SIZE, SIZE))
    images[:bad] *= SPOILED
    return images.astype(np.float32), classes
