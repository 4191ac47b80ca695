"""A project that runs in a second or two: a network of four layers, its data and two recipes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.b = nn.BatchNorm2d(8)
        self.c = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.e = nn.Linear(8, 4)

    def forward(self, image):
        x = torch.relu(self.b(self.a(image)))
        return self.e((self.c(x) + x).mean((2, 3)))


def net():
    return Net()
"""
RECIPE = """
version: 1
name: tiny
model: {callable: net.py:net}
data:
  calibration: {npz: d.npz, inputs: {image: x}, samples: 32}
  evaluation: {npz: d.npz, inputs: {image: x}, labels: y}
  batch_size: 16
metrics: [top1, agreement, sqnr_db]
rules:
  - {id: coarse, match: {type: Conv2d}, weight: %s}
variants: {without: {drop: coarse}}
engines: [onnxruntime]
baselines: [fp32]
latency: {rounds: 6, seconds: 0.01}
analyze: {weights: [per_tensor], inputs: [per_tensor], calibrators: [max], bn: [fold]}
"""
RECIPES = {"coarse": "per_tensor", "fine": "{per_block: {shape: [1, 1, 3, 3]}}"}
"""Two recipes of one run folder, whose files differ."""


def write(folder: Path) -> None:
    """The project's files."""
    drawn = np.random.default_rng(0)
    images = drawn.standard_normal((64, 1, 8, 8)).astype(np.float32)
    np.savez(folder / "d.npz", x=images, y=drawn.integers(0, 4, 64))
    (folder / "net.py").write_text(NETWORK)
    for name, weight in RECIPES.items():
        (folder / f"{name}.yaml").write_text(RECIPE % weight)
